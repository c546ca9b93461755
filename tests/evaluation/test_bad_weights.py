"""Damaged files of a retraining: it continues, or names the unusable file and the remedy in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from igc_nas.evaluation.retraining import CHECKPOINT_FILE, RESULT_FILE, RUN_FILE
from igc_nas.nn.lowering.pinned_forms import FORMS_FILE
from tests.evaluation.test_retraining import opened, stopped_after
from tests.support.builders import refusal_of
from tests.support.mutations import NO_FILES, as_json, as_toml, damaged, deep, flipped, sizes, soon, spoiled

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three epochs, stopped after two."""
    folder = tmp_path_factory.mktemp("weights") / "begun"
    stopped_after(folder, 2)
    return folder


def continued(begun: Path, folder: Path, name: str, content: bytes | Callable[[Path], None]) -> str | None:
    """Continue the training in `folder` with another content of file `name`: None, or the line of the refusal."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(begun, folder)
    place = folder / name
    place.unlink(missing_ok=True)
    content(place) if callable(content) else place.write_bytes(content)
    before = {path.name for path in folder.iterdir()}
    with soon(20):
        message = refusal_of(lambda: opened(folder).train())
    assert message is None or {path.name for path in folder.iterdir()} == before
    return message


# Checkpoints of any bytes.


def header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def with_header(data: bytes, head: bytes, length: int | None = None) -> bytes:
    """The tensors of `data` behind another header."""
    (old,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", len(head) if length is None else length) + head + data[8 + old :]


def changed_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        head = header(data)
        change(head)
        return with_header(data, json.dumps(head).encode())

    return make


def first(head: dict[str, Any]) -> dict[str, Any]:
    return head[first_name(head)]


def first_name(head: dict[str, Any]) -> str:
    return min(name for name in head if name != "__metadata__")


class Call:
    """A pickle that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


MARKER = Path("ran")
HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "eight bytes": lambda data: data[:8],
    "text": lambda data: b"hello, this is no file of weights at all\n" * 20,
    "zeros": lambda data: bytes(10_000),
    "ones": lambda data: b"\xff" * 10_000,
    "a pickle": lambda data: pickle.dumps(Call(MARKER)),
    "a pickle behind its length": lambda data: struct.pack("<Q", 100) + pickle.dumps(Call(MARKER)).ljust(100),
    "a zip archive": lambda data: b"PK\x03\x04" + data,
    "a NumPy file": lambda data: b"\x93NUMPY\x01\x00" + data,
    "HTML": lambda data: b"<!doctype html><script>alert(1)</script>",
    "a header of no length": lambda data: with_header(data, b"{}", 0),
    "a header beyond the file": lambda data: with_header(data, b"{}", 10**9),
    "a header beyond memory": lambda data: with_header(data, b"{}", 2**64 - 1),
    "a header of nothing": lambda data: with_header(data, b"{}"),
    "a header of null": lambda data: with_header(data, b"null"),
    "a header of a list": lambda data: with_header(data, b"[]"),
    "a header that is cut": lambda data: with_header(data, b'{"done":'),
    "a header that is no text": lambda data: with_header(data, b"\xff\xfe{}"),
    "a deep header": lambda data: with_header(data, b'{"a":' * 50_000),
    "a deep list": lambda data: with_header(data, json.dumps({"a": deep(400)}).encode()),
    "a name twice": lambda data: with_header(data, json.dumps(header(data)).encode()[:-1] + b',"done":{}}'),
    "bytes behind": lambda data: data + b"more",
    "twice": lambda data: data * 2,
    "the end is missing": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "no tensors": changed_header(lambda head: head.clear()),
    "a tensor of another name": changed_header(lambda head: head.__setitem__("evil", head.pop(first_name(head)))),
    "an unknown type": changed_header(lambda head: first(head).__setitem__("dtype", "OBJECT")),
    "a type that is none": changed_header(lambda head: first(head).__setitem__("dtype", None)),
    "a type of other bytes": changed_header(lambda head: first(head).__setitem__("dtype", "F64")),
    "a shape too large": changed_header(lambda head: first(head).__setitem__("shape", [2**40, 2**40])),
    "a negative shape": changed_header(lambda head: first(head).__setitem__("shape", [-1])),
    "a shape of text": changed_header(lambda head: first(head).__setitem__("shape", "8")),
    "a shape of 5000 sides": changed_header(lambda head: first(head).__setitem__("shape", [1] * 5000)),
    "offsets beyond": changed_header(lambda head: first(head).__setitem__("data_offsets", [0, 10**12])),
    "offsets back": changed_header(lambda head: first(head).__setitem__("data_offsets", [8, 0])),
    "offsets below zero": changed_header(lambda head: first(head).__setitem__("data_offsets", [-8, 0])),
    "offsets that overlap": changed_header(lambda head: [v.__setitem__("data_offsets", [0, 8]) for v in head.values()]),
    "no offsets": changed_header(lambda head: first(head).pop("data_offsets")),
    "metadata of numbers": changed_header(lambda head: head.__setitem__("__metadata__", {"a": 1})),
    "long metadata": changed_header(lambda head: head.__setitem__("__metadata__", {"a": "x" * 10**6})),
}  # fmt: skip


