"""A table of times is a cache: kept in a file, shared, and as good as none where it is of another owner or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igc_nas.nn.lowering import timing_cache as module
from igc_nas.nn.lowering.timing_cache import Times, TimingCache, cache_dir, timing_cache_for

OWNER = "deployment; a device"
TIMES = {"conv b1": {"conv": 0.5, "matmul": 0.25}, "compose é": {"both": 1e-5}, "slow": {"conv": 1e9}}
SHARED = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def refuse() -> Times:
    raise AssertionError("this is known")


def giving(times: Times) -> Callable[[], Times]:
    return lambda: dict(times)


def filled(path: Path, times: dict[str, Times] = TIMES, owner: str = OWNER) -> TimingCache:
    table = TimingCache(path, owner)
    for key, found in times.items():
        table.get(key, found, giving(found))
    table.save()
    return table


def read(path: Path, owner: str = OWNER) -> dict[str, Times]:
    """What a table finds; it can be written to whatever it found."""
    table = TimingCache(path, owner)
    found = dict(table.times)
    table.get("new", ["one"], giving({"one": 1.0}))
    table.save()
    return found


# Kept, and measured once.


def test_times_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there.json"
    filled(path)
    again = TimingCache(path, OWNER)
    assert again.times == TIMES
    for key, times in TIMES.items():
        assert again.get(key, times, refuse) == times


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.floats(1e-9, 1e12), min_size=1)))
@SHARED
def test_any_times_are_read_back(tmp_path: Path, times: dict[str, Times]) -> None:
    path = tmp_path / "times.json"
    path.unlink(missing_ok=True)
    filled(path, times)
    assert TimingCache(path, OWNER).times == times


def test_what_is_known_is_not_measured_again() -> None:
    table = TimingCache()
    assert table.get("key", ["a", "b"], giving({"a": 1.0, "b": 2.0})) == {"a": 1.0, "b": 2.0}
    assert table.get("key", ("b", "a"), refuse) == {"a": 1.0, "b": 2.0}
    table.save()


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "c"], []])
def test_other_alternatives_are_measured_again(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "times.json"
    filled(path, {"key": {"a": 1.0, "b": 2.0}, "other": {"a": 3.0}})
    table, new = TimingCache(path, OWNER), dict.fromkeys(names, 4.0)
    assert table.get("key", names, giving(new)) == new
    table.save()
    assert TimingCache(path, OWNER).times == {"other": {"a": 3.0}} | ({"key": new} if new else {})


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    TimingCache(path, OWNER).save()
    assert not path.exists()
    table = filled(path)
    path.unlink()
    table.save()
    assert not path.exists()


def test_two_tables_of_one_file_keep_what_either_found(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    first, second = TimingCache(path, OWNER), TimingCache(path, OWNER)
    first.get("one", ["a"], giving({"a": 1.0}))
    second.get("two", ["b"], giving({"b": 2.0}))
    second.get("one", ["a"], giving({"a": 3.0}))
    first.save()
    second.save()
    first.get("three", ["c"], giving({"c": 4.0}))
    first.save()
    assert TimingCache(path, OWNER).times == {"one": {"a": 3.0}, "two": {"b": 2.0}, "three": {"c": 4.0}}


def test_what_another_has_saved_meanwhile_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    first, second = TimingCache(path, OWNER), TimingCache(path, OWNER)
    first.get("own", ["a"], giving({"a": 3.0}))
    second.get("key", ["a", "b"], giving({"a": 1.0, "b": 2.0}))
    second.save()
    assert first.get("key", ["a", "b"], refuse) == {"a": 1.0, "b": 2.0}
    assert first.get("own", ["a"], refuse) == {"a": 3.0}, "what is not saved yet stays"
    first.save()
    assert second.get("own", ["a"], refuse) == {"a": 3.0}
    path.write_text("damaged")
    assert first.get("key", ["a", "b"], refuse) == {"a": 1.0, "b": 2.0}
    assert first.get("new", ["a"], giving({"a": 5.0})) == {"a": 5.0}
    assert first.get("own", ["a"], refuse) == {"a": 3.0}, "a file that is none takes nothing away"


def test_others_are_let_measure_before_each_timing(tmp_path: Path) -> None:
    events: list[str] = []
    table = TimingCache(tmp_path / "times.json", OWNER, lambda: events.append("pause"))

    def measure() -> Times:
        events.append("measure")
        return {"a": 1.0}

    for key in ("one", "one", "two"):
        table.get(key, ["a"], measure)
    assert events == ["pause", "measure"] * 2


def test_a_measurement_that_fails_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    table = filled(path)
    with pytest.raises(AssertionError):
        table.get("conv b1", ["another"], refuse)
    assert table.times == TIMES


# Another owner's, or damaged.


def test_a_table_of_another_owner_is_empty_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    filled(path)
    assert read(path, "another") == {}
    assert TimingCache(path, OWNER).times == {}
    assert TimingCache(path, "another").times == {"new": {"one": 1.0}}


def test_a_file_cut_off_anywhere_is_none(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    filled(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read(path) == {}
        assert TimingCache(path, OWNER).times == {"new": {"one": 1.0}}


@given(st.binary(max_size=60) | st.text().map(str.encode))
@SHARED
def test_bytes_that_are_no_table_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(data)
    assert read(path) == {}


@given(st.data())
@SHARED
def test_a_table_with_a_changed_byte_holds_times_or_nothing(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "times.json"
    path.unlink(missing_ok=True)
    filled(path)
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    for times in read(path).values():
        assert times
        assert all(isinstance(ms, float) and 0 < ms < math.inf for ms in times.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
@SHARED
def test_only_valid_times_are_taken(tmp_path: Path, anything: Any, others: Any) -> None:
    path = tmp_path / "times.json"
    for data in (anything, {"owner": OWNER, "times": anything}, {"owner": OWNER, "times": {"x": anything} | TIMES}):
        path.write_text(json.dumps(data))
        found = read(path)
        assert all(isinstance(ms, float) and 0 < ms < math.inf for times in found.values() for ms in times.values())
    assert {key: times for key, times in found.items() if key in TIMES} == TIMES
    path.write_text(json.dumps({"owner": others, "times": TIMES}))
    assert read(path) == {}


@pytest.mark.parametrize(
    "times",
    ['"fast"', "[0.1]", "{}", "null", '{"a": "0.1"}', '{"a": true}', '{"a": null}', '{"a": [0.1]}']
    + [f'{{"b": 0.1, "a": {value}}}' for value in ("NaN", "Infinity", "-Infinity", "-0.1", "0.0", "1e999", "2")],
)
def test_an_entry_that_is_no_times_is_left_out(tmp_path: Path, times: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(f'{{"owner": "{OWNER}", "times": {{"bad": {times}, "good": {{"a": 0.1}}}}}}')
    table = TimingCache(path, OWNER)
    assert table.times == {"good": {"a": 0.1}}
    assert table.get("bad", ["a", "b"], giving({"a": 1.0, "b": 2.0})) == {"a": 1.0, "b": 2.0}


def text_of(times: str) -> str:
    return f'{{"owner": "{OWNER}", "times": {{"x": {times}}}}}'


STRANGE = {
    "open lists": "[" * 200_000,
    "open objects": '{"owner": ' * 200_000,
    "a deep entry": text_of("[" * 100_000 + "]" * 100_000),
    "a long number": text_of(f'{{"a": {"9" * 10_000}}}'),
    "two values": text_of('{"a": 0.1}') + " {}",
    "a mark": "\ufeff" + text_of('{"a": 0.1}'),
    "no owner": '{"times": {"x": {"a": 0.1}}}',
    "no times": f'{{"owner": "{OWNER}"}}',
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_a_strange_file_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text, encoding="utf-8")
    assert read(path) == {}
    assert TimingCache(path, OWNER).times == {"new": {"one": 1.0}}


# A cache that cannot be written.


def unwritable(tmp_path: Path) -> dict[str, Path]:
    file, folder = tmp_path / "file", tmp_path / "times.json"
    file.write_text("")
    folder.mkdir()
    return {"below a file": file / "times.json", "deep below a file": file / "a" / "times.json", "a folder": folder}


def kept_in_memory(path: Path) -> None:
    table = TimingCache(path, OWNER)
    assert table.times == {}
    table.get("key", ["a"], giving({"a": 1.0}))
    table.save()
    table.save()
    assert table.get("key", ["a"], refuse) == {"a": 1.0}


@pytest.mark.parametrize("where", ["below a file", "deep below a file"])
def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, where: str) -> None:
    kept_in_memory(unwritable(tmp_path)[where])


def test_a_folder_in_place_of_the_file_is_no_error(tmp_path: Path) -> None:
    kept_in_memory(unwritable(tmp_path)["a folder"])


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for who is not root; the same for a full disk."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("igc_nas.io.files._replace", full)
    kept_in_memory(tmp_path / "times.json")


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    table = filled(blocked / "times.json")
    blocked.unlink()
    table.save()
    assert TimingCache(blocked / "times.json", OWNER).times == TIMES


# Whose file it is.


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    table = timing_cache_for("a device", 1, "training")
    assert table.path is not None
    assert table.path.parent == tmp_path / "timings"
    for unset in (lambda: monkeypatch.setenv("IGC_NAS_CACHE", ""), lambda: monkeypatch.delenv("IGC_NAS_CACHE")):
        unset()
        assert cache_dir().name == "igc-nas"


def test_each_device_thread_count_purpose_and_version_has_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))

    def tables() -> list[TimingCache]:
        return [timing_cache_for(*of) for of in (("a", 1, "x"), ("b", 1, "x"), ("a", 2, "x"), ("a", 1, "y"))]

    found = tables()
    monkeypatch.setattr(module, "__version__", "0.0.0")
    found += tables()
    monkeypatch.setattr(module.torch, "__version__", "0.0.0")
    found += tables()
    assert len({table.path for table in found}) == len({table.owner for table in found}) == 12
    assert timing_cache_for("a", 1, "x").path == found[8].path


def test_times_of_another_version_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the file has the name: its owner is written in it."""
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    old = timing_cache_for("a", 1, "x")
    old.get("key", ["a"], giving({"a": 1.0}))
    old.save()
    assert timing_cache_for("a", 1, "x").times == {"key": {"a": 1.0}}
    monkeypatch.setattr(module, "__version__", "0.0.0")
    new = timing_cache_for("a", 1, "x")
    assert old.path is not None
    assert new.path is not None
    old.path.rename(new.path)
    assert timing_cache_for("a", 1, "x").times == {}
