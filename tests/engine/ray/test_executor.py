"""A real Ray cluster of two nodes on this machine: actors evaluate and die, nodes join and leave."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from igc_nas.data.datasets import locate
from igc_nas.engine.events import Event, Job, Notice, Progress
from igc_nas.engine.executor import RungReport, TrialCompleted, TrialFailed, TrialPruned
from igc_nas.engine.ray.actor import EVALUATOR_ENDED, Actor, ActorConfig, slot_here, versions_here
from igc_nas.engine.ray.executor import RayExecutor
from igc_nas.engine.ray.nodes import connected, needs_of, places
from igc_nas.engine.search import Run, search
from igc_nas.errors import GRAPHS, IgcNasError, StudyError, UsageError
from igc_nas.nn.device import cpu_name
from igc_nas.study.defaults import new_spec
from igc_nas.study.lock import StudyLock
from igc_nas.study.process import Process
from igc_nas.study.study import load_study
from tests.support.commands import Command, refused
from tests.support.searches import spec
from tests.support.stubs import falls_back
from tests.support.troubles import FINE, HANGS, KILLS, KIND, LEAVES, NO_MEMORY, RAISES, RUNG, noted, troubled

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'igc-nas[ray]'")
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[3]
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
RECIPE = {"epochs": 1, "train_size": 400, "held_out": 100, "resolution": 8, "crop": 1}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """The cluster: `nodes.address`, `nodes.add_node`, `nodes.remove_node`."""
    from ray.cluster_utils import Cluster as Nodes

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path must be short
    there = {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "RAY_TMPDIR": folder,  # Ray writes the address of the cluster into the folder `ray` there, and does not make it
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # unused processes
    }
    (Path(folder) / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in there.items():
            patch.setenv(name, value)
        made = Nodes(initialize_head=True, head_node_args={**NODE, "temp_dir": folder})
        try:
            made.add_node(**NODE)
            yield made
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def another(nodes: Any, **changes: Any) -> Iterator[Any]:
    """One more node, for a while."""
    node = nodes.add_node(**{**NODE, "include_log_monitor": False} | changes)
    try:
        yield node
    finally:
        if node in nodes.worker_nodes:
            nodes.remove_node(node)


def run(folder: Path, nodes: Any, **changes: Any) -> Run:
    return Run(folder, **{"executor": "ray", "ray_address": nodes.address, "workers": 4} | changes)


def executor(nodes: Any, folder: Path, **changes: Any) -> RayExecutor:
    return RayExecutor(**{"spec": spec(), "device": "cpu", "count": 2, "make": troubled, "folder": folder} | changes)


def once(what: Callable[[Progress], None], at: set[int]) -> Callable[[Event], None]:
    """Do something when each of these trials is first at work."""

    def hear(event: Event) -> None:
        if isinstance(event, Progress) and event.doing == "training" and event.number in at:
            at.remove(event.number)
            what(event)

    return hear


def all_gone(pids: set[int], within_s: float = 10) -> bool:
    until = time.monotonic() + within_s
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


def question(**changes: Any) -> Any:
    return spec(**{"sampler": "random", "prune_below": 0.0} | changes)


def test_a_killed_actor_and_a_removed_node_lose_no_result(
    tmp_path: Path, nodes: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Six actors on three nodes: the trials of lost actors are retried, and in the end no process is left."""
    notices: list[str] = []
    killed: list[int] = []

    def kill(_: Progress) -> None:
        time.sleep(0.1)
        here = [pid for pid, raylet in noted(tmp_path / "s", "at-work").items() if raylet != third_raylet]
        killed.append(here[0])
        os.kill(here[0], signal.SIGKILL)

    def hear(event: Event) -> None:
        kills(event)
        removes(event)
        if isinstance(event, Notice):
            notices.append(event.text)

    with another(nodes) as third:
        third_raylet = third.all_processes["raylet"][0].process.pid
        kills = once(kill, {7})
        removes = once(lambda _: nodes.remove_node(third, allow_graceful=False), {14})
        asked = run(tmp_path / "s", nodes, trials=24, workers=6)
        found = list(search(question(), asked, evaluator=troubled, on_event=hear))
    assert [trial.state for trial in load_study(tmp_path / "s").trials] == ["complete"] * 24
    assert len({candidate.id for candidate in found}) == 24
    assert len(killed) == 1
    assert 1 <= len(notices) <= 3
    assert all("is retried: its evaluator on" in text for text in notices), notices
    seated = noted(tmp_path / "s", "seated")
    assert len(seated) >= 6
    assert third_raylet in seated.values()
    assert len(set(seated.values())) == 3
    assert all_gone(set(seated))
    assert capfd.readouterr().out == ""
    assert not ray.is_initialized()


