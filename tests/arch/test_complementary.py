"""Paths between channels, counted by one-hots through the built chains; the complementary conditions of a space."""

from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.complementary import Condition, complementary, path_counts, unmet
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.factors import balanced_factors
from igc_nas.arch.layers import Conv, Interleave
from igc_nas.arch.plan import arch_id
from igc_nas.arch.stages import ConvStage, Igcv1Stage, Igcv2Stage, Igcv3Stage, StageConfig
from igc_nas.cli import main
from igc_nas.errors import ConfigError
from igc_nas.io.records import differences
from igc_nas.nn.network import Block, build
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import Feasible
from igc_nas.space.search_space import SearchSpace, SpaceFile, find_space, space_names
from igc_nas.study.spec import StudySpec
from tests.support.builders import SMALL_SPACES, every_architecture, one_line, space_of, stages_behind
from tests.support.searches import spec

TEXTS = SMALL_SPACES | {"tiny": find_space("tiny").read_text(encoding="utf-8")}
CONDITIONS: tuple[Condition, ...] = ("strict", "loose", "any")


def under(condition: str, text: str) -> str:
    return f"complementary = '{condition}'\n" + text


# Counts.


def pushed(stage: StageConfig) -> tuple[int, int]:
    """(least, most) paths: one-hot inputs through the built second block of the stage with all weights one.

    On a map of one pixel only the centre tap of a kernel sees anything; BN and activations are taken out.
    """
    plain = stage.model_dump() | {"blocks": 2, "residual": False}
    arch = ArchConfig.parse({"stem": {"width": stage.width}, "stage": [plain]})
    block = build(arch).get_submodule("stage1.block2")
    assert isinstance(block, Block)
    block.layers = tuple(layer for layer in block.layers if isinstance(layer, Conv | Interleave))
    for weight in block.double().parameters():
        torch.nn.init.ones_(weight)
    with torch.no_grad():
        counts = block(torch.eye(stage.width, dtype=torch.float64)[:, :, None, None])
    assert counts.shape == (stage.width, stage.width, 1, 1)
    return int(counts.min()), int(counts.max())


@pytest.mark.parametrize(("L", "M"), [(1, 1), (1, 7), (7, 1), (24, 2), (5, 3), (4, 4)])
def test_igcv1_is_strict(L: int, M: int) -> None:
    stage = Igcv1Stage(L=L, M=M, blocks=2)
    assert path_counts(stage) == pushed(stage) == (1, 1)
    assert complementary(stage) == "strict"


@pytest.mark.parametrize("K", [(8, 6), (4, 4, 3), (10, 6), (5, 4, 3), (12, 8), (6, 4, 4), (7,), (8, 8), (3, 3, 3, 2)])
def test_igcv2_with_balanced_factors_is_strict_for_unequal_k_too(K: tuple[int, ...]) -> None:
    stage = Igcv2Stage(width=prod(K), depth=len(K) + 1, blocks=2)
    assert stage.channels_per_group == balanced_factors(prod(K), len(K)) == K
    assert path_counts(stage) == pushed(stage) == (1, 1)
    assert complementary(stage) == "strict"


@pytest.mark.parametrize(
    ("C", "K", "n", "counts"),
    [
        (64, 8, 2, (1, 1)),
        (512, 8, 3, (1, 1)),
        (64, 4, 3, (1, 1)),
        (144, 12, 2, (1, 1)),
        (174, 6, 3, (1, 2)),
        (184, 4, 4, (1, 2)),
        (192, 3, 5, (1, 2)),
        (186, 2, 8, (1, 2)),
        (416, 8, 3, (1, 2)),
        (128, 8, 3, (4, 4)),
        (256, 8, 3, (2, 2)),
        (416, 8, 2, (0, 1)),
        (128, 8, 2, (0, 1)),
        (48, 1, 3, (0, 1)),
        (48, 48, 1, (1, 1)),
    ],
)
def test_igcv2_with_a_given_k(C: int, K: int, n: int, counts: tuple[int, int]) -> None:
    stage = Igcv2Stage(width=C, depth=n + 1, K=K, blocks=2)
    assert path_counts(stage) == pushed(stage) == counts
    assert complementary(stage) == ("strict" if counts == (1, 1) else "loose" if counts[0] else None)


