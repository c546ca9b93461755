"""Option spellings of version 0.1: each still works, stderr names the current one, and `--help` hides the old one."""

from pathlib import Path

import pytest

from igc_nas.cli.program import program
from igc_nas.cli.renamed import OPTIONS
from igc_nas.study.study import load_study
from tests.support.commands import Command, refused
from tests.support.studies import make_study

SEARCH = ("search", "--space", "tiny", "--dataset", "shapes", "--study", "s", "--budget-params", "1")
"""A search that is refused with status 3 once its options are parsed: no architecture has one parameter."""

pytestmark = pytest.mark.usefixtures("nothing_around")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder of studies, not in the usual place, that holds `made`."""
    study = make_study(3)
    folder = tmp_path / "elsewhere" / "made"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(study.spec.model_copy(update={"name": "made"}).to_toml())
    (folder / "trials.jsonl").write_text("".join(trial.to_json() + "\n" for trial in study.trials))
    return folder.parent


@pytest.mark.parametrize("join", [" ", "="])
def test_studies_is_now_studies_dir(join: str, studies: Path, cli: Command) -> None:
    current = cli("front", "made", "--studies-dir", "elsewhere", "--json")
    answer = cli("front", "made", *f"--studies{join}elsewhere".split(), "--json")
    assert answer.json == current.json, "stdout is JSON and nothing else"
    assert answer.err == "--studies is now --studies-dir\n"
    assert len(answer.json["candidates"]) == len(load_study(studies / "made").front())


@pytest.mark.parametrize(
    ("old", "value", "said"),
    [
        ("--stop", "0.5", "--stop is now --prune-below"),
        ("--first", "igcv1-l8m2-d8", "--first is now --enqueue"),
        ("--sampler", "all", "all is now brute-force"),
    ],
)
@pytest.mark.parametrize("join", [" ", "="])
def test_an_old_spelling_of_a_search_option_is_taken(old: str, value: str, said: str, join: str, cli: Command) -> None:
    answer = cli(*SEARCH, *f"{old}{join}{value}".split())
    assert (answer.status, answer.out) == (3, "")
    assert answer.err.splitlines()[0] == said
    assert "has 706 parameters" in answer.err, "the options were parsed and the search was prepared"


@pytest.mark.parametrize(
    ("old", "value", "current"), [("--stop", "1", "--prune-below"), ("--studies", "", "--studies-dir")]
)
def test_an_error_names_the_current_spelling(old: str, value: str, current: str, cli: Command) -> None:
    refused(cli("search", *([old, value] if value else [old])), 2, f"{old} is now {current}", current)


@pytest.mark.parametrize("old", OPTIONS)
def test_help_names_the_current_spelling_only(old: str, cli: Command) -> None:
    pages = [cli(command, "--help").out for command in program.commands]
    words = {word.strip("[],.") for page in pages for word in page.split()}
    assert old not in words
    assert OPTIONS[old] in words


def test_an_old_value_of_a_choice_is_not_offered(cli: Command) -> None:
    assert "|all" not in cli("search", "--help").out
    assert "brute-force" in cli("search", "--help").out


def test_what_follows_two_dashes_is_no_option(cli: Command) -> None:
    answer = cli("front", "--", "--studies")
    refused(answer, answer.status, "--studies")
    assert "is now" not in answer.err
