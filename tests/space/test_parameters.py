"""Parameters by value are those by index, read by people."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.errors import ConfigError
from igc_nas.space.parameters import Parameters
from tests.support.builders import shipped_space, taken

SPACES = {name: Parameters(shipped_space(name)) for name in ("igc_cifar", "igc_table", "tiny")}


@st.composite
def suggestions(draw: st.DrawFn) -> tuple[Parameters, dict[str, int | str]]:
    """A space, and one index for each of its parameters."""
    parameters = SPACES[draw(st.sampled_from(sorted(SPACES)))]
    indices = {
        name: draw(st.integers(0, choice - 1) if isinstance(choice, int) else st.sampled_from(choice))
        for name, choice in parameters.space.parameters.items()
    }
    return parameters, indices


@given(suggestions())
def test_values_and_indices_stand_for_the_same_architecture(suggestion: tuple[Parameters, dict[str, Any]]) -> None:
    parameters, indices = suggestion
    values = parameters.of_indices(indices)
    assert values.keys() <= parameters.choices.keys()
    assert all(value in parameters.choices[name] for name, value in values.items())
    arch = taken(lambda: parameters.space.decode(indices))
    assert taken(lambda: parameters.architecture(values)) == arch
    if arch is not None:
        assert parameters.architecture(parameters.of(arch)) == arch
    assert parameters.choose(lambda name, choices: values[name]) == values


def test_names_and_values_are_those_of_the_space_file() -> None:
    choices = SPACES["igc_cifar"].choices
    assert choices["stem.width"] == (16, 24, 32, 48)
    assert choices["stage1.unit"] == ("igcv1", "igcv2", "igcv3")
    assert choices["stage2.blocks"] == (1, 2, 3, 4, 6)
    assert choices["stage1.residual"] == (False, True)
    assert choices["stage3.igcv2.width"] == (128, 192, 256, 384)
    assert choices["stage3.igcv1.M"] == (4, 8, 12)
    assert "stage1.width" not in choices


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem.width": 40}, "stem.width: 40 is not one of 16, 24"),
        ({"stage1.unit": "resnet"}, "stage1.unit: 'resnet' is not one of igcv1"),
        ({"stage1.residual": 1}, "stage1.residual: 1 is not one of False, True"),
        ({"stage2.blocks": None}, "stage2.blocks is missing"),
    ],
)
def test_other_values_are_refused(changes: dict[str, Any], words: str) -> None:
    parameters = SPACES["igc_cifar"]
    values = parameters.choose(lambda _, options: options[0]) | changes
    with pytest.raises(ConfigError, match=words):
        parameters.architecture({name: value for name, value in values.items() if value is not None})
