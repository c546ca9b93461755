"""Generated C computes what the network computes: drawn architectures of every space, all lanes, odd sizes."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import plan
from igc_nas.errors import ConfigError
from igc_nas.evaluation.latency import randomize_batchnorm_
from igc_nas.nn.c_compiler import FLAGS, CompilerError, compiler, load, why_not_kept
from igc_nas.nn.codegen.build import compiled
from igc_nas.nn.codegen.emit import Source, source
from igc_nas.nn.codegen.orders import PAD, group_major, interleaved, lane_major, positions
from igc_nas.nn.codegen.program import program
from igc_nas.nn.codegen.tiles import nest
from igc_nas.nn.network import Network, interleave
from igc_nas.nn.network import build as build_network
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import SearchSpace
from igc_nas.study.lookup import load_architecture
from tests.support.commands import ends, hanging_compiler
from tests.support.shares import examples, some
from tests.support.tensors import relative_error

SPACES = ("tiny", "igc_cifar", "igcv1_cifar", "igcv2_cifar", "igcv3_cifar", "igc_table")
TARGETS = [(4, 16), (8, 16), (8, 32), (16, 32)]
"""(lanes, registers): SSE and NEON, AVX2, AVX-512VL, AVX-512."""

SIZES = st.tuples(st.integers(5, 37), st.integers(5, 37))

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")


def generated(arch: ArchConfig, lanes: int = 8, registers: int = 16, seed: int = 0) -> tuple[Network, Source]:
    network = randomize_batchnorm_(build_network(arch, seed)).eval()
    tensors = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    return network, source(program(plan(arch), lanes), tensors, registers)


def errors(network: Network, made: Source, batch: int, seed: int = 0) -> tuple[float, float]:
    """Norm-wise relative errors against float64: of the generated C, and of torch in float32."""
    x = torch.randn(batch, *made.image, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        single = network(x).double().numpy()
        wanted = network.double()(x.double()).numpy()
    network.float()
    found = compiled(made)(x.numpy())
    return tuple(float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)) for y in (found, single))


@cache
def drawable(space: str) -> Feasible:
    budget = Budget() if space == "tiny" else Budget(params=400_000, macs=20_000_000)
    return Feasible(SearchSpace.load(space, 7), budget)


@needs_compiler
@pytest.mark.parametrize("space", some(SPACES, "tiny", "igc_cifar"))
@examples(3)
@given(
    seed=st.integers(0, 2**32),
    target=st.tuples(st.sampled_from([4, 8, 16]), st.integers(1, 40)),
    size=st.tuples(st.integers(5, 37), st.integers(5, 37)),
)
def test_drawn_architectures(space: str, seed: int, target: tuple[int, int], size: tuple[int, int]) -> None:
    """Of all lanes, and of all tiles that some number of registers leads to."""
    drawn = drawable(space).draw(np.random.default_rng(seed))
    arch = ArchConfig.parse(drawn.to_dict() | {"input": [1 + seed % 4, *size]})
    network, made = generated(arch, *target, seed=seed % 1000)
    ours, torchs = errors(network, made, batch=1 + seed % 3, seed=seed % 1000)
    assert ours <= max(1e-5, 4 * torchs)  # a network that magnifies rounding magnifies torch's as well


@needs_compiler
@pytest.mark.parametrize("name", ["igcv1-l24m2-d8", "igcv1-l12m6-d8-res", "regconv-w16-d8", "igcv2-c48-k8-d8"])
@pytest.mark.parametrize("target", some(TARGETS, (8, 32)))
def test_the_papers_networks(name: str, target: tuple[int, int]) -> None:
    network, made = generated(load_architecture(name), *target)
    assert errors(network, made, batch=2)[0] <= 1e-5


UNITS: dict[str, dict[str, Any]] = {
    "igcv1": {"unit": "igcv1", "L": 6, "M": 5},
    "igcv1 groups of one": {"unit": "igcv1", "L": 30, "M": 1},
    "igcv2": {"unit": "igcv2", "width": 30, "depth": 4},
    "igcv2 loose": {"unit": "igcv2", "width": 30, "depth": 3, "K": 5},
    "igcv3": {"unit": "igcv3", "width": 30, "expand": 3, "G1": 2, "G2": 5},
    "conv": {"unit": "conv", "width": 30},
}


@needs_compiler
@pytest.mark.parametrize("kernel", some((3, 5, 7), 3))
@pytest.mark.parametrize("first", UNITS)
def test_units_follow_each_other(first: str, kernel: int) -> None:
    """Each unit before each other one, with strides, odd widths, a head, and lanes that no width is a multiple of."""
    residual = kernel != 5
    stages = [UNITS[first] | {"blocks": 2, "kernel": kernel, "residual": residual}]
    for n, unit in enumerate(UNITS.values()):
        stages.append(unit | {"blocks": 1 + n % 2, "stride": 1 + n % 2, "kernel": 3, "residual": not residual})
    arch = ArchConfig.parse(
        {
            "input": [3, 21, 18],
            "stem": {"width": 30, "stride": 2, "activation": "relu6"},
            "stage": stages,
            "head": {"width": 37},
        }
    )
    network, made = generated(arch, *TARGETS[kernel % len(TARGETS)])
    ours, torchs = errors(network, made, batch=2)
    assert ours <= max(1e-5, 4 * torchs)


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 4, 8]), st.data())
def test_an_interleave_renames_what_torch_moves(groups: int, size: int, lanes: int, data: st.DataObject) -> None:
    channels = groups * size
    order = data.draw(st.sampled_from([group_major(groups, size, lanes), lane_major(groups, size, lanes)]))
    x = torch.arange(channels, dtype=torch.float32).reshape(1, channels, 1, 1)
    stored = [PAD if c == PAD else x[0, c, 0, 0].item() for c in order]
    shuffled = interleave(x, groups)[0, :, 0, 0].tolist()
    after = interleaved(order, groups)
    assert [stored[p] for p in positions(after)] == shuffled


@given(st.lists(st.tuples(st.integers(2, 4), st.integers(1, 30)), min_size=1, max_size=3))
def test_regular_places_are_loops(loops: list[tuple[int, int]]) -> None:
    offsets = [0]
    for count, step in loops:
        offsets = [n * step * 100 ** len(offsets) + o for n in range(count) for o in offsets]
    found = nest(tuple(sorted(offsets)))
    if found is not None:
        again = [0]
        for count, step in found:
            again = [o + n * step for o in again for n in range(count)]
        assert again == sorted(offsets)


@needs_compiler
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    _, made = generated(load_architecture("igcv1-l8m4-d8-res"))
    (tmp_path / "network.c").write_text(made.text + "\nvoid *use(void) { return (void *)(size_t)&forward; }\n")
    command = compiler()
    assert command is not None
    words = [*command, *FLAGS, "-Werror", "-c", "network.c", "-o", "network.o"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_compiler
def test_layers_of_one_shape_share_a_kernel() -> None:
    deep = load_architecture("igcv1-l8m2-d20")
    shallow = load_architecture("igcv1-l8m2-d14")
    assert len(generated(deep)[1].text) < 1.5 * len(generated(shallow)[1].text)


@needs_compiler
def test_a_network_is_compiled_once(tmp_path: Path) -> None:
    _, made = generated(load_architecture("igcv1-l8m2-d8"), seed=1)
    first = compiled(made, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    before = kept.stat().st_mtime_ns
    again = compiled(generated(load_architecture("igcv1-l8m2-d8"), seed=2)[1], tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept.name]
    assert kept.stat().st_mtime_ns == before
    x = np.zeros((1, *made.image), np.float32)
    assert not np.array_equal(first(x), again(x))  # other weights


@needs_compiler
@pytest.mark.parametrize("spoilt", ["damaged", "a file", "of another user", "writable by all", "below one that is"])
def test_a_cache_that_cannot_be_used_is_none(spoilt: str, tmp_path: Path) -> None:
    network, made = generated(load_architecture("igcv1-l8m2-d8"))
    folder = tmp_path / "cache" / "native"
    if spoilt == "a file":
        folder.parent.mkdir()
        folder.write_text("")
    else:
        compiled(made, folder)
        (kept,) = folder.iterdir()
        kept.write_bytes(b"\x7fELF")  # whoever loads it recompiles
    if spoilt == "of another user":
        if os.getuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(folder, 12345, -1)
    elif spoilt != "damaged" and spoilt != "a file":
        (folder if spoilt == "writable by all" else folder.parent).chmod(0o777)
    reason = {"of another user": "another user", "writable by all": "others", "below one that is": "others"}.get(spoilt)
    assert (reason or {"a file": "cannot be made", "damaged": "None"}[spoilt]) in str(why_not_kept(folder))
    x = torch.zeros(1, *made.image)
    with torch.inference_mode():
        assert relative_error(compiled(made, folder)(x.numpy()), network(x)) < 1e-4
    if spoilt == "damaged":
        assert len(kept.read_bytes()) > 1000, "compiled anew"
    if reason:
        assert kept.read_bytes() == b"\x7fELF"  # neither read nor written


@needs_compiler
@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_library_that_another_user_left_is_not_loaded(tmp_path: Path) -> None:
    """The folder may have been open to others once: they may have left code of their own under the right name."""
    _, made = generated(load_architecture("igcv1-l8m2-d8"))
    compiled(made, tmp_path / "native")
    (kept,) = (tmp_path / "native").iterdir()
    os.chown(kept, 12345, -1)
    compiled(made, tmp_path / "native")
    (again,) = (tmp_path / "native").iterdir()
    assert again.stat().st_uid == 0  # compiled anew, in its place


@needs_compiler
def test_a_library_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    network, made = generated(load_architecture("igcv1-l8m2-d8"))
    compiled(made, tmp_path / "native")
    (kept,) = (tmp_path / "native").iterdir()
    kept.unlink()
    kept.mkdir()
    x = torch.zeros(1, *made.image)
    with torch.inference_mode():
        assert relative_error(compiled(made, tmp_path / "native")(x.numpy()), network(x)) < 1e-4
    assert list((tmp_path / "native").iterdir()) == [kept]


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    path = tmp_path / "badcc"
    path.write_text("#!/bin/sh\necho 'network.c:1: error: it is Monday' >&2\nexit 1\n")
    path.chmod(0o755)
    return path


def test_a_compiler_that_fails_is_quoted(failing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{failing} -m9")
    with pytest.raises(CompilerError, match="it is Monday") as error:
        compiled(generated(load_architecture("igcv1-l8m2-d8"))[1])
    assert error.value.hint is not None
    assert f"{failing} -m9 " in error.value.hint
    (kept,) = (Path(word) for word in error.value.hint.split() if word.endswith("network.c"))
    assert "static void forward" in kept.read_text()


def test_a_compiler_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, child = hanging_compiler(tmp_path)
    monkeypatch.setenv("CC", str(command))
    with pytest.raises(CompilerError, match=r"it took longer than 0\.5 s"):
        load("int x;", timeout_s=0.5, leave_failed=False)
    assert ends(int(child.read_text()))


def test_without_a_compiler_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompilerError, match="no C compiler"):
        compiled(generated(load_architecture("igcv1-l8m2-d8"))[1])


@needs_compiler
def test_images_of_another_size_are_refused() -> None:
    made = compiled(generated(load_architecture("igcv1-l8m2-d8"))[1])
    with pytest.raises(ValueError, match="compiled for"):
        made(np.zeros((1, 3, 16, 16), np.float32))


def test_images_that_c_cannot_index_are_refused() -> None:
    arch = load_architecture("regconv-w64-d8")
    huge = ArchConfig.parse(arch.to_dict() | {"input": [3, 4096, 4096]})
    with pytest.raises(ConfigError, match="2\\^31"):
        generated(huge)
