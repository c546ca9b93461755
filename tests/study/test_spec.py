import json
import pickle
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.arch.cost import cost_of
from igc_nas.errors import ConfigError, InfeasibleError, StudyError
from igc_nas.io.records import differences, restricted
from igc_nas.space.budget import Budget
from igc_nas.study.pareto import hypervolume
from igc_nas.study.spec import LEAST_ERROR_SHARE, SCHEMA, Calibration, StudySpec, default_name
from tests.support.builders import SMALL_SPACES, one_line, space_of, taken
from tests.support.studies import make_spec, make_study

STUDY = make_study(1)
SPEC = STUDY.spec


def small_spec(**changes: Any) -> StudySpec:
    space = space_of(SMALL_SPACES["clashing"])
    return make_spec(space=space.file.to_dict(), space_name="clashing", **({"budget": {}, "bounds": {}} | changes))


def calibration(fast: float, slow: float) -> Calibration:
    smallest, largest = (STUDY.candidates[0].latency.model_copy(update={"normalised_ms": ms}) for ms in (fast, slow))
    return Calibration(reference_ms=4.0, smallest=smallest, largest=largest)


@given(
    st.builds(
        Budget,
        params=st.none() | st.integers(1, 10**12),
        macs=st.none() | st.integers(1, 10**12),
        latency_ms=st.none() | st.floats(1e-300, 1e300),
    ),
    st.sampled_from([["error", "params"], ["error", "macs", "latency"], ["flops", "activations"]]),
    st.integers(0, 2**63 - 1),
    st.text(max_size=20),
    st.floats(1e-300, 100),
)
def test_toml_round_trip(budget: Budget, objectives: list[str], seed: int, name: str, lr: float) -> None:
    spec = make_spec(
        budget=budget.model_dump(exclude_none=True), objectives=objectives, seed=seed, dataset=name, bounds={}
    )
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"lr": lr})})
    again = StudySpec.from_toml(spec.to_toml())
    assert again == spec
    assert again.to_toml() == spec.to_toml()
    assert list(differences(spec.to_dict(), again.to_dict())) == []


def test_the_space_is_kept_whole() -> None:
    again = StudySpec.from_toml(small_spec().to_toml())
    assert again.search_space.size == space_of(SMALL_SPACES["clashing"]).size


@pytest.mark.parametrize("schema", [SCHEMA + 1, 99, 2**62])
def test_a_newer_schema_is_refused_with_the_command_to_upgrade(schema: int) -> None:
    text = SPEC.to_toml().replace(f"schema = {SCHEMA}", f"schema = {schema}\nnew_key = 3")
    with pytest.raises(StudyError, match=f"written by a newer igc-nas .schema {schema}; this one reads") as raised:
        StudySpec.from_toml(text, "old/study.toml")
    assert raised.value.hint == "pip install --upgrade igc-nas"
    assert one_line(raised).startswith("old/study.toml: ")


