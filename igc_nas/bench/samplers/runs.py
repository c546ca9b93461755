"""Runs replays in parallel processes, and records them in a file from which the next run continues."""

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
from typing import Annotated

from pydantic import AliasChoices, Field, TypeAdapter

from igc_nas.bench.samplers.problems import Problem
from igc_nas.bench.samplers.replay import Replay, replay
from igc_nas.errors import UsageError
from igc_nas.io.files import MOST_RECORDS, append_line, read_bytes

DIGITS = 8


@dataclass(frozen=True)
class Task:
    """A replay to run. `problem` is the problem's fingerprint; for the rest see `replay`."""

    problem: str
    sampler: str
    seed: int
    evaluations: int
    prune_below: Annotated[float, Field(validation_alias=AliasChoices("prune_below", "stop"))] = 0.0  # `stop`: of 0.1
    compute: float = 0.0
    time_s: float = 0.0


@dataclass(frozen=True)
class RunRecord:
    """A line of the file: the problem's name, the task, its result."""

    name: str
    task: Task
    replay: Replay


_RECORD = TypeAdapter(RunRecord)
BEGINNING = b'{"name":'


def run_tasks(
    problems: Sequence[Problem],
    tasks: Sequence[Task],
    workers: int = 1,
    file: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Task, Replay]:
    """The replay of each task, read from `file` if it is recorded there; others are run and appended to it.

    The file records the problem, but not the version of the sampler: use another file after a sampler has changed.
    Raises `UsageError` for a file that is not one of replays.
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
    return f"{task.sampler} seed {task.seed}" + (" pruning" if task.prune_below else " by price" if task.time_s else "")


def _done(problems: Sequence[Problem], tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Replay]]:
    """Each task with its result, as they finish; with several workers in processes of one thread each."""
    if min(workers, len(tasks)) < 2:
        _set_problems(problems)
        yield from map(_run, tasks)
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # what a spawned process finds when it imports numpy
    try:
        pool = get_context("spawn").Pool(min(workers, len(tasks)), _start_worker, (tuple(problems),))
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    with pool:  # leaving it ends the processes
        yield from pool.imap_unordered(_run, tasks)


_problems: dict[str, Problem] = {}
"""By fingerprint, in each process."""


def _start_worker(problems: Iterable[Problem]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the pool
    _set_problems(problems)


def _set_problems(problems: Iterable[Problem]) -> None:
    _problems.clear()
    _problems.update({problem.fingerprint: problem for problem in problems})


def _run(task: Task) -> tuple[Task, Replay]:
    found = replay(
        _problems[task.problem],
        task.sampler,
        task.seed,
        task.evaluations,
        prune_below=task.prune_below,
        compute=task.compute,
        time_s=task.time_s,
    )
    return task, dataclasses.replace(found, volumes=tuple(round(volume, DIGITS) for volume in found.volumes))


# The file: one line of JSON for each replay.


def _append(file: Path, name: str, task: Task, result: Replay) -> None:
    append_line(file, json.dumps(dataclasses.asdict(RunRecord(name, task, result)), separators=(",", ":")))


def _read(file: Path) -> dict[Task, Replay]:
    """The recorded replays. An incomplete last line (the run was killed while writing it) is removed from the file."""
    if not file.exists():
        return {}
    *lines, rest = read_bytes(file, MOST_RECORDS).split(b"\n")
    found = dict(_parsed(line, f"{file.name} line {number}") for number, line in enumerate(lines, start=1))
    if not (found or BEGINNING.startswith(rest[: len(BEGINNING)])):
        raise UsageError(f"{file.name} holds no runs of bench sampler", "name another file with -o")
    if rest:  # not before its other lines have been read: it might be any other file of the user
        try:
            found |= [_parsed(rest, file.name)]  # whole, but for the end that an editor took
        except UsageError:
            with file.open("r+b") as out:
                out.truncate(file.stat().st_size - len(rest))
    return found


def _parsed(line: bytes, where: str) -> tuple[Task, Replay]:
    try:
        found = _RECORD.validate_json(line, strict=True)
        if not all(map(math.isfinite, (*found.replay.volumes, *found.replay.compute, *found.replay.seconds))):
            raise ValueError
    except ValueError:  # pydantic's ValidationError is one
        raise UsageError(f"{where} is not a run of bench sampler", "name another file with -o") from None
    return found.task, found.replay
