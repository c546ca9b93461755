"""What an executor knows of an evaluator: how long a job has been worked on, waiting left out."""

import time

import pytest

from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import READY, JobTimer, TrialFailed, Waiting, WorkerHandle
from tests.support.searches import spec

JOB = Job(3, spec().search_space.smallest("params"), 0)


def test_a_job_s_time_begins_when_the_evaluator_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    desk = WorkerHandle()
    assert desk.left_s(5.0) is None
    desk.begin(JOB)
    now = 200.0
    assert desk.left_s(5.0) is None
    desk.hear(READY)
    now = 203.0
    assert desk.left_s(5.0) == 2.0
    assert desk.left_s(None) is None
    now = 300.0
    assert desk.left_s(5.0) == 0.0


def test_what_an_evaluator_waits_for_others_is_not_its_job_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    desk = WorkerHandle(ready=True)
    desk.begin(JOB)
    now = 101.0
    desk.hear(Waiting(3))
    now = 200.0
    assert desk.left_s(5.0) is None
    desk.hear(Waiting(3, 99.0))
    now = 202.0
    assert desk.left_s(5.0) == 2.0
    assert desk.clock == JobTimer(100.0, 99.0, False)


def test_a_job_that_takes_too_long_has_failed_where_it_was() -> None:
    desk = WorkerHandle(ready=True)
    desk.begin(JOB)
    desk.hear(Progress(3, "training"))
    failed = desk.too_long(90)
    assert (failed.number, failed.failure.kind, failed.failure.where) == (3, "timeout", "training")
    assert failed.reason == "it took longer than 1 min 30 s (--trial-timeout)"
    desk.hear(TrialFailed(3, "any"))
    assert desk.job is None
