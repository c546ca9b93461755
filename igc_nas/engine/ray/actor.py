"""The evaluator's side of a Ray cluster: an actor on a node, and whether that node fits the study.

A node fits if it has the coordinator's versions of igc-nas and torch, the study's dataset (in `$IGC_NAS_DATA` of that
node, with the same hash), and the device that the study's latencies are of.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igc_nas._version import __version__
from igc_nas.data.datasets import relocate
from igc_nas.engine.executor import Evaluating, MakeEvaluator, Request, WorkerSlot
from igc_nas.engine.worker import kill_descendants, serve
from igc_nas.errors import StudyError
from igc_nas.study.lock import holder_of
from igc_nas.study.process import Process
from igc_nas.study.spec import StudySpec

EVALUATOR_ENDED = 87
"""Exit status of an actor whose evaluator thread has ended by itself."""


@dataclass(frozen=True)
class ActorConfig:
    """The configuration of an actor: plain data, which other versions of igc-nas can read as well."""

    spec: dict[str, Any]
    versions: dict[str, str]
    run: str
    """An identifier of this run of the search."""
    index: int
    count: int
    """The actor is number `index` (from 0) of `count`."""
    device: str
    threads: int
    folder: str | None
    """The study's folder on the coordinator's machine."""
    coordinator: Process
    deterministic: bool = False


class QueuePair:
    """Two queues that work as one end of a pipe (see `igc_nas.engine.worker.Channel`)."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, message: Any, /) -> None:
        """Send a message to the coordinator."""
        self.messages.put(message)

    def recv(self) -> Any:
        """Wait for the coordinator's next request."""
        return self.requests.get()


class Actor:
    """An evaluator on a node, in its own thread. Ray runs the calls of one concurrency group one after another.

    Every call returns soon: `messages` after at most `wait_s` seconds.
    """

    def __init__(self, exit_process: Callable[[int], object] = os._exit) -> None:
        self.channel = QueuePair()
        self._exit = exit_process
        self._lock_folder: Path | None = None

    def start(self, config: ActorConfig, make: MakeEvaluator) -> None:
        """Make the evaluator in its thread; its first message is `READY` or the error."""
        self._lock_folder = Path(tempfile.gettempdir()) / f"igc-nas-locks-{config.run}"
        threading.Thread(target=self._serve, args=(config, make, self._lock_folder), daemon=True).start()

    def _serve(self, config: ActorConfig, make: MakeEvaluator, lock_folder: Path) -> None:
        def made(spec: StudySpec) -> Evaluating:
            return make(spec, slot_here(spec, config, lock_folder))

        try:
            serve(self.channel, config.spec, made)
        finally:
            self.channel.send(None)

    def request(self, request: Request) -> None:
        """Pass a request to the evaluator."""
        self.channel.requests.put(request)

    def messages(self, wait_s: float) -> list[Any]:
        """The evaluator's messages since the last call, waiting for the first one."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self.channel.messages.get(timeout=wait_s))
            while True:
                found.append(self.channel.messages.get_nowait())
        if found == [None]:
            self._exit(EVALUATOR_ENDED)
        if None in found:  # the messages before it are delivered first
            found.remove(None)
            self.channel.send(None)
        return found

    def stop(self, clear: bool) -> None:
        """Exit, and kill what was started here; with `clear`, remove the files of this run from the node."""
        kill_descendants(os.getpid())
        if clear and self._lock_folder is not None:
            shutil.rmtree(self._lock_folder, ignore_errors=True)  # others may still use it: the last one removes it
        self._exit(0)


def versions_here() -> dict[str, str]:
    """The versions that every node must have. Builds of one version (`+cpu`, `+cu130`) count as equal."""
    return {"igc-nas": __version__, "torch": importlib.metadata.version("torch").split("+")[0]}


def slot_here(spec: StudySpec, config: ActorConfig, lock_folder: Path) -> WorkerSlot:
    """The slot of an actor on this node. Raises `StudyError` or `DataError` if the node does not fit."""
    for name, here in versions_here().items():
        if here != config.versions.get(name):
            raise StudyError(
                f"{name} is {here} there; the search runs with {config.versions.get(name)}",
                "install the same versions on every node",
            )
    info = relocate(spec.dataset, spec.dataset_sha256)
    if (info.label, info.sha256) != (spec.dataset, spec.dataset_sha256):
        raise StudyError(
            f"the dataset is {info.label} there; the study is about {spec.dataset}",
            "put the same files on every node, in its IGC_NAS_DATA",
        )
    lock_folder = lock_folder / (config.device + os.environ.get("CUDA_VISIBLE_DEVICES", "")).replace(":", "").replace(
        "/", ""
    )
    lock_folder.mkdir(parents=True, exist_ok=True)
    folder = _same_folder(config)
    return WorkerSlot(
        info,
        config.device,
        config.threads,
        lock_folder,
        config.index,
        config.count,
        folder,
        deterministic=config.deterministic,
    )


def _same_folder(config: ActorConfig) -> Path | None:
    """The study's folder if this node sees the coordinator's: the coordinator must hold the lock of that folder."""
    holder = holder_of(Path(config.folder)) if config.folder else None
    if config.folder is None or holder is None:
        return None
    found, expected = holder.process, config.coordinator
    same = (found.host, found.boot, found.pid) == (expected.host, expected.boot, expected.pid)
    return Path(config.folder) if same else None
