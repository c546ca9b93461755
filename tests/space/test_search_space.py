import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.arch.plan import arch_id
from igc_nas.arch.stages import STAGE_OF_UNIT
from igc_nas.errors import ConfigError
from igc_nas.space.parameters import Parameters
from igc_nas.space.search_space import Metric, SearchSpace, SpaceFile, find_space, space_names
from tests.support.builders import SMALL_SPACES, every_architecture, one_line, space_of, taken
from tests.support.commands import Command

SPACES = {name: space_of(text) for name, text in SMALL_SPACES.items()} | {"tiny": SearchSpace.load("tiny")}
METRICS: tuple[Metric, ...] = ("params", "macs", "activations")


@cache
def loaded(name: str) -> tuple[SearchSpace, float]:
    """A shipped space whose size and ends are known, and the seconds that this took."""
    start = time.process_time()
    space = SearchSpace.load(name)
    for metric in METRICS:
        space.smallest(metric)
        space.largest(metric)
    return space, time.process_time() - start


def shipped_space(name: str) -> SearchSpace:
    return loaded(name)[0]


@pytest.fixture(params=SPACES)
def small(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


def test_the_shipped_spaces() -> None:
    assert space_names() == ["igc_cifar", "igc_table", "igcv1_cifar", "igcv2_cifar", "igcv3_cifar", "tiny"]


@pytest.mark.parametrize("name", space_names())
def test_the_header_of_a_shipped_space_gives_its_size(name: str) -> None:
    space = shipped_space(name)
    least, most = (cost_of(arch).params for arch in (space.smallest("params"), space.largest("params")))
    header = re.match(r"(#.*\n)+", find_space(name).read_text(encoding="utf-8"))
    assert header
    assert f"# {space.size:,} architectures, {least:,} to {most:,} parameters (10 classes)." in header[0]
    assert space.file.paper
    assert space.file.intent


def test_the_shipped_spaces_are_large_and_reach_the_papers_sizes() -> None:
    assert shipped_space("igc_cifar").size >= 10**9
    for name in ("igc_cifar", "igcv1_cifar", "igcv2_cifar", "igcv3_cifar"):
        space = shipped_space(name)
        assert space.size >= 10**6
        assert cost_of(space.smallest("params")).params <= 20_000
        assert cost_of(space.largest("params")).params >= 2_000_000
        assert [stage.options[0].stride for stage in space.stages] == [1, 2, 2]


@pytest.mark.parametrize("name", ["igcv1_cifar", "igcv2_cifar", "igcv3_cifar"])
def test_a_papers_space_has_its_unit_only(name: str) -> None:
    units = {unit for stage in shipped_space(name).stages for unit in stage.choices}
    assert units == {name.removesuffix("_cifar")}


@pytest.mark.parametrize("name", space_names())
def test_every_value_of_a_shipped_space_is_used_by_some_architecture(name: str) -> None:
    space = shipped_space(name)
    for stage, entering in zip(space.stages, space.shapes, strict=False):
        used = [option for option in stage.options if any(option.problem(shape[0]) is None for shape in entering)]
        for unit, choices in stage.choices.items():
            for key, values in choices.items():
                assert {getattr(option, key) for option in used if option.unit == unit} == set(values)


@pytest.mark.parametrize("name", space_names())
def test_a_shipped_space_is_fast(name: str) -> None:
    space, seconds = loaded(name)
    assert space.size > 0
    assert seconds < 10  # about 1 s


def test_the_size_is_the_number_of_different_networks(small: SearchSpace) -> None:
    assert small.size == len({arch_id(arch) for arch in every_architecture(small)})


def test_the_small_spaces_have_the_properties_of_their_names() -> None:
    written = {name: list(every_architecture(space)) for name, space in SPACES.items()}
    merging = ("merging", "merging-by-width", "merging-frames", "tiny")
    assert all(len(written[name]) > SPACES[name].size for name in merging)
    fitting, every = len(written["clashing"]), 1
    for count in (2, *(len(stage.options) for stage in SPACES["clashing"].stages)):
        every *= count
    assert fitting < every / 2


@pytest.mark.parametrize("metric", METRICS)
def test_smallest_and_largest(small: SearchSpace, metric: Metric) -> None:
    costs = [getattr(cost_of(arch), metric) for arch in every_architecture(small)]
    assert getattr(cost_of(small.smallest(metric)), metric) == min(costs)
    assert getattr(cost_of(small.largest(metric)), metric) == max(costs)


def test_every_architecture_can_be_encoded_in_parameters(small: SearchSpace) -> None:
    for arch in every_architecture(small):
        params = small.encode(arch)
        assert params.keys() == small.parameters.keys()
        assert small.decode(params) == arch


@st.composite
def assignments(draw: st.DrawFn, space: SearchSpace) -> dict[str, int | str]:
    """Any value for every parameter, as a sampler of Optuna may choose."""
    return {
        name: draw(st.integers(0, choice - 1) if isinstance(choice, int) else st.sampled_from(choice))
        for name, choice in space.parameters.items()
    }


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
def test_parameters_decode_to_an_architecture_or_are_refused(name: str, data: st.DataObject) -> None:
    space = SPACES[name]
    params = data.draw(assignments(space))
    arch = taken(lambda: space.decode(params))
    assert arch is None or space.decode(space.encode(arch)) == arch


@pytest.mark.parametrize("name", SPACES)
def test_values_of_every_kind_stand_for_the_architecture(name: str) -> None:
    parameters = Parameters(SPACES[name])
    for arch in every_architecture(SPACES[name]):
        assert parameters.architecture(parameters.of(arch)) == arch


LARGE = shipped_space("igc_cifar")


@given(assignments(LARGE))
def test_suggest_replays_a_fixed_trial(params: dict[str, int | str]) -> None:
    try:
        expected = LARGE.decode(params)
    except ConfigError as error:
        with pytest.raises(ConfigError, match=re.escape(error.message)):
            LARGE.suggest(optuna.trial.FixedTrial(params))
    else:
        assert LARGE.suggest(optuna.trial.FixedTrial(params)) == expected
        assert LARGE.suggest(optuna.trial.FixedTrial(LARGE.encode(expected))) == expected


def test_suggest_asks_each_trial_for_the_same_parameters() -> None:
    """Conditional names make NSGA-II a random search, and value sets that change per trial raise."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = []
    for _ in range(20):
        trial = study.ask()
        taken(lambda: SPACES["merging"].suggest(trial))  # noqa: B023
        asked.append(trial.distributions)
    assert all(one == asked[0] for one in asked)
    assert list(asked[0]) == list(SPACES["merging"].parameters)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"stage1.unit": "conv"},
        {"stage1.unit": "igcv1", "stage1.L": 99},
        {"stage1.unit": "igcv1", "stage1.L": -1},
        {"stage1.unit": "igcv1", "stage1.L": "0"},
        {"stage1.unit": 3},
        {"stage1.unit": "a\nb"},
    ],
)
def test_parameters_of_another_space_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        SPACES["tiny"].decode(params)
    assert one_line(raised).startswith("stage1.")


@pytest.mark.parametrize(
    "change",
    [{"classes": 11}, {"stem": {"width": 16}}, {"head": {"width": 8}}, {"input": [3, 64, 64]}, {"stage": None}],
)
def test_an_architecture_of_another_space_cannot_be_encoded(change: dict[str, Any]) -> None:
    plain = SPACES["tiny"].smallest("params").to_dict()
    stages = [{"unit": "conv", "width": 8, "blocks": 1}] * 2
    arch = ArchConfig.parse(plain | change if "stage" not in change else plain | {"stage": stages})
    with pytest.raises(ConfigError) as raised:
        SPACES["tiny"].encode(arch)
    one_line(raised)


STEM, STAGE = "[stem]\nwidth = [8, 16]\n", "[[stage]]\nblocks = 1\n[stage.conv]\nwidth = [8, 16]\n"
V1 = "[[stage]]\nblocks = 1\n[stage.igcv1]\nL = [4, 8]\nM = 2\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "space.toml: stem"),
        ("[", "space.toml: not valid TOML"),
        (STEM, "space.toml: stage"),
        (STAGE, "space.toml: stem"),
        ("stage = []\n" + STEM, "space.toml: stage"),
        ("stage = 3\n" + STEM, "space.toml: stage"),
        ("stage = [3]\n" + STEM, "space.toml: stage.1"),
        ("stem = 8\n" + STAGE, "space.toml: stem"),
        ("stem = []\n" + STAGE, "space.toml: stem"),
        ("depth = 3\n" + STEM + STAGE, "space.toml: depth: unknown key"),
        ('"a\\nb" = 3\n' + STEM + STAGE, "space.toml: 'a\\nb': unknown key"),
        ("paper = 3\n" + STEM + STAGE, "space.toml: paper"),
        ("input = [3, 32]\n" + STEM + STAGE, "space.toml: input"),
        ("input = [3, 0, 32]\n" + STEM + STAGE, "space.toml: input.2"),
        ("input = [3, 32, 99999]\n" + STEM + STAGE, "space.toml: input.3"),
        ("input = [[3, 32, 32]]\n" + STEM + STAGE, "space.toml: input"),
        ("classes = 10\n" + STEM + STAGE, "space.toml: classes: unknown key"),
        ("x = 0x" + "f" * 5000 + "\n" + STEM + STAGE, "space.toml: not valid TOML"),
        ("[stem]\na" + ".a" * 2000 + " = 1\n" + STAGE, "space.toml: not valid TOML"),
        (STEM + STAGE * 33, "space.toml: stage"),
        ("[stem]\n" + STAGE, "small: stem: width"),
        ("[stem]\nwidth = []\n" + STAGE, "small: stem.width: a choice is"),
        ("[stem]\nwidth = [8, 8]\n" + STAGE, "small: stem.width: a choice is"),
        ("[stem]\nwidth = [8, 0]\n" + STAGE, "small: stem: width"),
        ("[stem]\nwidth = [8, true]\n" + STAGE, "small: stem: width"),
        ("[stem]\nwidth = [8, 8.0]\n" + STAGE, "small: stem: width"),
        ("[stem]\nwidth = [[8, 16]]\n" + STAGE, "small: stem: width"),
        ("[stem]\nwidth = {low = 8, high = 16}\n" + STAGE, "small: stem: width"),
        ("[stem]\nwidth = '8..16'\n" + STAGE, "small: stem: width"),
        (STEM + "kernel = [3, 4]\n" + STAGE, "small: stem: kernel"),
        (STEM + "kernel = [1, true]\n" + STAGE, "small: stem: kernel"),
        (STEM + "kernel = [3, 3.0]\n" + STAGE, "small: stem: kernel"),
        (STEM + "dilation = 1\n" + STAGE, "small: stem: dilation: unknown key"),
        (STEM + '"a\\u001bb" = 1\n' + STAGE, "small: stem: 'a\\x1bb': unknown key"),
        (STEM + '"a\\u001bb" = []\n' + STAGE, "small: stem.'a\\x1bb': a choice is"),
        (STEM + STAGE + "[head]\nwidth = [8, 0]\n", "small: head: width"),
        (
            STEM + STAGE + "[head]\nse = [0, 4]\n",
            "small: head: no combination of its choices is possible; a head has a",
        ),
        (
            STEM + "unit = 'bsconv'\npadding = [1, 2]\n" + STAGE,
            "small: stem: no combination of its choices is possible; a",
        ),
        (STEM + STAGE + "[[head]]\nwidth = 8\n", "space.toml: head: a list where there is one table; write [head]"),
        ("[[stem]]\nwidth = 8\n" + STAGE, "space.toml: stem: a list where there is one table; write [stem]"),
        (
            STEM + STAGE.replace("[[stage]]", "[stage]"),
            "space.toml: stage: one table where there is a list of them; write [[",
        ),
        (
            STEM + STAGE.replace("blocks = 1", "blocks = 1\nse = {ratio = 4}"),
            "small: stage 1: se as a table is a key of a unit",
        ),
        (STEM + "[[stage]]\nblocks = 1\n", "small: stage 1 names no unit"),
        (STEM + STAGE + "[[stage]]\n", "small: stage 2 names no unit"),
        (STEM + "[[stage]]\nblocks = 1\n[[stage.conv]]\nwidth = 8\n", "small: stage 1 names no unit"),
        (STEM + STAGE.replace("conv", "igcv4"), "small: stage 1: unknown unit 'igcv4'"),
        (STEM + STAGE.replace("conv", '"a\\nb"'), "small: stage 1: unknown unit 'a\\nb'"),
        (STEM + STAGE.replace("blocks = 1", ""), "small: stage 1.conv: blocks"),
        (STEM + STAGE.replace("blocks = 1", "blocks = []"), "small: stage 1.conv.blocks: a choice is"),
        (STEM + STAGE.replace("blocks = 1", "blocks = [1, 257]"), "small: stage 1.conv: blocks"),
        (STEM + STAGE + "L = 4\n", "small: stage 1.conv: L: unknown key"),
        (STEM + STAGE + "unit = 'igcv1'\n", "small: stage 1.conv: unit"),
        (STEM + STAGE + "stride = [1, 3]\n", "small: stage 1.conv: stride"),
        (STEM + STAGE + "[stage.igcv1]\nL = 4\n", "small: stage 1.igcv1: M"),
        (STEM + STAGE + V1.replace("L = [4, 8]", "L = ['a', 8]"), "small: stage 2.igcv1: L"),
        (STEM + V1.replace("L = [4, 8]", "L = [3, 5]"), "small: no choice of stage 1 fits behind"),
        (
            STEM + "[[stage]]\nblocks = 1\n[stage.igcv2]\nwidth = 7\ndepth = 3\n",
            "small: no choice of stage 1 fits behind",
        ),
        (STEM + STAGE.replace("[8, 16]", str(list(range(1, 1999)))).replace("1\n", f"{list(range(1, 257))}\n", 1), ""),
    ],
)
def test_a_bad_space_is_refused_naming_the_place(text: str, place: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space_of(text)
    assert one_line(raised).startswith(place or "small: stage 1.conv: 511488 combinations in one stage; at most 200000")


@given(
    st.integers(0, 40), st.integers(0, 6), st.text(alphabet=st.characters() | st.sampled_from('[]="\n0,'), max_size=6)
)
def test_a_damaged_space_is_read_or_refused(start: int, length: int, put: str) -> None:
    text = SMALL_SPACES["clashing"]
    start = start * len(text) // 40
    space = taken(lambda: space_of(text[:start] + put + text[start + length :]))
    assert space is None or space.size >= 1


def test_lists_of_hidden_layers_are_a_choice() -> None:
    text = SMALL_SPACES["with-tables"].replace("hidden = [16, 12]", "hidden = [[16], [16, 12]]")
    space = space_of(text)
    assert {head.hidden for head in space.heads if head} == {(16,), (16, 12)}
    assert space.size == 2 * SPACES["with-tables"].size
    arch = space.largest("params")
    assert space.decode(space.encode(arch)) == arch


def test_hidden_layers_are_printed_as_one_value(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(SMALL_SPACES["with-tables"])
    assert cli("space", tmp_path / "my.toml").text.endswith("head pool average|flatten hidden [16, 12]")


def test_a_space_with_architectures_that_lose_all_pixels_is_refused() -> None:
    text = SMALL_SPACES["with-tables"]
    assert space_of(f"input = [3, 4, 4]{text}").size == SPACES["with-tables"].size
    with pytest.raises(ConfigError, match=r"^small: of images of 2 x 2 pixels stage 1 leaves nothing in some arch"):
        space_of(f"input = [3, 2, 2]{text}")


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, "3"])
def test_a_number_of_classes_that_is_none_is_refused(classes: Any) -> None:
    assert {SearchSpace.load("tiny", equal).classes for equal in (1, 2)} == {1, 2}  # kept for who asks again
    with pytest.raises(ConfigError, match=r"^classes: Input should be "):
        SearchSpace.load("tiny", classes)


@pytest.mark.parametrize("side", [0, -32, 4097, 64.0, "64"])
def test_a_side_of_images_that_is_none_is_refused(side: Any) -> None:
    with pytest.raises(ConfigError, match=r"^input\.2: Input should be "):
        SpaceFile.load(find_space("tiny"), side)


def test_a_space_file_is_found_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SMALL_SPACES["merging"])
    space = SearchSpace.load(tmp_path / "mine.toml", classes=100)
    assert (space.name, space.classes, space.size) == ("mine", 100, SPACES["merging"].size)


UNITS_KEYS = [(unit, key) for unit in ("conv", "igcv1", "igcv2", "igcv3") for key in STAGE_OF_UNIT[unit].model_fields]


@pytest.mark.parametrize(("unit", "key"), [(unit, key) for unit, key in UNITS_KEYS if len(key) > 4])
def test_a_misspelt_key_is_answered_with_the_nearest_one(unit: str, key: str) -> None:
    misspelt = key[:2] + key[3:]
    with pytest.raises(ConfigError, match=rf"stage 1\.{unit}: {misspelt}: unknown key; did you mean {key}\?"):
        space_of(STEM + f"[[stage]]\n[stage.{unit}]\n{misspelt} = 1\n")
    arch = {"stem": {"width": 8}, "stage": [{"unit": unit, misspelt: 1}]}
    with pytest.raises(ConfigError, match=rf"stage\.1\.{unit}\.{misspelt}: unknown key; did you mean {key}\?"):
        ArchConfig.parse(arch)


def test_a_list_of_another_name_is_a_misspelt_stage(tmp_path: Path) -> None:
    text = find_space("tiny").read_text(encoding="utf-8").replace("[[stage]]", "[[stages]]")
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"my\.toml: stages: unknown key; did you mean \[\[stage\]\]\?"):
        SearchSpace.load(tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("old", "new", "left_out"),
    [
        ("depth = [2, 3]", "depth = 9", ["stage 1.igcv2"]),
        ("depth = [2, 3]", "depth = [2, 3, 9]", ["stage 1.igcv2.depth 9"]),
        ("L = [4, 8]", "L = [4, 7]", ["stage 1.igcv1.L 7"]),
        ("width = [16, 32]", "width = [16, 31]", ["stage 2.igcv2.width 31"]),
    ],
)
def test_choices_that_no_architecture_has_are_named(
    old: str, new: str, left_out: list[str], cli: Command, tmp_path: Path
) -> None:
    text = find_space("tiny").read_text(encoding="utf-8")
    space = space_of(text.replace(old, new, 1))
    assert list(space.left_out) == left_out
    (tmp_path / "my.toml").write_text(text.replace(old, new, 1))
    assert f"left out {left_out[0]}: no valid architecture has it" in cli("space", tmp_path / "my.toml").text


def test_what_is_not_left_out_is_in_some_architecture(small: SearchSpace) -> None:
    found = {
        (number, stage.unit, key, value)
        for arch in every_architecture(small)
        for number, stage in enumerate(arch.stages, start=1)
        for key, value in stage
        if isinstance(value, int | str)
    }
    for stage in small.stages:
        for unit, choices in stage.choices.items():
            for key, values in choices.items():
                for value in (value for value in values if isinstance(value, int | str)):
                    at = f"stage {stage.number}.{unit}"
                    is_out = at in small.left_out or f"{at}.{key} {value}" in small.left_out
                    assert is_out == ((stage.number, unit, key, value) not in found)
