"""Many replays: over the cores of this machine, kept in a file that the next run goes on from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pydantic import TypeAdapter

from igc_nas.bench.samplers.problems import Problem
from igc_nas.bench.samplers.replay import Replay, replay
from igc_nas.errors import UsageError
from igc_nas.io.files import MOST_RECORDS, read_bytes
from igc_nas.study.spec import SamplerName

DIGITS = 8


@dataclass(frozen=True)
class Task:
    """A replay to be done; `problem` is the fingerprint of one."""

    problem: str
    sampler: SamplerName
    seed: int
    evaluations: int
    stop: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True)
class Line:
    """A line of the file."""

    name: str
    task: Task
    replay: Replay


_LINE = TypeAdapter(Line)
BEGINNING = b'{"name":'


def run_tasks(
    problems: Sequence[Problem],
    tasks: Sequence[Task],
    workers: int = 1,
    file: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Task, Replay]:
    """The replay of each task, from `file` where it is there. Raises `UsageError` for a file of something else.

    A sampler that has changed since gets another file: a file tells problems apart, not versions of a sampler.
    """
    found = _read(file) if file else {}
    left = [task for task in dict.fromkeys(tasks) if task not in found]
    if len(left) < len(tasks):
        say(f"{len(tasks) - len(left)} of {len(tasks)} runs are in {file} already")
    names = {problem.fingerprint: problem.name for problem in problems}
    for done, (task, result) in enumerate(_done(problems, left, workers), start=1):
        found[task] = result
        if file:
            _append(file, names[task.problem], task, result)
        last = max(result.volumes, default=0.0)
        say(f"{done}/{len(left)} {names[task.problem]} {_label(task)}: {last:.4f}")
    return {task: found[task] for task in tasks}


def _label(task: Task) -> str:
    return f"{task.sampler} seed {task.seed}" + (" stopping" if task.stop else "")


def _done(problems: Sequence[Problem], tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Replay]]:
    """Tasks as they are done; with several workers in processes of one thread each."""
    if min(workers, len(tasks)) < 2:
        _adopt(problems)
        yield from map(_run, tasks)
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # what a spawned process finds when it imports numpy
    try:
        pool = get_context("spawn").Pool(min(workers, len(tasks)), _begin, (tuple(problems),))
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    with pool:  # leaving it ends the processes
        yield from pool.imap_unordered(_run, tasks)


_problems: dict[str, Problem] = {}
"""By fingerprint, in each process."""


def _begin(problems: Iterable[Problem]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends the pool
    _adopt(problems)


def _adopt(problems: Iterable[Problem]) -> None:
    _problems.clear()
    _problems.update({problem.fingerprint: problem for problem in problems})


def _run(task: Task) -> tuple[Task, Replay]:
    found = replay(
        _problems[task.problem], task.sampler, task.seed, task.evaluations, stop=task.stop, compute=task.compute
    )
    return task, dataclasses.replace(found, volumes=tuple(round(volume, DIGITS) for volume in found.volumes))


# The file: a line for each replay.


def _append(file: Path, name: str, task: Task, result: Replay) -> None:
    line = dataclasses.asdict(Line(name, task, result))
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, separators=(",", ":")) + "\n")


def _read(file: Path) -> dict[Task, Replay]:
    """What the file holds; a last line that was cut short is cut off."""
    if not file.exists():
        return {}
    *lines, rest = read_bytes(file, MOST_RECORDS).split(b"\n")
    found = dict(_parsed(line, f"{file.name} line {number}") for number, line in enumerate(lines, start=1))
    if not (found or BEGINNING.startswith(rest[: len(BEGINNING)])):
        raise UsageError(f"{file.name} holds no runs of bench sampler", "name another file with -o")
    if rest:  # only now: until its lines are read it may be any file of the user's
        with file.open("r+b") as out:
            out.truncate(file.stat().st_size - len(rest))
    return found


def _parsed(line: bytes, where: str) -> tuple[Task, Replay]:
    try:
        found = _LINE.validate_json(line, strict=True)
        if not all(map(math.isfinite, (*found.replay.volumes, *found.replay.compute))):
            raise ValueError
    except ValueError:  # pydantic's, too
        raise UsageError(f"{where} is no run of bench sampler", "name another file with -o") from None
    return found.task, found.replay
