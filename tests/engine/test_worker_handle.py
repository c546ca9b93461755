"""The state of an evaluator that its executor tracks: the time spent on a job, without waiting."""

from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import READY, JobTimer, TrialFailed, Waiting, WorkerHandle
from tests.support.searches import spec

JOB = Job(3, spec().search_space.smallest("params"), 0)


def test_the_time_of_a_job_begins_when_the_evaluator_is_ready() -> None:
    now = 100.0
    handle = WorkerHandle(now=lambda: now)
    assert handle.left_s(5.0) is None
    handle.assign(JOB)
    now = 200.0
    assert handle.left_s(5.0) is None
    handle.update(READY)
    now = 203.0
    assert handle.left_s(5.0) == 2.0
    assert handle.left_s(None) is None
    now = 300.0
    assert handle.left_s(5.0) == 0.0


def test_the_time_of_a_job_excludes_waiting_for_others() -> None:
    now = 100.0
    handle = WorkerHandle(ready=True, now=lambda: now)
    handle.assign(JOB)
    now = 101.0
    handle.update(Waiting(3))
    now = 200.0
    assert handle.left_s(5.0) is None
    handle.update(Waiting(3, 99.0))
    now = 202.0
    assert handle.left_s(5.0) == 2.0
    assert handle.timer == JobTimer(100.0, 99.0, False)


def test_a_timeout_names_the_step_of_the_job() -> None:
    handle = WorkerHandle(ready=True)
    handle.assign(JOB)
    handle.update(Progress(3, "training"))
    failed = handle.timed_out(90)
    assert (failed.number, failed.failure.kind, failed.failure.where) == (3, "timeout", "training")
    assert failed.reason == "it took longer than 1 min 30 s (--trial-timeout)"
    handle.update(TrialFailed(3, "any"))
    assert handle.job is None
