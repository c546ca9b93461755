"""The runtime `native` in measurements, searches and benchmarks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Act, Conv, Linear, Norm, Pool
from igc_nas.arch.plan import BlockPlan, Plan
from igc_nas.bench.native import bench_native, peak_gmacs
from igc_nas.data.datasets import locate
from igc_nas.errors import UsageError
from igc_nas.evaluation.latency import Measurer
from igc_nas.evaluation.runtimes import default_runtime, require, unit_plans
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.codegen.program import UnsupportedLayerError, program
from igc_nas.nn.device import Device, cpu_name
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.defaults import new_spec
from igc_nas.study.lookup import load_architecture
from igc_nas.study.spec import LatencySpec
from igc_nas.study.study import load_study
from tests.support.commands import Command, refused

CPU = Device("cpu", "cpu", cpu_name())
SMALL = load_architecture("igcv1-l8m2-d8")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("batch", [1, 3])
def test_a_latency_is_of_the_factored_network_in_c(batch: int) -> None:
    spec = LatencySpec(device=CPU.name, runtime="native", forms="any", batch=batch)
    found = Measurer(spec, CPU, cap_s=0.0)(SMALL)
    assert (found.runtime, found.batch, found.form, found.forms) == ("native", batch, "factored", {})
    assert found.memory_format == "contiguous"
    assert found.deployed_params is not None
    eager = Measurer(spec.model_copy(update={"runtime": "eager", "forms": "factored"}), CPU, cap_s=0.0)(SMALL)
    assert (found.deployed_params, found.deployed_macs) == (eager.deployed_params, eager.deployed_macs)


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, cli: Command) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UsageError, match="the runtime native needs a C compiler"):
        require("native")
    refused(cli("measure", "igcv1-l8m2-d8", "--runtime", "native"), 2, "install gcc or clang")


@needs_compiler
def test_more_threads_are_refused(cli: Command) -> None:
    refused(cli("measure", "igcv1-l8m2-d8", "--runtime", "native", "--threads", "2"), 2, "one thread")


SEARCH = ("search", "--space", "tiny", "--dataset", "shapes", "--workers", "1", "--study", "s")


@pytest.mark.slow
@needs_compiler
def test_a_search_measures_generated_c_and_goes_on(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ["--recipe", "epochs=1,train_size=200,held_out=50,resolution=8,rungs=[]"]
    first = cli(*SEARCH, *recipe, "--trials", "1")
    assert first.status == 0
    assert "latency   native C, batch 1, 1 thread" in first.err
    assert cli(*SEARCH, "--trials", "2").status == 0
    study = load_study(tmp_path / "studies" / "s")
    assert {c.latency.runtime for c in study.candidates} == {"native"}
    assert all(c.latency.deployed_params == c.cost.params for c in study.candidates)
    assert (study.spec.latency.forms, study.spec.latency.memory_format) == ("factored", "contiguous")
    refused(cli(*SEARCH, "--latency-runtime", "eager"), 4, "native")
    monkeypatch.setenv("CC", "no-such-compiler")
    for words in ((*SEARCH, "--trials", "3"), ("measure", "--study", "s")):
        refused(cli(*words), 2, "study s", "needs a C compiler", "install gcc or clang", "--latency-runtime eager")


def test_a_compiler_that_fails_ends_a_search_before_it_begins(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "false")
    answer = cli(*SEARCH, "--recipe", "dtype=float32")  # to time dtypes, other code is compiled or was before
    refused(answer, 2, "the C compiler fails: exit status 1", "false -std=c11", "--latency-runtime eager")
    assert not Path("studies").exists()
    (kept,) = [word for word in answer.err.split() if word.endswith("network.c")]
    assert Path(kept).is_file()


def test_a_network_without_code_is_named() -> None:
    layers = (Conv("conv", 3, 8), Norm("norm", 8), Act("relu"))
    end = BlockPlan("classifier", (Pool(), Linear("fc", 8, 10)))
    program(Plan((3, 8, 8), 10, (BlockPlan("stage1.block1", (Act("relu"), *layers)), end)), 8)
    features = Plan((3, 8, 8), 0, (BlockPlan("stem", layers), BlockPlan("classifier", (Pool(),))))
    with pytest.raises(UnsupportedLayerError, match="number per class"):
        program(features, 8)
    runtime, because = default_runtime(CPU, plans=(features,))
    assert runtime == "eager"
    assert "classifier" in because or compiler() is None


def test_every_unit_of_the_shipped_spaces_has_code() -> None:
    for name in ("igc_cifar", "igc_table"):
        plans = list(unit_plans(SearchSpace.load(name)))
        assert plans
        for plan in plans:
            program(plan, 8)


def test_a_spec_that_is_made_without_a_runtime_is_eager() -> None:
    spec = new_spec(locate("shapes"), CPU.name)
    assert (spec.latency.runtime, spec.latency.forms) == ("eager", "within-budget")


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ExecuTorch, where it is installed
def test_the_benchmark_has_every_runtime_and_the_share_of_the_peak() -> None:
    archs: dict[str, ArchConfig] = {"small": SMALL}
    report = bench_native(CPU, (1,), archs=archs, rounds=3).to_dict()
    (row,) = report["rows"]
    assert {"native_ms", "eager_nchw_ms", "eager_nhwc_ms"} <= row.keys()
    peers = [ms for name, ms in row.items() if name.endswith("_ms") and name != "native_ms"]
    assert row["ratio"] == pytest.approx(min(peers) / row["native_ms"], rel=0.01)
    assert 0 < row["share_of_peak"] < 1
    assert report["conditions"]["peak_gmac_s"] == pytest.approx(peak_gmacs(), rel=0.5)
    with pytest.raises(UsageError, match="on a CPU"):
        bench_native(dataclasses.replace(CPU, kind="cuda"), (1,), archs=archs)