def test_what_goes_wrong_with_a_trial_is_its_own(tmp_path: Path, nodes: Any) -> None:
    """One search's faults, job by job; in between an actor is killed by Ray."""
    notices: list[str] = []
    folder = tmp_path / "s"
    lock = StudyLock(folder)
    try:
        with executor(nodes, folder, address=nodes.address, trial_timeout_s=2.0, notify=notices.append) as here:
            arch = here.spec.search_space.smallest("params")
            assert here.calibrate().reference_ms == 1.0
            here.set_spec(here.spec)
            assert here.idle() == 2

            def becomes(number: int, seed: int) -> list[Any]:
                """What is said of a job until it has ended."""
                here.submit(Job(number, arch, seed))
                said: list[Any] = []
                while not (said and isinstance(said[-1], TrialCompleted | TrialPruned | TrialFailed)):
                    for message in here.messages(5.0):
                        said.append(message)
                        if isinstance(message, RungReport):
                            here.answer(message.number, number == 5)
                assert not here.running()
                return said

            def failure(number: int, seed: int) -> tuple[str, str, str]:
                failed = becomes(number, seed)[-1]
                assert isinstance(failed, TrialFailed)
                assert failed.number == number
                return failed.failure.kind, failed.failure.where.split(" ")[0], failed.reason

            assert failure(0, RAISES) == ("error", "training", "ValueError: no such thing")
            assert failure(1, NO_MEMORY)[0] == "memory"
            assert failure(2, HANGS) == ("timeout", "training", "it took longer than 2.0 s (--trial-timeout)")
            kind, _, reason = failure(3, KILLS)
            assert (kind, reason.split(" (")[0]) == ("died", "3 evaluators died of it")
            assert [text.split(":")[0] for text in notices] == ["trial 3 is retried"] * 2
            here.submit(Job(4, arch, FINE))
            while not here.ready() or here.ready()[0].job is None:
                list(here.messages(1.0))
            ray.kill(here.ready()[0].actor)
            said: list[Any] = []
            while not (said and isinstance(said[-1], TrialCompleted | TrialFailed)):
                said += here.messages(5.0)
            assert said[-1].number == 4
            stays, goes = becomes(5, RUNG), becomes(6, RUNG)
            assert [type(word) for word in stays] == [Progress, RungReport, RungReport, TrialCompleted]
            assert [type(word) for word in goes] == [Progress, RungReport, TrialPruned]
            assert isinstance(becomes(7, FINE)[-1], TrialCompleted)
            kind, _, reason = failure(8, LEAVES)
            assert kind == "error"
    finally:
        lock.release()
    assert all_gone(set(noted(folder, "seated")))


