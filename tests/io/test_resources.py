from pathlib import Path

import pytest

from igc_nas.errors import ConfigError, IgcNasError, StudyError, UsageError
from igc_nas.io.resources import shipped
from igc_nas.space.search_space import find_space, space_names
from igc_nas.study.lookup import load_architecture
from igc_nas.study.names import check_study_name, find_study, study_names
from tests.support.builders import one_line

HOSTILE = [
    "", ".", "..", "...", "/", "//", "\\", "./", "../", "../../etc/passwd", "/etc/passwd", "/dev/null", "a/../../b",
    "..\\..\\windows", "C:\\", "C:/x", "\\\\host\\share", "~", "~root", "~/x", "$HOME", "${HOME}", "%PATH%", "`id`",
    "$(id)", "a;id", "a|b", "a&b", "a>b", "a b", " a", "a ", "\t", "a\nb", "a\rb", "a\x00b", "\x00", "\x1b[31mred",
    "\x1b]0;title\x07", "\x7f", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;",
    "'; DROP TABLE x;--",
    "' OR '1'='1", "{{7*7}}", "%s%n", "{0.__class__}", "-rf", "--help", "-", "_x", ".hidden", "*", "?", "[a]", "a*",
    "con:", "nul.", "a.", "http://x/y", "file:///etc/passwd", "sqlite:///x.db", "\u202eabc", "\u200b", "\uff0e\uff0e",
    "e\u0301", "\U0001f600", "\ud800", "\u0663", "x" * 101, "x" * 5000, "x/" * 3000, "../" * 500 + "etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_hostile_names_are_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as usage:
        check_study_name(name)
    one_line(usage)
    with pytest.raises(StudyError) as study:
        find_study(name, tmp_path / "studies")
    one_line(study)
    for space in (name, f"{name}.toml"):
        with pytest.raises(ConfigError) as config:
            find_space(space)
        one_line(config)
    with pytest.raises(IgcNasError) as anything:
        load_architecture(name, root=tmp_path / "studies")
    one_line(anything)


@pytest.mark.parametrize("name", ["a", "A1", "igc_cifar-cifar10-params2M-s0", "2", "a.b", "a+b", "x" * 100, "a--b"])
def test_valid_names_of_studies(name: str) -> None:
    assert check_study_name(name) == name


def test_a_space_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_space("tiny") == shipped("search_spaces") / "tiny.toml"
    mine = tmp_path / "tiny.toml"
    mine.touch()
    assert find_space(str(mine)) == mine
    assert "tiny" in space_names()


def test_an_unknown_space_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown space 'igc_cifer'") as raised:
        find_space("igc_cifer")
    assert raised.value.hint == "did you mean igc_cifar?"
    with pytest.raises(ConfigError) as raised:
        find_space("zzz")
    assert raised.value.hint == f"there are {', '.join(space_names())}; or a path to a .toml file"


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "study.toml").touch()
    return folder


def test_a_study_by_name_and_by_path(tmp_path: Path) -> None:
    study = make(tmp_path / "studies" / "first")
    assert find_study("first", tmp_path / "studies") == study
    assert find_study(str(study), tmp_path / "elsewhere") == study
    assert {"first"} <= set(study_names(tmp_path / "studies"))
    assert study_names(tmp_path / "none") == study_names(tmp_path / "none at all")


def test_the_users_own_study_comes_before_a_shipped_one(tmp_path: Path) -> None:
    names = study_names(tmp_path / "studies")
    assert find_study(names[0], tmp_path / "studies") == shipped("studies") / names[0]
    own = make(tmp_path / "studies" / names[0])
    assert find_study(names[0], tmp_path / "studies") == own
    assert study_names(tmp_path / "studies") == names


def test_shipped_folders_of_a_checkout_and_of_a_wheel(tmp_path: Path) -> None:
    package = tmp_path / "igc_nas"
    assert shipped("search_spaces", package) == tmp_path / "search_spaces"
    (package / "search_spaces").mkdir(parents=True)
    assert shipped("search_spaces", package) == package / "search_spaces"


def test_an_unknown_study_is_refused_with_the_nearest(tmp_path: Path) -> None:
    make(tmp_path / "tiny-shapes-any-s0")
    with pytest.raises(StudyError) as raised:
        find_study("tiny-shapes-any-s1", tmp_path)
    assert raised.value.hint == "did you mean tiny-shapes-any-s0?"
    (tmp_path / "not-a-study").mkdir()
    with pytest.raises(StudyError, match="unknown study 'not-a-study'"):
        find_study("not-a-study", tmp_path)
    with pytest.raises(StudyError, match=r"it has no study\.toml"):
        find_study(str(tmp_path / "not-a-study"), tmp_path)
