"""The evaluator's side on a Ray cluster: an actor on a node, and whether that node fits the study.

A node fits where igc-nas and torch are of the coordinator's versions, the study's dataset is there (in `$IGC_NAS_DATA`
of that node, with the study's hash), and the device is the one that the study's latencies are of.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import queue
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igc_nas._version import __version__
from igc_nas.data.datasets import data_dir, locate
from igc_nas.engine.executor import Evaluating, MakeEvaluator, WorkerSlot
from igc_nas.engine.worker import kill_descendants, serve
from igc_nas.errors import StudyError
from igc_nas.study.lock import holder_of
from igc_nas.study.process import Process
from igc_nas.study.spec import StudySpec

OVER = 87
"""Exit status of an actor whose evaluator has ended by itself."""


@dataclass(frozen=True)
class ActorConfig:
    """What an actor is told when it begins: plain data, which other versions can read, too."""

    spec: dict[str, Any]
    versions: dict[str, str]
    run: str
    """Names this run of the search on every node."""
    place: int
    places: int
    device: str
    threads: int
    folder: str | None
    """The study's, where the coordinator is."""
    coordinator: Process


class QueuePair:
    """Two queues as one end of a pipe."""

    def __init__(self) -> None:
        self.inwards: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outwards: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, word: Any, /) -> None:
        """Say something to the coordinator."""
        self.outwards.put(word)

    def recv(self) -> Any:
        """The coordinator's next word."""
        return self.inwards.get()


class Actor:
    """An evaluator on a node, in a thread of its own. Calls of one concurrency group come one after another.

    Every call returns soon: `words` after `wait_s` at the latest.
    """

    def __init__(self) -> None:
        self._line = QueuePair()
        self._room: Path | None = None

    def begin(self, offer: ActorConfig, make: MakeEvaluator) -> None:
        """Make the evaluator; whether that could be done is its first word."""
        self._room = Path(tempfile.gettempdir()) / f"igc-nas-room-{offer.run}"
        threading.Thread(target=self._live, args=(offer, make, self._room), daemon=True).start()

    def _live(self, offer: ActorConfig, make: MakeEvaluator, room: Path) -> None:
        def made(spec: StudySpec) -> Evaluating:
            return make(spec, slot_here(spec, offer, room))

        try:
            serve(self._line, offer.spec, made)
        finally:
            self._line.send(None)

    def tell(self, word: tuple[str, object]) -> None:
        """Give the evaluator a word of the coordinator's."""
        self._line.inwards.put(word)

    def words(self, wait_s: float) -> list[Any]:
        """What the evaluator has said since the last call, waiting for the first word."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._line.outwards.get(timeout=wait_s))
            while True:
                found.append(self._line.outwards.get_nowait())
        if found == [None]:
            os._exit(OVER)  # the evaluator has left its thread: it will not work any more
        if None in found:
            found.remove(None)
            self._line.send(None)
        return found

    def leave(self, clear: bool) -> None:
        """End, with what was started here; with `clear`, remove what this run has left on the node."""
        kill_descendants(os.getpid())
        if clear and self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)  # the last one to leave removes it for good
        os._exit(0)


def versions_here() -> dict[str, str]:
    """What must be the same on every node. Builds of one version (`+cpu`, `+cu130`) are the same."""
    return {"igc-nas": __version__, "torch": importlib.metadata.version("torch").split("+")[0]}


def slot_here(spec: StudySpec, offer: ActorConfig, room: Path) -> WorkerSlot:
    """The seat that this node has for a study. Raises `StudyError` or `DataError` where the node does not fit."""
    for name, here in versions_here().items():
        if here != offer.versions.get(name):
            raise StudyError(
                f"{name} is {here} there; the search runs with {offer.versions.get(name)}",
                "install the same versions on every node",
            )
    info = locate(spec.dataset.split(" ")[0], data_dir())
    if (info.label, info.sha256) != (spec.dataset, spec.dataset_sha256):
        raise StudyError(
            f"the dataset is {info.label} there; the study is about {spec.dataset}",
            "put the same files on every node, where IGC_NAS_DATA says",
        )
    room = room / (offer.device + os.environ.get("CUDA_VISIBLE_DEVICES", "")).replace(":", "").replace("/", "")
    room.mkdir(parents=True, exist_ok=True)
    folder = _same_folder(offer)
    return WorkerSlot(info, offer.device, offer.threads, room, offer.place, offer.places, folder)


def _same_folder(offer: ActorConfig) -> Path | None:
    """The study's folder, where this node sees the one that the coordinator has: its owner's file says whose it is."""
    owner = holder_of(Path(offer.folder)) if offer.folder else None
    if offer.folder is None or owner is None:
        return None
    there, theirs = owner.process, offer.coordinator
    same = (there.host, there.boot, there.pid) == (theirs.host, theirs.boot, theirs.pid)
    return Path(offer.folder) if same else None