def test_where_cuda_records_no_graph_new_actors_train_without(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(GRAPHS, raising=False)
    list(search(question(), run(tmp_path / "s", nodes, trials=3, workers=1), evaluator=falls_back))
    assert [trial.state for trial in load_study(tmp_path / "s").trials] == ["complete", "failed", *["complete"] * 2]


def test_a_cluster_without_a_ready_evaluator_ends_the_search(tmp_path: Path, nodes: Any) -> None:
    with executor(nodes, tmp_path, address=nodes.address, count=1, max_idle_s=0.01) as here:
        assert here.idle() == 1  # for a job that waits for the first actor
        with pytest.raises(IgcNasError, match="no evaluator has been at work on the Ray cluster for") as caught:
            here.calibrate()
    assert "ray status" in caught.value.hint


def test_nodes_of_another_kind_are_not_used_and_reported_once(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    monkeypatch.setenv(KIND, "another")
    with another(nodes, num_cpus=3) as third:
        raylet = third.all_processes["raylet"][0].process.pid
        list(search(question(), run(tmp_path / "s", nodes, trials=4, workers=3), evaluator=troubled, on_event=hear))
    assert notices == [
        f"node {socket.gethostname()} is not used: this device is another; the study's latencies are of stub"
    ]
    assert len(load_study(tmp_path / "s").candidates) == 4
    assert raylet not in noted(tmp_path / "s", "seated").values()


def test_a_study_that_no_node_fits_is_refused_with_the_kinds_there_are(tmp_path: Path, nodes: Any) -> None:
    asked = new_spec(locate("shapes", None), "another device", space="tiny", name="s", recipe=RECIPE)
    refusal = f"no node .* fits the study: .*: this device is {cpu_name()}; the study's latencies are of another device"
    with pytest.raises(StudyError, match=refusal.replace("(", r"\(").replace(")", r"\)")):
        list(search(asked, run(tmp_path / "s", nodes, trials=1, workers=2, devices=("cpu",))))


def test_our_own_evaluator_works_on_a_cluster(tmp_path: Path, nodes: Any) -> None:
    factored = {"latency": {"forms": "factored"}, "recipe": RECIPE | {"forms": "factored"}}
    asked = new_spec(locate("shapes", None), cpu_name(), space="tiny", name="s", **factored)
    found = list(search(asked, run(tmp_path / "s", nodes, trials=2, workers=2)))
    study = load_study(tmp_path / "s")
    assert len(found) == len(study.candidates) == 2
    assert study.spec.reference_ms is not None
    for candidate in found:
        assert candidate.latency.conditions.device == cpu_name()
        assert candidate.latency.conditions.threads == candidate.score.conditions.threads == 1


def test_places_are_counted_and_too_large_a_wish_is_refused(tmp_path: Path, nodes: Any) -> None:
    assert places(nodes.address, needs_of("cpu", 1)) == 4
    assert places(nodes.address, needs_of("cpu", 2)) == 2
    with pytest.raises(IgcNasError, match=r"an evaluator takes 1 CPU and 1 GPU; the nodes .* have 2 CPU, 0 GPU; 2 CPU"):
        places(nodes.address, needs_of("cuda:0", 1))
    with pytest.raises(IgcNasError, match="an evaluator takes 3 CPU"):
        list(search(question(), run(tmp_path / "s", nodes, trials=1, threads=3), evaluator=troubled))
    assert not ray.is_initialized()


def test_evaluators_share_a_gpu(tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with one GPU and room for four evaluators by its CPUs: two of them where two share a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # Ray refuses a node with more GPUs than are visible
    with another(nodes, num_cpus=4, num_gpus=1):
        assert [places(nodes.address, needs_of("cuda:0", 1, per_gpu)) for per_gpu in (1, 2, 3)] == [1, 2, 3]
        asked = {"devices": ("cuda:0",), "workers": 3, "workers_per_gpu": 2, "trials": 6}
        list(search(question(), run(tmp_path / "s", nodes, **asked), evaluator=troubled))
        assert len(noted(tmp_path / "s", "seated")) == 2
    assert len(load_study(tmp_path / "s").candidates) == 6


@pytest.mark.parametrize("per_gpu", range(1, 17))
def test_the_shares_of_a_gpu_fit_into_it(per_gpu: int) -> None:
    """Ray counts in 10,000ths of a GPU."""
    share = round(needs_of("cuda:0", 1, per_gpu)["GPU"] * 10_000, 6)
    assert share == int(share)
    assert 10_000 // share == per_gpu


def test_a_connection_that_is_there_is_used_and_kept(nodes: Any) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with connected(nodes.address) as first:
        assert signal.getsignal(signal.SIGTERM) == handler
        with connected("nowhere:1") as second:
            assert first is second
        assert first.is_initialized()
    assert not first.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == handler


# Without a cluster.


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("nowhere.invalid:1", 1, ["no Ray cluster answers at nowhere.invalid:1", "ray start --head"]),
        ("127.0.0.1:1", 1, ["no Ray cluster answers at 127.0.0.1:1: Connection refused", "ray start --head"]),
        ("ray://127.0.0.1:1", 2, ["is not an address of a Ray cluster", "HOST:PORT"]),
        ("127.0.0.1:0", 2, ["is not an address of a Ray cluster"]),
        ("127.0.0.1:99999", 2, ["is not an address of a Ray cluster"]),
        (f"{'x' * 300}:1", 1, ["no Ray cluster answers at xxx"]),
        ("..:1", 1, ["no Ray cluster answers at ..:1"]),
        ("local", 2, ["is not an address of a Ray cluster"]),
    ],
)
def test_an_address_where_no_cluster_is_gives_a_line(
    cli: Command, tmp_path: Path, address: str, status: int, words: list[str]
) -> None:
    began = time.monotonic()
    answer = cli(*_search(tmp_path), "--ray-address", address)
    refused(answer, status, *words)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("says", "word"), [(b"HTTP/1.1 400\r\n\r\n", "is not a Ray cluster"), (b"", "timed out")])
