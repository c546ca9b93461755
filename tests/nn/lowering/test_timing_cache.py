"""A timing cache: a file that processes share, treated as empty if it is damaged or of another owner."""

from __future__ import annotations

import contextlib
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import igc_nas
from igc_nas.io.files import cache_dir
from igc_nas.nn.lowering.timing_cache import VERSIONS, Times, TimingCache, timing_cache_for
from tests.support.shares import examples

OWNER = "deployment; a device"
TIMES = {"conv b1": {"conv": 0.5, "matmul": 0.25}, "compose é": {"both": 1e-5}, "slow": {"conv": 1e9}}
SHARED = examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def refuse() -> Times:
    raise AssertionError("this is known")


def giving(times: Times) -> Callable[[], Times]:
    return lambda: dict(times)


def filled(path: Path, times: dict[str, Times] = TIMES, owner: str = OWNER) -> TimingCache:
    cache = TimingCache(path, owner)
    for key, found in times.items():
        cache.get(key, found, giving(found))
    cache.save()
    return cache


def read(path: Path, owner: str = OWNER) -> dict[str, Times]:
    """The times that a new cache reads; it can be saved whatever the file held."""
    cache = TimingCache(path, owner)
    found = dict(cache.times)
    cache.get("new", ["one"], giving({"one": 1.0}))
    cache.save()
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


