"""`igc-nas doctor`: what a search would use is said, what is missing has a way out, a failed check has status 1."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from igc_nas.engine.doctor import examine
from igc_nas.engine.self_check import SelfCheck, self_check
from igc_nas.nn.device import Device, cpu_name
from tests.support.commands import Command
from tests.support.fake_cuda import VERIFIED, fake_cuda


def test_it_says_what_a_search_would_use(cli: Command) -> None:
    answer = cli("doctor", "--no-check")
    assert answer.status == 0
    for topic in ("igc-nas", "torch", "processor", "a search", "runtime eager", "C compiler", "memory", "data shapes"):
        assert [line for line in answer.out.splitlines() if line.startswith(topic)], topic
    assert "uses cpu" in answer.out


def test_json_holds_every_finding(cli: Command) -> None:
    found = cli("doctor", "--no-check", "--json").json
    topics = [finding["topic"] for finding in found["findings"]]
    assert len(topics) == len(set(topics)) > 12
    assert found["problems"] == sum(finding["problem"] is not None for finding in found["findings"])
    assert found["checks"] == []


def problem(topic: str, folder: Path | None = None) -> tuple[str | None, str | None]:
    """The problem and the hint of the finding on a topic."""
    (found,) = (finding for finding in examine(folder).findings if finding.topic == topic)
    return found.problem, found.hint


def test_what_is_missing_has_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no kernels in C" in str(problem("C compiler"))
    assert "install gcc or clang" in str(problem("runtime native"))
    assert problem("data cifar10", tmp_path)[1] == (
        "igc-nas data cifar10 fetches it; igc-nas data cifar10 --from ARCHIVE_OR_FOLDER installs yours"
    )
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("IGC_NAS_CACHE", str(blocked / "cache"))
    assert "cannot be written" in str(problem("cache")[0])
    (tmp_path / "open" / "native").mkdir(parents=True)
    (tmp_path / "open" / "native").chmod(0o777)
    monkeypatch.setenv("IGC_NAS_CACHE", str(tmp_path / "open"))
    assert problem("cache")[0] is None, "without a compiler nothing is kept"
    monkeypatch.setenv("CC", sys.executable)  # a program that is there
    assert "others may write it" in str(problem("cache")[0])


def test_onnxruntime_may_be_installed_as_onnxruntime_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package onnxruntime is then of another distribution."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    real, known = importlib.metadata.version, importlib.metadata.packages_distributions()

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    of = known | {"onnxruntime": ["onnxruntime-gpu"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: of)
    (found,) = (finding for finding in examine().findings if finding.topic == "runtime onnxruntime")
    assert found.value.startswith("onnxruntime 1.2.3, onnxscript ")


def test_a_failed_check_has_a_status(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = (SelfCheck("gradients", False, "differ", 1.0),)
    monkeypatch.setattr("igc_nas.engine.self_check.self_check", lambda _: failed)
    answer = cli("doctor", "--check")
    assert answer.status == 1
    assert "FAIL  gradients: differ" in answer.out


@pytest.mark.slow
def test_the_checks_pass_on_this_processor() -> None:
    checks = self_check(Device("cpu", "cpu", cpu_name()))
    assert [check.name for check in checks if check.passed] == ["gradients", "trial"]
    assert "trials an hour" in checks[1].result


@pytest.mark.skipif(not VERIFIED, reason="the fake GPU relies on private symbols of torch 2.13.0 for x86-64 Linux")
def test_gpus_are_listed_and_left_out_ones_named(cli: Command) -> None:
    with fake_cuda(count=2, names=("NVIDIA H200", "NVIDIA T400")):
        answer = cli("doctor", "--no-check")
    assert "cuda:0               NVIDIA H200, compute capability 9.0, 70 of 80 GiB free" in answer.out
    assert "another model (NVIDIA T400)" in answer.out
    assert "uses cuda:0" in answer.out


def test_a_folder_that_is_not_there_is_refused(cli: Command) -> None:
    answer = cli("doctor", "--data-dir")
    assert answer.status == 2
    assert "requires an argument" in answer.err
