"""Errors of CUDA: what is memory, what costs the process, what a form without memory does."""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from igc_nas.data.datasets import locate
from igc_nas.engine.events import Job, Notice
from igc_nas.engine.executor import READY, Request, RunJob
from igc_nas.engine.search import Run, search
from igc_nas.engine.worker import failed, serve, to_igc_error
from igc_nas.errors import GRAPHS, CaptureError, IgcNasError
from igc_nas.evaluation.speed import measure_speed
from igc_nas.evaluation.training import Training
from igc_nas.nn.cuda_timing import WARM_UPS, captured
from igc_nas.nn.device import find_devices
from igc_nas.nn.lowering.network_tuner import step_timer
from igc_nas.nn.timing import NEVER_MS, Race, timed
from igc_nas.study.defaults import new_spec
from igc_nas.study.study import load_study
from tests.gpu.builders import SMALL, recipe_of, training_of
from tests.gpu.test_trial import RECIPE, evaluator_of
from tests.support.commands import Command
from tests.support.fake_cuda import Record, fake_cuda
from tests.support.searches import spec
from tests.support.stubs import falls_back, loses_context


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "memory"),
        ("CUDA error: out of memory", "memory"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory"),
        ("CUDA error: device-side assert triggered", "died"),
        ("CUDA error: unspecified launch failure", "died"),
        ("CUDA driver error: unknown error", "died"),
        ("CUDA driver error: out of memory", "memory"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "died"),
        ("expected scalar type Half but found Float", "error"),
    ],
)
def test_errors_by_kind(words: str, kind: str) -> None:
    assert failed(0, RuntimeError(words), "training").failure.kind == kind


def test_a_lost_context_costs_one_trial(tmp_path: Path) -> None:
    found = list(search(spec(), Run(tmp_path / "s", trials=6), evaluator=loses_context))
    assert len(found) == 6
    trials = load_study(tmp_path / "s").trials
    assert [trial.state for trial in trials] == ["complete", "failed", *["complete"] * 5]
    assert trials[1].failure is not None
    assert trials[1].failure.kind == "died"
    assert "illegal memory access" in str(trials[1].reason)


class Requests:
    """The evaluator's end of a connection on which these requests have arrived; what is sent is kept."""

    def __init__(self, *requests: Request) -> None:
        self.requests = list(requests)
        self.sent: list[Any] = []

    def recv(self) -> Request:
        if not self.requests:
            raise EOFError
        return self.requests.pop(0)

    def send(self, message: Any, /) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(
    ("error", "kind", "left"),
    [
        ("CUDA error: an illegal memory access was encountered", "died", 1),
        ("expected scalar type Half but found Float", "error", 0),
    ],
)
def test_who_has_lost_its_context_takes_no_other_job(error: str, kind: str, left: int) -> None:
    """An actor on a cluster is ended by nobody else; after an error of another kind the next job is done."""
    jobs = [RunJob(Job(number, SMALL["igcv1"], 0)) for number in (1, 2)]
    channel = Requests(*jobs)
    serve(channel, None, lambda _: mock.Mock(side_effect=RuntimeError(error)))
    ready, *failures = channel.sent
    assert ready == READY
    assert [(message.number, message.failure.kind) for message in failures] == [(1, kind), (2, kind)][: 2 - left]
    assert channel.requests == jobs[2 - left :]


def test_a_graph_is_captured_on_its_own_gpu(cache: None) -> None:
    """Whichever GPU is the current one: a stream of one cannot launch kernels of another."""
    with fake_cuda(count=2) as record:
        current: list[int] = []
        captured(lambda: current.append(record.current_device), torch.device("cuda:1"))
        assert current == [1] * (WARM_UPS + 1)
        assert record.current_device == 0


def test_a_form_that_the_gpu_has_no_memory_for_never_wins() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    race = Race(rounds=5, cap_s=1.0)
    samples = race.run({"large": timed(too_large), "small": timed(lambda: None)})
    assert race.winner(samples, {"large": 0, "small": 1}.__getitem__) == "small"
    assert race.times(samples)["large"] >= NEVER_MS / 2


