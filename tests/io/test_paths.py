"""A path is a path: any bytes but NUL, however it is written, with `~` wherever one is taken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import igc_nas
from igc_nas.engine.database import DATABASE_FILE, default_url, parse_url, stored_study
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import replace_latencies
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.io.files import decoded, user_folder
from igc_nas.study.study import load_study
from tests.support.commands import Command
from tests.support.searches import evaluate, latency, spec
from tests.support.searches import searched as made_study
from tests.support.shares import examples, some

NAMES = [
    "runs?a", "runs?b", "feature%2Fabc", "a%20b", "100%", "a#b", "a{b}", "a b", "a\u00a0b", "\u7814\u7a76\u3000\u7528",
    "a\u202fb", "a\nb", "a\tb", "\udcff", "caf\udce9", "x" * 200, ":memory:", "file:x", "a&b=c", "~", "-a", "'\"`$a",
    "\U0001f600", ".x",
]  # fmt: skip
PART = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40
) | st.binary(min_size=1, max_size=60).map(os.fsdecode)


def possible(name: str) -> bool:
    return name not in (".", "..") and not {"/", "\0"} & set(name) and len(os.fsencode(name)) <= 200


def searched(folder: Path, trials: int = 2) -> None:
    """A search of invented numbers; it is read back from each of its files, and continued."""
    question = spec(sampler="random")
    list(search(question, Run(folder, trials=trials), evaluate=evaluate))
    assert {path.name for path in folder.iterdir()} >= {"study.toml", "trials.jsonl", DATABASE_FILE}
    study = load_study(folder)
    assert len(study.candidates) == trials
    assert stored_study(default_url(folder), "stub").trials == study.trials
    replace_latencies(folder, {0: latency(0.123)})
    assert len(list(search(question, Run(folder, trials=trials + 1), evaluate=evaluate))) == 1


@pytest.mark.parametrize("name", [*NAMES[:3], NAMES[6], NAMES[9], *NAMES[11:16]], ids=ascii)
def test_a_search_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    searched(tmp_path / name / "st")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.faults
@examples(300)
@given(PART.filter(possible))
def test_a_search_in_a_folder_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    searched(tmp_path_factory.mktemp("any") / name / "st")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_search_by_a_relative_path_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    searched(Path("st", name))


def test_an_address_of_a_file_is_read_as_sqlalchemy_does(tmp_path: Path) -> None:
    assert parse_url("sqlite:///a%20b/x.db").database == "a b/x.db"
    assert parse_url("sqlite:///~/x.db").database == str(Path.home() / "x.db")
    with pytest.raises(UsageError, match="%3F"):
        parse_url("sqlite:///runs?a/x.db")


def test_a_kept_latency_reaches_a_database_elsewhere(tmp_path: Path) -> None:
    question, storage = spec(sampler="random"), f"sqlite:///{tmp_path}/elsewhere.db"
    run = Run(tmp_path / "stub", trials=3, storage=storage)
    list(search(question, run, evaluate=evaluate))
    replace_latencies(run.folder, {0: latency(0.123)})
    assert len(list(search(question, Run(run.folder, trials=4, storage=storage), evaluate=evaluate))) == 1
    stored = stored_study(parse_url(storage), "stub")
    assert stored.trials == load_study(run.folder).trials
    assert stored.trials[0].candidate is not None
    assert stored.trials[0].candidate.latency.normalised_ms == 0.123


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study at ./studies/mine of the working folder, whose parent is a home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = made_study(tmp_path / "work" / "studies" / "mine", 3, spec(sampler="random"))
    monkeypatch.chdir(tmp_path / "work")
    return folder


WRITTEN = [
    ("work", "mine"), ("work/studies", "mine/"), ("work/studies", "./mine"), ("work/studies/mine", "."),
    ("work/studies/mine", "./"), ("work/studies/mine", "../mine"), ("work", "~/work/studies/mine"), ("", "{}"),
    ("work/studies", "mine"), ("work/studies", "../../work/./studies/mine"), ("work", "studies/mine/study.toml"),
    ("work/studies/mine", "study.toml"),
]  # fmt: skip


@pytest.mark.parametrize(("inside", "text"), WRITTEN)
def test_a_study_is_a_folder_however_it_is_written(inside: str, text: str, study: Path, cli: Command) -> None:
    os.chdir(study.parents[2] / inside)
    text = text.format(study)
    wanted = load_study(study).trials
    assert load_study(text).trials == wanted
    assert igc_nas.load_architecture(f"{text}:1") == wanted[1].arch
    for command in ("front", "status"):
        answer = cli(command, text, "--json")
        assert answer.status == 0, answer.err
    assert cli("show", f"{text}:1").status == 0


def test_a_folder_of_studies_is_none_and_names_those_inside(study: Path) -> None:
    with pytest.raises(StudyError, match=r"(?s)it has no study\.toml.*there are mine in it"):
        load_study("./studies")


def test_a_tilde_is_expanded_in_flags_the_environment_and_python(
    study: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = study.parents[2]
    assert cli("front", "mine", "--studies-dir=~/work/studies").status == 0
    assert cli("export", "mine", "--out=~/a.toml").status == 0
    assert igc_nas.load_architecture("~/a.toml") == igc_nas.load_architecture(home / "a.toml")
    assert igc_nas.dashboard("mine", out="~/page.html") == home / "page.html"
    monkeypatch.setenv("IGC_NAS_DATA", "~/data")
    assert user_folder("IGC_NAS_DATA") == home / "data"
    assert "is not in " + str(home / "data") in cli("search", "--dataset", "cifar10").err.replace("\n", "")
    assert cli("search", "--dataset", "cifar10", "--data-dir=~/other").err.count(str(home / "other")) == 1
    list(search(spec(sampler="random", name="s2"), Run(Path("~/s2"), trials=1), evaluate=evaluate))
    assert (home / "s2" / DATABASE_FILE).is_file()
    assert not list(Path().rglob("~*"))


def test_a_user_without_a_home_has_a_cache_among_the_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("IGC_NAS_CACHE", raising=False)

    def no_account(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("pwd.getpwuid", no_account)
    assert user_folder("IGC_NAS_CACHE").name == f"igc-nas-{os.getuid()}"
    assert user_folder("IGC_NAS_CACHE").is_absolute()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_text_file_of_any_editor(encoding: str, ends: str, tmp_path: Path) -> None:
    arch = igc_nas.load_architecture("igcv1-l8m2-d8")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    data = (mark + "# caf\u00e9\n" + arch.to_toml()).replace("\n", ends).encode(encoding)
    (tmp_path / "a.toml").write_bytes(data)
    assert igc_nas.load_architecture(tmp_path / "a.toml") == arch
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        decoded(b"caf\xe9", "a.toml")


# Processes without streams, and scripts without a guard.


def typed(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line of a shell, in which `igc` is igc-nas."""
    line = f'igc() {{ "{sys.executable}" -m igc_nas "$@"; }}; {line}'
    environment = os.environ | {"PYTHONPATH": str(Path(igc_nas.__file__).parents[1])}
    return subprocess.run(
        ["/bin/bash", "-c", line], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("igc front mine >&-", 0),
        ("igc front mine <&- >&- 2>&-", 0),
        ("igc front nothing 2>&-", 4),
        ("igc front mine | true; exit ${PIPESTATUS[0]}", 141),
        ("PYTHONIOENCODING=ascii igc show caf\u00e9.toml", 0),
    ],
)
def test_streams_that_are_closed_or_cannot_say_it(shell: str, status: int, study: Path) -> None:
    (Path() / "caf\u00e9.toml").write_text(igc_nas.load_architecture("igcv1-l8m2-d8").to_toml())
    answer = typed(shell, cwd=Path())
    assert answer.returncode == status, answer.stderr
    assert "internal error" not in answer.stderr
    assert "Traceback" not in answer.stderr


SCRIPT = """
import igc_nas
from pathlib import Path
from igc_nas.errors import IgcNasError
from tests.support.stubs import stub as of_a_module
from tests.support.searches import spec
def own(spec, slot):
    return of_a_module(spec, slot)
print(len(list(igc_nas.search(spec(sampler="random"), igc_nas.Run(Path("st"), trials=2), evaluator={}))))
"""


@pytest.mark.parametrize("evaluator", some(["of_a_module", "own"], "own"))
def test_a_script_without_a_guard(evaluator: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(evaluator))
    answer = typed(f'"{sys.executable}" script.py', cwd=tmp_path)
    if evaluator == "of_a_module":  # workers need nothing of the script
        assert (answer.returncode, answer.stdout.split()) == (0, ["2"]), answer.stderr
    else:
        assert answer.returncode == 1
        assert 'if __name__ == "__main__":' in answer.stderr
        assert "died" not in answer.stderr


def test_a_script_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format("of_a_module"))
    answer = typed(f'"{sys.executable}" - < script.py', cwd=tmp_path)
    assert (answer.returncode, answer.stdout.split()) == (0, ["2"]), answer.stderr