def test_known_times_are_not_measured_again() -> None:
    cache = TimingCache()
    assert cache.get("key", ["a", "b"], giving({"a": 1.0, "b": 2.0})) == {"a": 1.0, "b": 2.0}
    assert cache.get("key", ("b", "a"), refuse) == {"a": 1.0, "b": 2.0}
    cache.save()


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "c"], []])
def test_other_alternatives_are_measured_again(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "times.json"
    filled(path, {"key": {"a": 1.0, "b": 2.0}, "other": {"a": 3.0}})
    cache, new = TimingCache(path, OWNER), dict.fromkeys(names, 4.0)
    assert cache.get("key", names, giving(new)) == new
    cache.save()
    assert TimingCache(path, OWNER).times == {"other": {"a": 3.0}} | ({"key": new} if new else {})


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    TimingCache(path, OWNER).save()
    assert not path.exists()
    cache = filled(path)
    path.unlink()
    cache.save()
    assert not path.exists()


def test_two_caches_of_one_file_keep_the_times_of_both(tmp_path: Path) -> None:
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


def test_times_that_another_cache_saved_meanwhile_are_not_measured_again(tmp_path: Path) -> None:
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


def test_pause_is_called_before_each_measurement(tmp_path: Path) -> None:
    events: list[str] = []
    cache = TimingCache(tmp_path / "times.json", OWNER, lambda: events.append("pause"))

    def measure() -> Times:
        events.append("measure")
        return {"a": 1.0}

    for key in ("one", "one", "two"):
        cache.get(key, ["a"], measure)
    assert events == ["pause", "measure"] * 2


def test_a_measurement_that_fails_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    cache = filled(path)
    with pytest.raises(AssertionError):
        cache.get("conv b1", ["another"], refuse)
    assert cache.times == TIMES


# Another owner's, or damaged.


def test_a_cache_of_another_owner_is_empty_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    filled(path)
    assert read(path, "another") == {}
    assert TimingCache(path, OWNER).times == {}
    assert TimingCache(path, "another").times == {"new": {"one": 1.0}}


def test_a_truncated_file_is_treated_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    filled(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read(path) == {}
        assert TimingCache(path, OWNER).times == {"new": {"one": 1.0}}


@given(st.binary(max_size=60) | st.text().map(str.encode))
@SHARED
def test_bytes_that_are_no_cache_are_treated_as_empty(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(data)
    assert read(path) == {}


@given(st.data())
@SHARED
def test_a_cache_with_a_changed_byte_holds_times_or_nothing(tmp_path: Path, data: st.DataObject) -> None:
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
def test_an_invalid_entry_is_left_out(tmp_path: Path, times: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(f'{{"owner": "{OWNER}", "times": {{"bad": {times}, "good": {{"a": 0.1}}}}}}')
    cache = TimingCache(path, OWNER)
    assert cache.times == {"good": {"a": 0.1}}
    assert cache.get("bad", ["a", "b"], giving({"a": 1.0, "b": 2.0})) == {"a": 1.0, "b": 2.0}


def text_of(times: str) -> str:
    return f'{{"owner": "{OWNER}", "times": {{"x": {times}}}}}'


STRANGE = {
    "open lists": "[" * 200_000,
    "open objects": '{"owner": ' * 200_000,
    "a deep entry": text_of("[" * 100_000 + "]" * 100_000),
    "a long number": text_of(f'{{"a": {"9" * 10_000}}}'),
    "two values": text_of('{"a": 0.1}') + " {}",
    "no owner": '{"times": {"x": {"a": 0.1}}}',
    "no times": f'{{"owner": "{OWNER}"}}',
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_a_strange_file_is_treated_as_empty(tmp_path: Path, text: str) -> None:
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
    cache = TimingCache(path, OWNER)
    assert cache.times == {}
    cache.get("key", ["a"], giving({"a": 1.0}))
    cache.save()
    cache.save()
    assert cache.get("key", ["a"], refuse) == {"a": 1.0}


@pytest.mark.parametrize("where", ["below a file", "deep below a file"])
def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, where: str) -> None:
    kept_in_memory(unwritable(tmp_path)[where])


def test_a_folder_in_place_of_the_file_is_no_error(tmp_path: Path) -> None:
    kept_in_memory(unwritable(tmp_path)["a folder"])


def test_a_disk_that_takes_no_more_bytes_is_no_error(tmp_path: Path) -> None:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    try:
        kept_in_memory(tmp_path / "times.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not (tmp_path / "times.json").exists()


@pytest.mark.parametrize("failure", [None, ValueError])
def test_a_cache_is_saved_at_the_end_of_its_context(tmp_path: Path, failure: type[Exception] | None) -> None:
    """Also after an exception: what was measured before it holds."""
    path = tmp_path / "times.json"
    with contextlib.suppress(ValueError), TimingCache(path, OWNER) as cache:
        cache.get("key", ["a"], giving({"a": 1.0}))
        assert not path.exists()
        if failure:
            raise failure
    assert TimingCache(path, OWNER).times == {"key": {"a": 1.0}}


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    cache = filled(blocked / "times.json")
    blocked.unlink()
    cache.save()
    assert TimingCache(blocked / "times.json", OWNER).times == TIMES


# Whose file it is.


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    cache = timing_cache_for("a device", 1, "training")
    assert cache.path is not None
    assert cache.path.parent == tmp_path / "timings"
    for unset in (lambda: monkeypatch.setenv("IGC_NAS_CACHE", ""), lambda: monkeypatch.delenv("IGC_NAS_CACHE")):
        unset()
        assert cache_dir().name == "igc-nas"


def test_each_device_thread_count_purpose_and_version_has_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    found = [
        timing_cache_for(*conditions, versions=versions)
        for versions in (VERSIONS, "torch 2.0.0; igc-nas 0.0.0")
        for conditions in (("a", 1, "x"), ("b", 1, "x"), ("a", 2, "x"), ("a", 1, "y"))
    ]
    assert len({cache.path for cache in found}) == len({cache.owner for cache in found}) == 8
    assert timing_cache_for("a", 1, "x").path == found[0].path


def test_a_file_belongs_to_the_versions_of_torch_and_igc_nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is that of the files on disk: another text would have every shape timed anew."""
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    owner = f"training; AMD EPYC; 2 threads; torch {torch.__version__}; igc-nas {igc_nas.__version__}"
    assert timing_cache_for("AMD EPYC", 2, "training").owner == owner
    old = timing_cache_for("AMD EPYC", 2, "training", versions="torch 2.13.0; igc-nas 0.2.0")
    assert old.path == tmp_path / "timings" / "51d9c9c447b56cf4.json"


def test_times_of_another_version_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its file has the name of ours: the owner stands in the file."""
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path))
    old = timing_cache_for("a", 1, "x")
    old.get("key", ["a"], giving({"a": 1.0}))
    old.save()
    assert timing_cache_for("a", 1, "x").times == {"key": {"a": 1.0}}
    new = timing_cache_for("a", 1, "x", versions="torch 2.0.0; igc-nas 0.0.0")
    assert old.path is not None
    assert new.path is not None
    old.path.rename(new.path)
    assert timing_cache_for("a", 1, "x", versions="torch 2.0.0; igc-nas 0.0.0").times == {}
