"""The exported C: it compiles without a warning, runs clean under sanitizers, and prints the network's logits."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import ConfigError, IgcNasError
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.exports.c_source import CFiles, c_files, verify_c
from igc_nas.exports.source import Source
from igc_nas.nn.c_compiler import CompilerError, compiler
from igc_nas.nn.codegen.target import Target
from igc_nas.nn.network import Network, build
from igc_nas.study.lookup import load_architecture
from tests.support.commands import ends, hanging_compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
NAMES = ["igcv1-l8m2-d8-res", "igcv2-c24-k4-d8"]
SMALL = ArchConfig.parse({"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}]})


def exported(arch: ArchConfig = SMALL, title: str = "a network", **options: Any) -> tuple[CFiles, Network]:
    network = randomize_batchnorm_(build(arch, 0)).eval()
    return c_files("mynet", Source(arch, title), network, **options), network


@needs_compiler
@pytest.mark.parametrize(("name", "weights_file"), [*zip(NAMES, (False, True), strict=True)])
def test_it_computes_the_networks_logits(name: str, weights_file: bool) -> None:
    assert verify_c(*exported(load_architecture(name), weights_file=weights_file)) <= 1e-5


@needs_compiler
def test_logits_that_are_all_0_are_equal() -> None:
    """Of a classifier that begins at 0, as for fine-tuning."""
    _, network = exported()
    with torch.no_grad():
        for parameter in network.get_submodule("classifier").parameters():
            parameter.zero_()
    files = c_files("mynet", Source(SMALL, "a network"), network)
    assert verify_c(files, network) == 0


def test_on_a_full_disk_no_file_of_an_older_export_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new NAME.c would read the weights of another network from an old NAME.bin."""
    files, _ = exported(weights_file=True)
    files.write(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text("old")
    written: list[int] = []

    def full_at_last(handle: int) -> None:
        written.append(handle)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_last)
    with pytest.raises(IgcNasError, match=r"cannot write .*mynet.bin: No space left"):
        files.write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("mynet.h", "mynet.c", "mynet_main.c", "mynet.bin"), "old"
    )


@needs_compiler
def test_other_weights_are_found_out() -> None:
    files, network = exported()
    with torch.no_grad():
        network.get_parameter("classifier.linear.weight").mul_(1.001)
    with pytest.raises(IgcNasError, match="differ from the network's"):
        verify_c(files, network)


def test_a_compiler_that_takes_too_long_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder is exported without C, and not at all only where something else is wrong."""
    command, child = hanging_compiler(tmp_path)
    monkeypatch.setenv("CC", str(command))
    with pytest.raises(CompilerError, match=r"it took longer than 0\.5 s"):
        verify_c(*exported(), timeout_s=0.5)
    assert ends(int(child.read_text()))


def test_a_program_that_cannot_be_started_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where temporary files lie in a folder that is mounted noexec."""
    (tmp_path / "cc").write_text("#!/bin/sh\ntouch program\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(CompilerError, match=r"the C program fails: .*Permission denied") as raised:
        verify_c(*exported())
    assert "noexec" in str(raised.value.hint)


@needs_compiler
@pytest.mark.parametrize("weights_file", [False, True])
def test_the_program_refuses_what_is_no_image(weights_file: bool, tmp_path: Path) -> None:
    files, _ = exported(weights_file=weights_file)
    files.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mynet.c", "mynet.h", "mynet_main.c"} | (
        {"mynet.bin"} if weights_file else set()
    )
    words = [*(compiler() or ()), "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "mynet_main.c", "mynet.c"]
    subprocess.run([*words, "-o", "mynet"], cwd=tmp_path, check=True, timeout=300)
    (tmp_path / "short").write_bytes(b"\0" * 100)
    for arguments in ([], ["short"], ["nothing"], ["short", "short"]):
        done = subprocess.run(["./mynet", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "usage: mynet IMAGE (a file of 3072 floats)\n"
    if weights_file:
        (tmp_path / "image").write_bytes(np.zeros(3072, np.float32).tobytes())
        (tmp_path / "mynet.bin").write_bytes(b"")
        done = subprocess.run(["./mynet", "image"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (1, "mynet.bin cannot be read\n")


@pytest.mark.parametrize("name", ["", "my-net", "1net", "net.c", "a" * 64, "nét", "a b", "x;y"])
def test_a_name_that_c_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a C function"):
        c_files(name, Source(SMALL, "a network"), build(SMALL, 0).eval())


@needs_compiler
def test_weights_that_c_cannot_hold_are_refused() -> None:
    network = build(SMALL, 0).eval()
    with torch.no_grad():
        network.get_submodule("stem.norm").weight.fill_(3e38)
        network.get_submodule("stem.norm").running_var.zero_()
    with pytest.raises(IgcNasError, match="not finite in float32"):
        c_files("mynet", Source(SMALL, "a network"), network)


def test_a_title_stays_in_its_comment() -> None:
    assert verify_c(*exported(title="*/ int main(void) { /* a ??/\nb \\\nc")) <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs gcc-aarch64-linux-gnu and qemu-user",
)
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_the_same_on_another_processor(name: str, lanes: int, tmp_path: Path) -> None:
    files, network = exported(load_architecture(name), weights_file=True, target=Target(lanes, 32))
    files.write(tmp_path)
    x = torch.randn(1, *files.image, generator=torch.Generator().manual_seed(1))
    (tmp_path / "image").write_bytes(x.numpy().tobytes())
    flags = ["-std=c11", "-O2", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", "-static"]
    command = ["aarch64-linux-gnu-gcc", *flags, "mynet_main.c", "mynet.c", "-o", "mynet"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    emulated = ["qemu-aarch64", "./mynet", "image"]
    done = subprocess.run(emulated, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = np.array([float(line) for line in done.stdout.split()])
    with torch.inference_mode():
        wanted = network.double()(x.double())[0].numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) <= 1e-5
