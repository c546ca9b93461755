"""A row in another order by shuffles of vectors is the row by an index."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.nn.c_compiler import compiler, load
from igc_nas.nn.codegen.emit import prologue
from igc_nas.nn.codegen.orders import PAD, group_major, lane_major
from igc_nas.nn.codegen.shuffles import permute_cost, shuffled_text
from tests.support.shares import examples

WIDTH = 3


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...]]:
    """(lanes, floats of a pixel, for each position of the target that of the source or PAD)."""
    lanes = draw(st.sampled_from((4, 8, 16)))
    depth, out = (lanes * draw(st.integers(1, 6)) for _ in range(2))
    table = draw(st.lists(st.sampled_from((PAD, *range(depth))), min_size=out, max_size=out))
    return lanes, depth, tuple(table)


def aligned_zeros(count: int) -> np.ndarray:
    """`count` floats from a multiple of 64 bytes on."""
    raw = np.zeros(count + 16, np.float32)
    return raw[-raw.ctypes.data % 64 // 4 :][:count]


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
@examples(12)
@given(tables())
def test_shuffles_move_what_an_index_moves(drawn: tuple[int, int, tuple[int, ...]]) -> None:
    lanes, depth, table = drawn
    text = prologue(lanes) + shuffled_text(table, depth, WIDTH, lanes).replace(
        "static NOINLINE void KERNEL", "void kernel"
    )
    kernel = load(text).kernel
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    source, target = (aligned_zeros(WIDTH * size) for size in (depth, len(table)))
    source[:] = np.arange(1, WIDTH * depth + 1)
    kernel(source.ctypes.data, target.ctypes.data)
    index = np.array(table)
    wanted = np.where(index == PAD, 0, source.reshape(WIDTH, depth)[:, index])
    assert np.array_equal(target.reshape(WIDTH, -1), wanted)


def test_a_transposition_costs_less_than_its_floats() -> None:
    source, target = group_major(2, 24, 8), lane_major(24, 2, 8)
    assert permute_cost(source, target, 8) < len(target)
    assert permute_cost(source, source, 8) <= 3 * len(source) / 8
    assert permute_cost((0, 1, 2), target, 8) > len(target), "an image of three channels is moved float by float"