def with_value(path: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(SPEC.to_dict()))
    *tables, key = path.split(".")
    table = data
    for name in tables:
        table = table[name]
    table[key] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 0),
        ("schema", "1"),
        ("schema", True),
        ("name", 3),
        ("classes", 1),
        ("dataset", ["cifar10"]),
        ("objectives", []),
        ("objectives", ["params"]),
        ("goal", "beauty"),
        ("budget", {"params": 5, "min_params": 6}),
        ("objectives", ["error", "error"]),
        ("objectives", ["error", "size"]),
        ("objectives", ["error", "params", "macs", "latency"]),
        ("objectives", "error,params"),
        ("objectives", ["error", 3]),
        ("objectives", ["error", "par\nams"]),
        ("sampler", "cmaes"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.0),
        ("budget", 3),
        ("budget", {"params": 0}),
        ("budget", {"params": "2M"}),
        ("budget", {"latency_ms": -1.0}),
        ("budget", {"flops": 3}),
        ("recipe.epochs", 0),
        ("recipe.lr", float("inf")),
        ("recipe.lr", float("nan")),
        ("recipe.lr", 0),
        ("recipe.dtype", "float64"),
        ("recipe.command", "rm"),
        ("latency.device", None),
        ("latency.runtime", "cmd"),
        ("latency.batch", 0),
        ("latency.command", "./measure"),
        ("reference_ms", 0.0),
        ("bounds", {"params": [10, 10]}),
        ("bounds", {"params": [10, 5]}),
        ("bounds", {"params": [0, 10]}),
        ("bounds", {"error": [-0.1, 1]}),
        ("bounds", {"error": [0]}),
        ("bounds", {"beauty": [0, 1]}),
        ("bounds", {"a\nb": [0, 1]}),
        ("bounds", {"a\nb": [0]}),
        ("space", {}),
        ("space", "igc_cifar"),
        ("command", "rm -rf"),
        ("database", "postgresql://"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_study_with_an_invalid_value_is_refused(path: str, value: Any) -> None:
    data = with_value(path, value) if value is not None else SPEC.to_dict() | {"latency": {}}
    with pytest.raises(StudyError) as raised:
        StudySpec.from_toml(tomli_w.dumps(data), "s/study.toml")
    assert one_line(raised).startswith("s/study.toml: ")


@given(
    st.integers(0, 3000), st.integers(0, 20), st.text(alphabet=st.characters() | st.sampled_from('[]="\n0'), max_size=8)
)
def test_a_damaged_study_is_read_or_refused(start: int, length: int, put: str) -> None:
    text = SPEC.to_toml()
    spec = taken(lambda: StudySpec.from_toml(text[:start] + put + text[start + length :]))
    assert spec is None or StudySpec.from_toml(spec.to_toml()) == spec


def test_differences_name_both_values() -> None:
    other = make_spec(
        seed=1,
        objectives=["error", "params"],
        recipe=SPEC.recipe.model_dump() | {"epochs": 3},
        budget={"params": 1_000_000, "macs": 50_000_000},
    )
    found = list(differences(other.to_dict(), SPEC.to_dict()))
    assert "recipe.epochs: 3 asked for, 2 in the study" in found
    assert "seed: 1 asked for, 0 in the study" in found
    assert "budget.params: 1000000 asked for, 2000000 in the study" in found
    assert "budget.macs: 50000000 asked for, none in the study" in found
    assert "objectives: ['error', 'params'] asked for, ['error', 'params', 'latency'] in the study" in found
    assert [line for line in found if line.startswith(("name", "space", "dataset", "latency"))] == []


def test_keys_that_are_not_asked_for_make_no_difference() -> None:
    asked = {"recipe": {"epochs": 2}}
    assert list(differences(asked, restricted(SPEC.to_dict(), asked))) == []
    assert list(differences({}, SPEC.to_dict())) != []


GOALS = st.sampled_from(["best-error", "front"])


@given(GOALS, st.floats(0, 0.8), st.floats(0, 1), st.floats(0, 1))
def test_a_lower_least_error_counts_its_share_up_to_the_budget(goal: Any, error: float, a: float, b: float) -> None:
    """What a network at the budget adds to one of higher error, in the volume of what it would add at no cost."""
    spec = SPEC.model_copy(update={"goal": goal, "objectives": ("error", "params")})
    low, high = spec.bounds["params"]
    sizes = [low * (high / low) ** share for share in (a, b)]
    before = spec.scaled({"error": 0.9, "params": low})
    points = [spec.scaled({"error": error, "params": size}) for size in (low, *sizes, high)]
    free, *between, at_the_budget = [hypervolume([before, point], (1, 1)) for point in points]
    assert at_the_budget == pytest.approx(LEAST_ERROR_SHARE[goal] * free, abs=1e-9)
    assert all(at_the_budget - 1e-9 <= volume <= free + 1e-9 for volume in between)


def test_a_study_without_a_goal_has_its_reference_point_at_the_budget() -> None:
    assert SPEC.goal is None
    assert SPEC.scale_bounds("params") == SPEC.bounds["params"]
    assert "goal" not in SPEC.to_dict()


def test_known_bounds_begin_at_a_lower_limit() -> None:
    least, most = small_spec().known_bounds()["params"]
    middle = int((least + most) / 2)
    assert small_spec(budget={"min_params": middle}).known_bounds()["params"] == (middle, most)


def test_known_bounds_reach_from_the_smallest_network_to_the_budget_or_the_largest() -> None:
    space = small_spec().search_space
    params = [cost_of(end("params")).params for end in (space.smallest, space.largest)]
    macs = [cost_of(end("macs")).macs for end in (space.smallest, space.largest)]
    bounds = small_spec().known_bounds()
    assert bounds["error"] == (0.0, 0.9)
    assert bounds["params"] == tuple(params)
    assert bounds["macs"] == tuple(macs)
    assert bounds["flops"] == (2 * macs[0], 2 * macs[1])
    middle = sum(params) // 2
    assert small_spec(budget={"params": middle}).known_bounds()["params"] == (params[0], middle)
    assert small_spec(budget={"params": params[1] * 9}).known_bounds()["params"] == tuple(params)
    low, high = small_spec(budget={"params": params[0]}).known_bounds()["params"]
    assert low < high
    assert small_spec(classes=100, budget={}).known_bounds()["error"] == (0.0, 0.99)


@pytest.mark.parametrize(
    ("fast", "slow", "limit", "expected"),
    [
        (1.0, 8.0, None, (1.0, 8.0)),
        (1.0, 8.0, 5.0, (1.0, 5.0)),
        (1.0, 8.0, 50.0, (1.0, 8.0)),
        (8.0, 1.0, None, (1.0, 8.0)),
        (2.0, 2.0, None, (2.0, 2.02)),
        (2.0, 8.0, 1.0, (2.0, 8.0)),
    ],
)
def test_with_scale_fixes_the_scale_of_latency(
    fast: float, slow: float, limit: float | None, expected: tuple[float, float]
) -> None:
    budget = {"latency_ms": limit} if limit else {}
    spec = small_spec(budget=budget, reference_ms=None).with_scale(calibration(fast, slow))
    assert spec.bounds["latency"] == pytest.approx(expected)
    assert spec.reference_ms == 4.0
    assert StudySpec.from_toml(spec.to_toml()) == spec
    for name, (low, high) in spec.bounds.items():
        assert spec.scaled({name: low}) == (0.0,)
        assert spec.scaled({name: high}) == pytest.approx((1.0,))


def test_the_scale_is_linear_in_the_error_and_logarithmic_in_costs() -> None:
    spec = small_spec(bounds={"error": [0.0, 0.5], "params": [100.0, 10_000.0]})
    assert spec.scaled({"error": 0.25, "params": 1000}) == pytest.approx((0.5, 0.5))
    assert spec.scaled({"params": 10}) == (0.0,)
    assert spec.scaled({"params": 10**6})[0] == pytest.approx(2.0)


def test_a_copy_with_another_budget_or_other_classes_has_its_own_counts() -> None:
    spec = small_spec()
    counted, least = spec.feasible.count, cost_of(spec.search_space.smallest("params")).params
    limited = spec.model_copy(update={"budget": Budget(params=least + 100)})
    assert counted == spec.search_space.size
    assert (limited.feasible.budget, limited.feasible.limits) == (limited.budget, {"params": least + 100})
    assert 0 < limited.feasible.count < counted
    again = limited.model_copy(update={"budget": Budget()})
    assert (again.feasible.limits, again.feasible.count) == ({}, counted)
    hundred = spec.model_copy(update={"classes": 100})
    assert (hundred.search_space.classes, spec.search_space.classes) == (100, 10)
    assert cost_of(hundred.search_space.smallest("params")).params > least


def test_a_copy_with_the_same_space_and_budget_shares_the_counts() -> None:
    spec = small_spec()
    copy = spec.model_copy(update={"seed": 3, "sampler": "random"})
    again = StudySpec.from_toml(spec.to_toml())
    assert spec.feasible is copy.feasible is again.feasible
    assert pickle.dumps(spec) == pickle.dumps(small_spec())  # the counts are not sent to workers


def test_equal_spaces_with_their_keys_in_another_order_number_their_parameters_otherwise() -> None:
    keys = {"blocks": [1, 2], "kernel": [3, 5], "conv": {"width": 8}}
    orders = (keys, dict(reversed(keys.items())))
    one, other = (make_spec(space={"stem": {"width": 8}, "stage": [each]}, budget={}, bounds={}) for each in orders)
    assert one.space == other.space
    assert list(one.search_space.parameters) == ["stage1.blocks", "stage1.kernel"]
    assert list(other.search_space.parameters) == ["stage1.kernel", "stage1.blocks"]


def test_a_space_with_0_for_false_is_refused_after_an_equal_one_was_read() -> None:
    stage = {"conv": {"width": 8}, "blocks": 1}
    right, wrong = (
        make_spec(space={"stem": {"width": 8}, "stage": [stage | {"residual": no}]}, budget={}, bounds={})
        for no in (False, 0)
    )
    assert right.space == wrong.space
    assert right.search_space.size == 1
    with pytest.raises(ConfigError, match="residual"):
        _ = wrong.search_space


def test_feasible_refuses_an_impossible_budget() -> None:
    with pytest.raises(InfeasibleError, match="the smallest architecture in clashing has"):
        _ = small_spec(budget={"params": 1}).feasible


def test_names_of_studies() -> None:
    assert default_name("igc_cifar", "cifar10", Budget(params=2_000_000), 0) == "igc_cifar-cifar10-params2M-s0"
    assert default_name("tiny", "shapes", Budget(), 7) == "tiny-shapes-any-s7"
    budget = Budget(params=650_308, macs=30_000_000, latency_ms=2.5)
    assert str(budget) == "params650308-macs30M-latency2.5ms"
