"""`igc-nas finals` and `front --finals` as people type them: the picks, what is refused, the table, the page."""

import json
from pathlib import Path

import pytest

from igc_nas.nn.device import cpu_name
from igc_nas.space.budget import Budget
from igc_nas.study.finals import FINALS_FILE, FINALS_FOLDER, FinalsLog
from igc_nas.study.lock import StudyLock
from igc_nas.study.study import load_study
from tests.study.test_finals import final
from tests.support.commands import Command, refused
from tests.support.searches import searched, spec


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study `made` of six invented trials in `studies` of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGC_NAS_DATA", str(tmp_path / "data"))
    question = spec(name="made", budget=Budget(params=3000))
    question = question.model_copy(update={"latency": question.latency.model_copy(update={"device": cpu_name()})})
    return searched(tmp_path / "studies" / "made", 6, question)


def test_what_would_be_trained_is_said_with_the_reasons(made: Path, cli: Command) -> None:
    answer = cli(
        *("finals", "made", "--pick", "knee", "--pick", "under:params=3k", "--top", "2"),
        *("--baselines", "igcv1-l4m2-d5,resnet20-a", "--seeds", "2", "--dtype", "float32", "--dry-run"),
    )
    assert (answer.status, answer.out) == (0, "")
    knee = load_study(made).pick("knee").trial
    for words in ("2 seeds each", "all 20,000 training images", f"trial {knee} ", "knee", "proxy rank 1", "resnet20-a"):
        assert words in answer.err
    assert not (made / FINALS_FILE).exists()
    assert not (made / FINALS_FOLDER).exists()


def test_the_literature_is_what_is_within_the_budget(made: Path, cli: Command) -> None:
    refused(cli("finals", "made", "--dry-run", "--json"), 2, "--dry-run has none")
    refused(cli("front", "made", "--finals", "--top", "3"), 2, "--json or --markdown alone")
    refused(cli("finals", "made", "--baselines", "literature", "--dry-run"), 2, "no network of literature")


WRONG = [
    ("finals nosuch", 4, "unknown study"),
    ("finals made --pick best", 2, "use front, knee"),
    ("finals made --pick under:params=1", 4, "the nearest is"),
    ("finals made --pick trial:99", 4, "no trial 99"),
    ("finals made --baselines nosuch", 2, "nosuch"),
    ("finals made --baselines igcv3-d-imagenet", 2, "3 x 224 x 224"),
    ("finals made --seeds 0", 2, "--seeds"),
    ("finals made --top 0", 2, "--top"),
    ("finals made --preset big", 2, "--preset"),
    ("finals made --recipe foo=1", 2, "foo: unknown key"),
    ("finals made --recipe cutout", 2, "KEY=VALUE"),
    ("finals made --device tpu", 2, "unknown device"),
    ("front made --finals --csv", 2, "--json or --markdown"),
    ("train made:0 --dataset shapes --recipe mixup=-1", 2, "mixup"),
    ("train made:0 --dataset shapes --validate 20000", 2, "hold"),
]


@pytest.mark.parametrize(("words", "status", "said"), WRONG, ids=[words for words, _, _ in WRONG])
def test_wrong_input_is_one_line(words: str, status: int, said: str, made: Path, cli: Command) -> None:
    refused(cli(*words.split(), *(["--dtype", "float32"] if words.startswith("finals") else [])), status, said)


def test_a_second_process_is_refused(made: Path, cli: Command) -> None:
    lock = StudyLock(made / FINALS_FOLDER)
    try:
        answer = cli("finals", "made", "--pick", "knee", "--dtype", "float32")
    finally:
        lock.release()
    assert answer.status == 4
    assert "finals of made are being trained by pid" in answer.err


def test_finals_are_printed_and_on_the_page(made: Path, cli: Command) -> None:
    assert "has no finals yet" in cli("front", "made", "--finals").err
    log = FinalsLog(made)
    for record in (final(0.2, name="resnet20-a"), final(0.24, seed=1, name="resnet20-a"), final(None, side=12)):
        log.add(record.model_copy(update={"dataset": "cifar10"}))
    text = cli("front", "made", "--finals").text
    assert "* resnet20-a 78.00 ± 25.41 % 2" in text
    assert "91.25" in text  # printed: He et al., 8.75 % error
    assert "failed: diverged" in text
    (group,) = json.loads(cli("front", "made", "--finals", "--json").out)
    assert [network["test_errors"] for network in group["networks"]] == [[0.2, 0.24], []]
    assert "| * | resnet20-a | 78.00 ± 25.41 % | 2 |" in cli("front", "made", "--finals", "--markdown").text
    assert cli("dashboard", "made", "-o", "page.html").status == 0
    assert "78.00 ± 25.41" in Path("page.html").read_text()


def test_damaged_finals_are_refused(made: Path, cli: Command) -> None:
    (made / FINALS_FILE).write_text("{}\n")
    refused(cli("front", "made", "--finals"), 4, f"{FINALS_FILE} line 1")