def test_a_server_that_is_no_cluster_gives_a_line(
    cli: Command, tmp_path: Path, says: bytes, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igc_nas.engine.ray.nodes.REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        pool.submit(_answer_once, server, says)
        refused(cli(*_search(tmp_path), "--ray-address", f"127.0.0.1:{server.getsockname()[1]}"), 1, word)


def _answer_once(server: socket.socket, says: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(says)
        time.sleep(0.5)


def _search(root: Path) -> list[str]:
    where = ["--studies-dir", str(root), "--study", "s", "--space", "tiny", "--dataset", "shapes", "--trials", "1"]
    return ["search", *where, "--executor", "ray", "--latency-runtime", "eager"]


def test_a_machine_of_no_cluster_says_how_to_start_one(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", none)
    refused(cli(*_search(tmp_path)), 1, "no Ray cluster runs on this machine", "ray start --head")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    refused(cli(*_search(tmp_path)), 1, "no Ray cluster answers at 127.0.0.1:1")


def test_a_missing_extra_is_named(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    refused(cli(*_search(tmp_path)), 2, "the executor ray needs the package ray", "pip install 'igc-nas[ray]'")


def test_a_latency_command_and_a_cluster_do_not_go_together(tmp_path: Path) -> None:
    asked = spec()
    asked = asked.model_copy(update={"latency": asked.latency.model_copy(update={"remote": True})})
    with pytest.raises(UsageError, match="a latency command measures one network at a time"):
        list(search(asked, Run(tmp_path / "s", trials=1, executor="ray"), evaluator=troubled))


# On a node.


def config(**changes: Any) -> ActorConfig:
    made = {"spec": {}, "versions": versions_here(), "run": "r", "index": 1, "count": 2, "device": "cpu", "threads": 1}
    return ActorConfig(**made | {"folder": None, "coordinator": Process.here()} | changes)


def test_a_node_of_other_versions_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"torch is .* there; the search runs with 1\.0") as caught:
        slot_here(spec(), config(versions=versions_here() | {"torch": "1.0"}), tmp_path)
    assert caught.value.hint == "install the same versions on every node"
    with pytest.raises(StudyError, match=r"igc-nas is .* there; the search runs with None"):
        slot_here(spec(), config(versions={}), tmp_path)


def test_a_node_with_another_dataset_does_not_fit(tmp_path: Path) -> None:
    other = spec().model_copy(update={"dataset_sha256": "0" * 64})
    with pytest.raises(StudyError, match="the dataset is shapes there; the study is about shapes"):
        slot_here(other, config(), tmp_path)


def test_a_slot_has_the_study_s_folder_if_the_node_sees_it(tmp_path: Path) -> None:
    """Another folder of the same name, as on a node with its own disks, has another lock holder or none."""
    study = tmp_path / "s"
    assert slot_here(spec(), config(folder=str(study)), tmp_path).folder is None
    lock = StudyLock(study)
    try:
        slot = slot_here(spec(), config(folder=str(study)), tmp_path)
        assert (slot.folder, slot.index, slot.workers_on_device, slot.lock_folder) == (study, 1, 2, tmp_path / "cpu")
        stranger = Process.here().model_copy(update={"host": "another"})
        assert slot_here(spec(), config(folder=str(study), coordinator=stranger), tmp_path).folder is None
    finally:
        lock.release()


def test_an_actor_s_messages_keep_their_order_and_its_end_ends_the_process() -> None:
    ended: list[int] = []
    actor = Actor(exit_process=ended.append)
    assert actor.messages(0.01) == []
    for message in ("a", "b", None):
        actor.channel.send(message)
    assert actor.messages(0.01) == ["a", "b"]
    assert not ended
    actor.messages(0.01)
    assert ended == [EVALUATOR_ENDED]