@pytest.mark.parametrize(
    ("C", "t", "G1", "G2"), [(24, 6, 2, 2), (16, 4, 4, 2), (8, 2, 4, 4), (32, 6, 1, 1), (6, 3, 2, 3), (4, 1, 2, 2)]
)
def test_igcv3_is_strict_only_where_its_groups_multiply_to_its_inner_width(C: int, t: int, G1: int, G2: int) -> None:
    stage = Igcv3Stage(width=C, expand=t, G1=G1, G2=G2, blocks=2)
    assert path_counts(stage) == pushed(stage) == (t * C // (G1 * G2),) * 2
    assert complementary(stage) == ("strict" if t * C == G1 * G2 else "loose")


@pytest.mark.parametrize(
    ("C", "t", "G1", "G2", "counts"), [(6, 1, 2, 2, (1, 2)), (8, 1, 4, 4, (0, 1)), (12, 2, 4, 4, (1, 2))]
)
def test_igcv3_whose_groups_do_not_multiply_to_a_divisor(
    C: int, t: int, G1: int, G2: int, counts: tuple[int, int]
) -> None:
    stage = Igcv3Stage(width=C, expand=t, G1=G1, G2=G2, blocks=2)
    assert path_counts(stage) == pushed(stage) == counts


def test_igcv3_that_cannot_keep_its_width_has_no_paths() -> None:
    stage = Igcv3Stage(width=16, expand=4, G1=3, G2=2, blocks=1)
    assert stage.problem(12) is None
    assert path_counts(stage) == (0, 0)
    assert complementary(stage) is None


def test_a_regular_convolution_is_strict() -> None:
    stage = ConvStage(width=10, blocks=2)
    assert path_counts(stage) == pushed(stage) == (1, 1)


@given(st.sampled_from([2, 6, 12, 16, 30]).flatmap(stages_behind), st.data())
def test_path_counts_equal_those_of_the_built_unit(stage: StageConfig, data: st.DataObject) -> None:
    least, most = path_counts(stage)
    assert (least, most) == pushed(stage)
    for key, values in {"kernel": [1, 5], "stride": [1, 4], "blocks": [1, 9], "residual": [False, True]}.items():
        stage = stage.model_copy(update={key: data.draw(st.sampled_from(values))})
    assert path_counts(stage) == (least, most)


@given(st.integers(1, 60), st.integers(2, 17), st.data())
def test_paths_are_shared_among_the_pairs(width: int, depth: int, data: st.DataObject) -> None:
    """K^n paths reach an output channel from C input channels, beyond 64 bits as well."""
    K = data.draw(st.sampled_from([k for k in range(1, width + 1) if width % k == 0]))
    least, most = path_counts(Igcv2Stage(width=width, depth=depth, K=K, blocks=1))
    assert 0 <= least * width <= K ** (depth - 1) <= most * width
    if width == K:
        assert least == most == K ** (depth - 2)


def test_wide_units_are_counted_fast() -> None:
    start = process_time()
    assert path_counts(Igcv1Stage(L=1000, M=2, blocks=1)) == (1, 1)
    assert path_counts(Igcv2Stage(width=2000, depth=4, blocks=1)) == (1, 1)
    assert path_counts(Igcv2Stage(width=2000, depth=9, K=8, blocks=1)) == (8388, 8389)
    assert path_counts(Igcv3Stage(width=2000, expand=6, blocks=1)) == (3000, 3000)
    for blocks in range(1, 257):
        assert path_counts(Igcv3Stage(width=2000, expand=6, blocks=blocks)) == (3000, 3000)
    assert process_time() - start < 5  # about 0.3 s


# The switch of a space.


@cache
def meets(stage: StageConfig, condition: Condition) -> bool:
    least, most = (0, 0) if stage.problem(stage.width) else pushed(stage)
    return {"strict": least == most == 1, "loose": least >= 1, "any": True}[condition]


def every_meeting(space: SearchSpace) -> Iterator[ArchConfig]:
    """Every architecture of the file whose stages meet its condition, by one-hot inputs."""
    condition = space.file.complementary
    return (arch for arch in every_architecture(space) if all(meets(_bare(s), condition) for s in arch.stages))


def _bare(stage: StageConfig) -> StageConfig:
    return stage.model_copy(update={"blocks": 1, "stride": 1, "kernel": 1, "residual": False})


UNEQUAL = """
[stem]
width = [16, 48]
[[stage]]
blocks = [1, 2]
[stage.igcv2]
width = [16, 48]
depth = [2, 3, 4]
[stage.igcv1]
L = 16
M = [1, 3]
[[stage]]
stride = 2
blocks = 1
[stage.igcv2]
width = [16, 48]
depth = [2, 3, 4]
K = [2, 4, 16]
[stage.igcv3]
width = [8, 16]
expand = [1, 2]
G1 = [2, 4, 8]
G2 = [1, 2, 4]
"""
TEXTS["unequal"] = UNEQUAL


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", [name for name in TEXTS if name != "with-choices"])  # no strict option there
def test_a_space_holds_exactly_the_architectures_that_meet_its_condition(name: str, condition: Condition) -> None:
    space = space_of(under(condition, TEXTS[name]))
    meeting = list(every_meeting(space))
    assert space.size == len({arch_id(arch) for arch in meeting})
    for arch in meeting[:50]:
        assert space.decode(space.encode(arch)) == arch
    for stage in space.stages:
        assert all(unmet(option, condition) is None for option in stage.options)


def test_the_conditions_differ_and_any_is_the_default() -> None:
    strict, loose, every = (space_of(under(condition, UNEQUAL)) for condition in CONDITIONS)
    assert 0 < strict.size < loose.size < every.size
    assert every.file == space_of(UNEQUAL).file
    assert strict.parameters == loose.parameters == every.parameters


@pytest.mark.parametrize("name", [name for name in space_names() if name != "igcv3_cifar"])
def test_a_shipped_space_under_the_strict_condition_holds_no_igcv3(name: str) -> None:
    """It would take G1 G2 = expand * width."""
    space = SearchSpace(SpaceFile.parse(SearchSpace.load(name).file.to_dict() | {"complementary": "strict"}), 10)
    assert {option.unit for stage in space.stages for option in stage.options} <= {"igcv1", "igcv2", "conv"}


@pytest.mark.parametrize("condition", ["strict", "loose"])
def test_parameters_of_excluded_architectures_are_refused(condition: Condition) -> None:
    space, every = space_of(under(condition, UNEQUAL)), space_of(UNEQUAL)
    held = {arch.model_dump_json() for arch in every_meeting(space)}
    left_out = [arch for arch in every_architecture(every) if arch.model_dump_json() not in held]
    assert left_out
    for arch in left_out[::20]:
        for refuse in (lambda: space.decode(every.encode(arch)), lambda: space.encode(arch)):  # noqa: B023
            with pytest.raises(ConfigError) as raised:
                refuse()
            assert one_line(raised).startswith("stage 2: ")
            assert f"complementary = '{condition}' requires" in raised.value.message


def test_draws_meet_the_condition() -> None:
    space = space_of(under("strict", UNEQUAL))
    feasible, rng = Feasible(space, Budget(params=4000)), np.random.default_rng(0)
    drawn = [feasible.draw(rng) for _ in range(50)]
    assert all(complementary(stage) == "strict" for arch in drawn for stage in arch.stages)
    assert {stage.unit for arch in drawn for stage in arch.stages} == {"igcv1", "igcv2", "igcv3"}


def test_a_stage_with_no_option_left_is_refused() -> None:
    text = "[stem]\nwidth = 16\n[[stage]]\nblocks = 1\n[stage.igcv2]\nwidth = 128\ndepth = 3\nK = [2, 4, 8]\n"
    assert space_of(text).size == 3
    with pytest.raises(ConfigError) as raised:
        space_of(under("loose", text))
    assert one_line(raised) == (
        "small: stage 1: no option meets the loose complementary condition; igcv2 C128 d3 K2 k3 x1 has 0 to 1 paths "
        "per channel pair; complementary = 'loose' requires at least 1"
    )
    assert raised.value.hint == 'write complementary = "any", or choose other groups'


@pytest.mark.parametrize("value", ["'Strict'", "''", "true", "1", "['strict', 'loose']"])
def test_another_condition_is_refused(value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space_of(f"complementary = {value}\n" + UNEQUAL)
    assert one_line(raised).startswith("space.toml: complementary")


# Studies.


def test_a_space_without_a_condition_is_stored_without_the_key() -> None:
    before = spec()
    assert "complementary" not in before.to_toml()
    said = StudySpec.from_toml(before.to_toml().replace("[space]\n", '[space]\ncomplementary = "any"\n', 1))
    assert said.space.complementary == "any"
    assert said.identity() == before.identity()


def test_a_study_keeps_its_condition() -> None:
    before = spec().to_dict()
    strict = StudySpec.parse(before | {"space": before["space"] | {"complementary": "strict"}})
    assert StudySpec.from_toml(strict.to_toml()) == strict
    assert strict.search_space.size < spec().search_space.size
    found = list(differences(strict.identity(), spec().identity()))
    assert found == ["space.complementary: strict asked for, none in the study"]


# The command.


def test_the_command_prints_the_space_under_its_condition(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    for condition in CONDITIONS:
        path = tmp_path / f"{condition}.toml"
        path.write_text(under(condition, UNEQUAL))
        assert main(["space", str(path)]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("architectures"))
        assert int(line.split()[1].replace(",", "")) == space_of(under(condition, UNEQUAL)).size


def test_the_command_refuses_a_space_with_an_empty_stage(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    path = tmp_path / "wide.toml"
    path.write_text(under("strict", find_space("igcv3_cifar").read_text(encoding="utf-8")))
    assert main(["space", str(path)]) != 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "stage 3: no option meets the strict complementary condition" in shown.err
