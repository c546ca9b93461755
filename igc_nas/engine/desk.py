"""An evaluator as its executor knows it: whether it is ready, what it works on, and how long that has taken."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from igc_nas.engine.events import Job, Progress
from igc_nas.engine.executor import Failed, Halted, Measured
from igc_nas.engine.worker import READY, Waits
from igc_nas.io.units import format_seconds
from igc_nas.study.records import Failure


@dataclass
class Clock:
    """How long a job has been worked on, without the time in which it waited for others."""

    began: float | None = None
    waited_s: float = 0.0
    waits: bool = False

    def spent_s(self, now: float) -> float:
        """Seconds up to `now`, as far as they are known: those of a wait that has not ended are counted."""
        return 0.0 if self.began is None else now - self.began - self.waited_s

    def hear(self, word: Waits) -> None:
        """Take in that the evaluator waits, or that it does no longer."""
        self.waits = word.waited_s is None
        self.waited_s += word.waited_s or 0.0


@dataclass(kw_only=True)
class Desk:
    """One evaluator, from its executor's side."""

    ready: bool = False
    job: Job | None = None
    doing: str = "starting"
    clock: Clock = field(default_factory=Clock)

    def begin(self, job: Job) -> None:
        """Note a job. Its time begins when the evaluator is ready."""
        self.job, self.doing, self.clock = job, "starting", Clock(time.monotonic() if self.ready else None)

    def hear(self, word: object) -> None:
        """Take in what the evaluator says."""
        if word == READY:
            self.ready, self.clock.began = True, time.monotonic()
        elif isinstance(word, Waits):
            self.clock.hear(word)
        elif isinstance(word, Progress):
            self.doing = word.doing
        elif isinstance(word, Measured | Halted | Failed):
            self.job = None

    def left_s(self, limit_s: float | None) -> float | None:
        """Seconds until its job has taken longer than `limit_s`; None: no end is in sight."""
        if limit_s is None or self.job is None or self.clock.began is None or self.clock.waits:
            return None
        return max(0.0, limit_s - self.clock.spent_s(time.monotonic()))

    def too_long(self, limit_s: float) -> Failed:
        """What becomes of its job when that has taken longer than `limit_s`."""
        assert self.job is not None
        reason = f"it took longer than {format_seconds(limit_s)} (--trial-timeout)"
        return Failed(self.job.number, reason, Failure(kind="timeout", where=self.doing))