def replaced(**tensors: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda held: held | tensors


def each(change: Callable[[Tensor], Tensor], start: str) -> Callable[[Tensors], Tensors]:
    """All tensors whose names begin with `start`, changed."""
    return lambda held: {n: change(t).contiguous() if n.startswith(start) else t for n, t in held.items()}


def less(start: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {n: t for n, t in held.items() if not n.startswith(start)}


TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "no epoch": less("done"),
    "no momentum": less("momentum."),
    "no weights": less("model."),
    "no generator": less("generator"),
    "no average": less("average."),
    "only weights": lambda held: {n: t for n, t in held.items() if n.startswith("model.")},
    "an average of another shape": each(lambda t: t[..., None], "average."),
    "weights of another shape": each(lambda t: t[..., None], "model."),
    "weights without a row": each(lambda t: t[:-1] if t.ndim else t, "model."),
    "momentum of another shape": each(lambda t: t[..., None], "momentum."),
    "momentum of another type": each(torch.Tensor.double, "momentum."),
    "momentum of integers": each(torch.Tensor.long, "momentum."),
    "before the first epoch": replaced(done=torch.tensor(-1)),
    "after the last epoch": replaced(done=torch.tensor(99)),
    "after very many": replaced(done=torch.tensor(2**63 - 1)),
    "an infinite epoch": replaced(done=torch.tensor(float("inf"))),
    "an epoch that is no number": replaced(done=torch.tensor(float("nan"))),
    "a complex epoch": replaced(done=torch.tensor(1j)),
    "several epochs": replaced(done=torch.tensor([1, 2])),
    "no epoch in a tensor": replaced(done=torch.tensor([], dtype=torch.int64)),
    "a short generator": replaced(generator=torch.zeros(10, dtype=torch.uint8)),
    "an empty generator": replaced(generator=torch.zeros(0, dtype=torch.uint8)),
    "a generator of floats": replaced(generator=torch.zeros(5056)),
    "a generator of zeros": lambda held: held | {"generator": torch.zeros_like(held["generator"])},
    "a generator of ones": lambda held: held | {"generator": torch.full_like(held["generator"], 255)},
    "a weight more": replaced(**{"model.evil": torch.zeros(3)}),
    "a weight of a hostile name": replaced(**{"model.\x1b[31m</script>": torch.zeros(3)}),
}  # fmt: skip


def test_there_are_many_kinds_of_damage() -> None:
    assert len(HEADERS) + len(TENSORS) + len(NO_FILES) >= 50


TAKEN = {"long metadata"}
"""Damages that do not change what a training uses."""


@pytest.mark.parametrize("kind", HEADERS)
def test_a_checkpoint_of_other_bytes_is_refused(
    kind: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = HEADERS[kind]((begun / CHECKPOINT_FILE).read_bytes())
    message = continued(begun, tmp_path / "run", CHECKPOINT_FILE, data)
    assert (message is None) == (kind in TAKEN)
    assert message is None or (message.startswith("StudyError ") and CHECKPOINT_FILE in message)
    assert not MARKER.exists()


@pytest.mark.parametrize("kind", TENSORS)
def test_a_checkpoint_of_other_tensors_is_refused(kind: str, begun: Path, tmp_path: Path) -> None:
    held = load((begun / CHECKPOINT_FILE).read_bytes())
    message = continued(begun, tmp_path / "run", CHECKPOINT_FILE, save(TENSORS[kind](held)))
    assert message is not None
    assert message.startswith("StudyError ")
    assert CHECKPOINT_FILE in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(value: float, begun: Path, tmp_path: Path) -> None:
    held = load((begun / CHECKPOINT_FILE).read_bytes())
    spoilt = each(lambda t: torch.full_like(t, value) if t.is_floating_point() else t, "model.")(held)
    message = continued(begun, tmp_path / "run", CHECKPOINT_FILE, save(spoilt))
    assert message is not None
    assert message == "DivergedError the training loss is nan after epoch 3"


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [CHECKPOINT_FILE, RESULT_FILE, RUN_FILE, FORMS_FILE])
def test_a_path_that_is_not_a_file_is_refused(kind: str, name: str, begun: Path, tmp_path: Path) -> None:
    if kind == "a file that nobody may read" and os.geteuid() == 0:
        pytest.skip("root may read any file")
    message = continued(begun, tmp_path / "run", name, NO_FILES[kind])
    if (name, kind) == (FORMS_FILE, "a link to nothing"):
        return  # as if it were not there
    assert message is not None
    assert name in message or "is not empty and holds no training" in message


@sizes(8, 150)
def test_a_damaged_checkpoint_is_refused_or_used(count: int, begun: Path, tmp_path: Path) -> None:
    data = (begun / CHECKPOINT_FILE).read_bytes()

    @settings(max_examples=count)
    @given(damaged(data) | st.integers(0, 2000).map(lambda at: flipped(data, at)))
    def check(content: bytes) -> None:
        continued(begun, tmp_path / "run", CHECKPOINT_FILE, content)

    check()


# The other files.


@sizes(8, 150)
def test_a_damaged_run_file_is_refused_or_means_the_same(count: int, begun: Path, tmp_path: Path) -> None:
    question = tomllib.loads((begun / RUN_FILE).read_text())

    @settings(max_examples=count)
    @given(spoiled(question).map(as_toml) | damaged(as_toml(question)))
    def check(content: bytes) -> None:
        message = continued(begun, tmp_path / "run", RUN_FILE, content)
        assert message is None or message.startswith("StudyError ")

    check()


@sizes(8, 150)
def test_damaged_forms_are_refused_or_used(count: int, begun: Path, tmp_path: Path) -> None:
    forms = json.loads((begun / FORMS_FILE).read_bytes())

    @settings(max_examples=count)
    @given(spoiled(forms).map(as_json) | damaged(as_json(forms)))
    def check(content: bytes) -> None:
        message = continued(begun, tmp_path / "run", FORMS_FILE, content)
        assert message is None or message.startswith("StudyError ")

    check()


@pytest.fixture(scope="module")
def result(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result.json of the training when it has ended."""
    folder = Path(shutil.copytree(begun, tmp_path_factory.mktemp("result") / "run"))
    opened(folder).train()
    found: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text())
    return found


@sizes(80, 1000)
def test_a_damaged_result_is_refused_or_shown(count: int, begun: Path, result: dict[str, Any], tmp_path: Path) -> None:
    run = opened(Path(shutil.copytree(begun, tmp_path / "run")))

    @settings(max_examples=count)
    @given(spoiled(result).map(as_json) | damaged(as_json(result)))
    def check(content: bytes) -> None:
        (tmp_path / "run" / RESULT_FILE).write_bytes(content)
        message = refusal_of(lambda: f"{100 * run.train().test.error:.2f} %")
        assert message is None or f"{RESULT_FILE} is damaged" in message

    check()


@pytest.mark.parametrize("content", [{"test_error": True}, {"test_images": "30"}, {"dataset": 3}, {"weights": [1]}])
def test_a_result_of_another_type_is_refused(
    content: dict[str, Any], begun: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    message = continued(begun, tmp_path / "run", RESULT_FILE, as_json(result | content))
    assert message is not None
    assert "result.json is damaged" in message
    assert continued(begun, tmp_path / "run", RESULT_FILE, as_json(result)) is None