def test_what_falls_back_is_said_once_and_kept_with_the_trials(
    tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where CUDA records no graph, that trial fails, and those of a new process train without."""
    monkeypatch.delenv(GRAPHS, raising=False)
    said: list[str] = []
    list(
        search(
            spec(),
            Run(tmp_path / "s", trials=5),
            evaluator=falls_back,
            on_event=lambda event: said.append(event.text) if isinstance(event, Notice) else None,
        )
    )
    assert said == ["Triton does not work on Fake GPU"]
    study = load_study(tmp_path / "s")
    assert [trial.state for trial in study.trials] == ["complete", "failed", *["complete"] * 4]
    assert str(study.trials[1].reason).startswith("CUDA records no graph of this (CUDA error: operation not permitted")
    assert study.trials[0].notices == study.trials[2].notices == ("Triton does not work on Fake GPU",), "a process each"
    answer = cli("status", str(tmp_path / "s"))
    assert "notice    Triton does not work on Fake GPU (from trial 0 on)" in answer.out


def test_the_reason_of_a_failed_capture_is_the_first(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending a capture that CUDA has broken off raises another error; no memory stays no memory."""
    real = torch.cuda.graph

    @contextlib.contextmanager
    def ends_badly(graph: Any, **options: Any) -> Iterator[None]:
        with real(graph, **options):
            try:
                yield
            finally:
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    def capture(error: Exception) -> None:
        runs = iter(range(9))

        def run() -> None:
            if next(runs) == WARM_UPS:
                raise error

        captured(run, torch.device("cuda:0"))

    monkeypatch.setattr("torch.cuda.graph", ends_badly)
    with pytest.raises(CaptureError, match="item while a graph is captured") as raised:
        capture(RuntimeError("item while a graph is captured"))
    assert "IGC_NAS_CUDA_GRAPHS=0" in str(raised.value.hint)
    with pytest.raises(torch.OutOfMemoryError):
        capture(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(CaptureError, match="previous error"):
        captured(lambda: None, torch.device("cuda:0"))


def test_no_graph_is_destroyed_while_another_one_is_captured(gpu: Record) -> None:
    """Neither by Python's garbage collector, which would break off the capture."""
    device = torch.device("cuda:0")
    dropped = [captured(lambda: None, device) for _ in range(WARM_UPS + 1)]

    def run() -> None:
        cycle: list[object] = [dropped.pop()]
        cycle.append(cycle)
        del cycle
        _ = [[] for _ in range(5 * gc.get_threshold()[0])]  # Python looks for cycles after so many new containers

    captured(run, device)
    assert gc.isenabled()


def test_an_error_holds_no_memory(gpu: Record, tmp_path: Path) -> None:
    """What a trial without memory had is given back when it has failed: other workers need it."""
    made = new_spec(locate("shapes"), "Fake GPU", "cuda", space="tiny", name="s", recipe=RECIPE | {"forms": "factored"})
    evaluator = evaluator_of(made, tmp_path)
    losses: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []

    def step(_: Training, loss: torch.Tensor) -> None:
        losses.append(weakref.ref(loss))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        mock.patch.object(Training, "descend", step),
        mock.patch("torch.cuda.empty_cache", side_effect=lambda: left.extend(loss() is not None for loss in losses)),
        pytest.raises(torch.OutOfMemoryError) as raised,
    ):
        evaluator(made.feasible.lightest(), 0)
    assert left == [False]
    assert "captured_step.py" in failed(0, raised.value, "training").failure.where, "where it was is still known"


def test_without_graphs_steps_are_launched_one_by_one(gpu: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    step_timer(lambda: None, find_devices("cuda")[0])()
    assert gpu.captured == [0], "with graphs a step is raced as a captured one"
    gpu.clear()
    monkeypatch.setenv(GRAPHS, "0")
    training = training_of(SMALL["igcv1"])
    training.epoch()
    step_timer(lambda: None, find_devices("cuda")[0])()
    assert gpu.captured == []
    assert len(gpu.launches) > 100
    assert [reason for reason, _ in gpu.waits][-2:] == ["item", "item"]


def test_a_gpu_without_memory_for_a_step_ends_the_planning_in_a_line(
    gpu: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("igc_nas.evaluation.speed.Training", full)
    released: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: released.append(True))
    with pytest.raises(IgcNasError, match="Fake GPU has no memory for a training step of 64 images") as raised:
        measure_speed(list(SMALL.values()), recipe_of(), [32], find_devices("cuda")[0])
    assert "--recipe batch=16,lr=0.1" in str(raised.value.hint)
    assert released


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nFor debugging consider ..."
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_a_gpu_in_use_is_no_internal_error(error: Exception, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of a command that uses it itself, nor of a worker that starts."""
    monkeypatch.setattr("igc_nas.evaluation.latency.Measurer.__call__", mock.Mock(side_effect=error))
    answer = cli("measure", "igcv1-l24m2-d8", "--device", "cpu")
    line, hint = answer.err.splitlines()[-2:]
    assert answer.status == 1
    assert line == f"igc-nas: {str(error).splitlines()[0]}"
    assert "`igc-nas doctor` examines the GPU" in hint
    of_worker = to_igc_error(error)
    assert "\n" not in of_worker.message
    assert "debugging" not in of_worker.message
