import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.space.encoding import Code, SpaceEncoding
from igc_nas.space.search_space import METRICS, SearchSpace
from tests.support.builders import SMALL_SPACES, every_architecture, space_of, taken

SPACES = {name: space_of(text) for name, text in SMALL_SPACES.items()} | {"tiny": SearchSpace.load("tiny")}


@cache
def encoding(name: str) -> SpaceEncoding:
    return SpaceEncoding(SPACES[name])


def choices(encoding: SpaceEncoding) -> list[int]:
    """The number of values of each place of a code."""
    return [len(encoding.space.frames), *(len(table.options) for table in encoding.stages)]


def built(encoding: SpaceEncoding, code: Code) -> ArchConfig | None:
    """The architecture of a code, built with validation; None where it is not valid."""
    stages = [table.options[n] for table, n in zip(encoding.stages, code[1:], strict=True)]
    return taken(lambda: encoding.space.architecture(encoding.space.frames[code[0]], stages))


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
def test_price_equals_the_cost_of_the_architecture_or_the_code_is_invalid(name: str, data: st.DataObject) -> None:
    numbers = encoding(name)
    code = tuple(data.draw(st.integers(0, n - 1)) for n in choices(numbers))
    (valid,), costs = numbers.price(np.array([code]))
    arch = built(numbers, code)
    if valid:
        assert arch == numbers.architecture(code)
        assert tuple(costs[0]) == tuple(getattr(cost_of(arch), metric) for metric in METRICS)
        assert numbers.code(arch) == code
    elif arch is not None:  # another configuration of a network whose first one is counted
        counted = numbers.code(arch)
        assert counted not in (None, code)
        assert arch_id(numbers.architecture(counted)) == arch_id(arch)


@pytest.mark.parametrize("name", SPACES)
def test_the_number_of_valid_codes_is_the_size_of_the_space(name: str) -> None:
    codes = np.array(list(itertools.product(*map(range, choices(encoding(name))))))
    valid, _ = encoding(name).price(codes)
    assert valid.sum() == SPACES[name].size
    assert not valid.all() or name in ("tiny", "one-stage", "with-choices", "with-tables", "merging-frames")


@pytest.mark.parametrize("name", SPACES)
def test_all_configurations_of_a_network_have_one_code(name: str) -> None:
    counted: dict[str, Code | None] = {}
    for arch in every_architecture(SPACES[name]):
        code = encoding(name).code(arch)
        assert code is not None
        assert arch_id(encoding(name).architecture(code)) == arch_id(arch)
        assert counted.setdefault(arch_id(arch), code) == code


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 11},
        {"input": [3, 64, 64]},
        {"head": {"width": 8}},
        {"stem": {"width": 16}},
        {"stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}]},
        {"stage": [{"unit": "conv", "width": 8, "blocks": 1}] * 2},
    ],
)
def test_an_architecture_of_another_space_has_no_code(change: dict[str, Any]) -> None:
    smallest = SPACES["tiny"].smallest("params")
    assert encoding("tiny").code(smallest) is not None
    assert encoding("tiny").code(ArchConfig.parse(smallest.to_dict() | change)) is None
