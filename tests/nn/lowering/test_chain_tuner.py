"""The form that trains fastest: what the times say is chosen, once; what is chosen is the same function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.plan import Conv, Interleave, Plan, plan
from igc_nas.nn.device import Device
from igc_nas.nn.lowering import chain_tuner as choice
from igc_nas.nn.lowering.chain import (
    Chain,
    Form,
    Piece,
    dense,
    describe,
    factored,
    form_macs,
    forms_of,
    layout,
    semidense,
)
from igc_nas.nn.lowering.chain_tuner import ChainTuner
from igc_nas.nn.lowering.convolution import Algorithm, Algorithms, options
from igc_nas.nn.lowering.parts import chains_in
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.lowering.training import ChainForm, network_parts, plain_form
from igc_nas.study.spec import Schedule

BATCH = 3
CPU = Device("cpu", "cpu", "test")
SCHEDULE = Schedule(epochs=1, batch=BATCH, lr=0.1, forms="fastest")
Timed = Callable[[str, str], float]
"""Made-up milliseconds of an alternative, by the key of its shape and its name."""


def arch(*stages: dict[str, Any]) -> ArchConfig:
    stage = [{"blocks": 1} | stage for stage in stages]
    return ArchConfig.parse({"input": (3, 7, 7), "classes": 5, "stem": {"width": 8}, "stage": stage})


IGCV1: dict[str, Any] = {"unit": "igcv1", "L": 4, "M": 3}
IGCV2: dict[str, Any] = {"unit": "igcv2", "width": 12, "depth": 3}
IGCV3: dict[str, Any] = {"unit": "igcv3", "width": 8, "expand": 2, "G1": 4, "G2": 2}
ARCHS = {
    "igcv1": arch(IGCV1 | {"blocks": 2, "kernel": 5}),
    "igcv1 residual, strided": arch(IGCV1 | {"residual": True, "stride": 2, "blocks": 2}),
    "igcv2": arch(IGCV2 | {"kernel": 5}, IGCV2 | {"width": 24, "depth": 4, "stride": 2}),
    "igcv3": arch(IGCV3 | {"blocks": 2, "kernel": 5}),
    "conv": arch({"unit": "conv", "width": 8, "residual": True}),
}
EACH = pytest.mark.parametrize("config", ARCHS.values(), ids=ARCHS.keys())
CHAIN = Chain(
    (Conv("primary", 8, 12, 3, 1, 4), Interleave(12, 4), Conv("secondary", 12, 12, 1, 1, 3), Interleave(12, 3)), 6, 5
)
FACTORED, SEMIDENSE, DENSE = factored(CHAIN), semidense(CHAIN), dense(CHAIN)
MERGED = (Piece(1, 2), Piece(1, 1))


class Given(TimingCache):
    """A table that knows every time."""

    def __init__(self, time_of: Timed) -> None:
        super().__init__()
        self.time_of = time_of
        self.asked: list[str] = []

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        self.asked.append(key)
        return {name: self.time_of(key, name) for name in names}


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("nothing is to be timed here")


def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "raced", refuse)


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real timing, three rounds of each."""
    monkeypatch.setattr(choice, "CAP_S", 0.0)


def made_up(time_of: Callable[[str], float]) -> Callable[[ChainTuner, Mapping[str, Callable[[], object]]], Times]:
    """A race whose times are made up; everybody runs once."""

    def race(self: ChainTuner, runs: Mapping[str, Callable[[], object]]) -> Times:
        for run in runs.values():
            run()
        return {name: time_of(name) for name in runs}

    return race


def chooser(table: TimingCache, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> ChainTuner:
    return ChainTuner(table, batch, dtype, CPU.torch_device)


def chains_of(whole: Plan) -> dict[str, Chain]:
    return {chain.key: chain for _, parts in network_parts(whole) for chain in chains_in(parts)}


def hash_of(text: str) -> int:
    return sum(number * ord(letter) for number, letter in enumerate(text, start=1)) % 997


def varied(key: str, name: str) -> float:
    return 1 + hash_of(key + name) / 100


def product(key: str) -> bool:
    return key.startswith(("forward", "input", "weight"))


# Chains.


def test_the_cost_of_a_form_is_that_of_its_parts() -> None:
    """Three products a stretch; multiplying out where there is something to; a permutation there and back."""
    ones = chooser(Given(lambda key, name: 1.0))
    for form, first, parts in (
        (FACTORED, False, 2 * 3 + 2 * 2),
        (FACTORED, True, 2 * 3 - 1 + 2 * 2),
        (SEMIDENSE, False, 2 * 3 + 1),
        (SEMIDENSE, True, 2 * 3 - 1 + 1),
        (MERGED, False, 2 * 3 + 2),
        (DENSE, False, 3 + 1),
        (DENSE, True, 2 + 1),
    ):
        assert ones.cost(CHAIN, form, first)[0] == parts, describe(CHAIN, form)
    assert ones.best(CHAIN).pieces == DENSE


@pytest.mark.parametrize(
    ("dear", "form"),
    [
        (lambda key: key.startswith("p"), DENSE),
        (lambda key: product(key) and "c3s1g1i" in key, SEMIDENSE),
        (lambda key: key.startswith("compose"), FACTORED),
        (lambda key: product(key) and ("c3s1g4i" in key or "c1s1g3" in key), DENSE),
    ],
    ids=["permutations", "a dense spatial convolution", "multiplying out", "groups"],
)
def test_what_is_dear_is_avoided(dear: Callable[[str], bool], form: Form) -> None:
    found = chooser(Given(lambda key, name: 100.0 if dear(key) else 1.0)).best(CHAIN)
    assert found.pieces == form


@given(st.data())
@settings(max_examples=50)
def test_the_chosen_form_is_the_cheapest(data: st.DataObject) -> None:
    """By brute force over the forms and their algorithms."""
    known: dict[tuple[str, str], float] = {}

    def time_of(key: str, name: str) -> float:
        if (key, name) not in known:
            known[key, name] = data.draw(st.floats(0.01, 10))
        return known[key, name]

    first = data.draw(st.booleans())
    chains = chains_of(plan(ARCHS[data.draw(st.sampled_from(sorted(ARCHS)))]))
    chain = data.draw(st.sampled_from(list(chains.values())))
    table = Given(time_of)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    found = chooser(table, dtype).best(chain, first)
    costs = {form: chooser(table, dtype).cost(chain, form, first)[0] for form in forms_of(chain)}
    assert costs[found.pieces] == min(costs.values())
    assert_valid(chain, found, dtype)
    for position, (stretch, use) in enumerate(zip(layout(chain, found.pieces), found.algorithms, strict=True)):
        table.asked.clear()
        chooser(table, dtype).cost(chain, found.pieces, first)
        shape = [key for key in table.asked if key.startswith("forward")][position].removeprefix("forward")
        for direction, offered in options(stretch.as_conv, dtype, BATCH * 49).items():
            if direction == "input" and first and position == 0:
                assert use.input == "conv"
            else:
                times = {algorithm: time_of(direction + shape, algorithm) for algorithm in offered}
                assert times[getattr(use, direction)] == min(times.values())


@given(st.data())
@settings(max_examples=50)
def test_a_cost_is_counted_no_further_than_its_limit(data: st.DataObject) -> None:
    """What is below the limit is told in full; what is not is either told in full or infinite, without algorithms."""
    table = Given(varied)
    form = data.draw(st.sampled_from([FACTORED, SEMIDENSE, MERGED, DENSE]))
    first, limit = data.draw(st.booleans()), data.draw(st.floats(0, 200))
    whole, algorithms = chooser(table).cost(CHAIN, form, first)
    asked = len(table.asked)
    found = chooser(table).cost(CHAIN, form, first, limit=limit)
    if whole < limit:
        assert found == (whole, algorithms)
    else:
        assert found in ((math.inf, ()), (whole, algorithms))
        assert len(table.asked) <= 2 * asked
    assert chooser(table).cost(CHAIN, form, first, limit=0.0) == (math.inf, ())


def test_forms_are_gone_through_from_few_macs_on_as_far_as_they_may_win() -> None:
    """What is dear from its first product on is not timed any further."""
    macs = [form_macs(CHAIN, form) for form in (FACTORED, SEMIDENSE, MERGED, DENSE)]
    assert macs[0] == min(macs)
    table = Given(lambda key, name: 1.0 if "g4" in key or "g3" in key or key.startswith("p") else 1000.0)
    found = chooser(table).best(CHAIN)
    assert found.pieces == FACTORED
    products = [key for key in table.asked if product(key)]
    assert products[:6] == [key for key in products if "g4i" in key or "g3i" in key][:6], "the factored form first"
    dear = [key for key in products[6:] if not ("g4i" in key or "g3i" in key)]
    assert all(key.startswith("forward") for key in dear), "the first dear product decides"
    assert not any(key.startswith("compose") for key in table.asked)


def test_of_equally_fast_forms_the_one_of_fewest_macs_is_taken() -> None:
    assert chooser(Given(lambda key, name: 0.0)).best(CHAIN).pieces == FACTORED


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_chosen_is_allowed_and_what_no_convolution_offers_is_not(
    config: ArchConfig, dtype: torch.dtype
) -> None:
    ours = chooser(Given(varied), dtype)
    for position, chain in enumerate(chains_of(plan(config)).values()):
        best = ours.best(chain, first=position == 0)
        assert ours.allows(chain, best)
        assert not ours.allows(chain, replace(best, pieces=best.pieces[:-1]))
        assert not ours.allows(chain, replace(best, algorithms=(*best.algorithms, Algorithms())))
        for form in forms_of(chain):
            plain = ChainForm(form, (Algorithms(),) * len(form))
            assert ours.allows(chain, plain)
            for at, stretch in enumerate(layout(chain, form)):
                offered = options(stretch.as_conv, dtype, BATCH * 49)
                for direction, algorithm in itertools.product(offered, get_args(Algorithm)):
                    use = list(plain.algorithms)
                    use[at] = replace(use[at], **{direction: algorithm})
                    allowed = ours.allows(chain, ChainForm(form, tuple(use)))
                    assert allowed == (algorithm in offered[direction]), (direction, algorithm, stretch.as_conv)


def assert_valid(chain: Chain, form: ChainForm, dtype: torch.dtype = torch.float32) -> None:
    """It covers the chain, by algorithms that exist."""
    assert form.pieces in forms_of(chain)
    assert sum(piece.convs for piece in form.pieces) == len(chain.convs)
    assert len(form.algorithms) == len(form.pieces)
    for stretch, use in zip(layout(chain, form.pieces), form.algorithms, strict=True):
        offered = options(stretch.as_conv, dtype, BATCH * 49)
        assert use.forward in offered["forward"]
        assert use.input in offered["input"]
        assert use.weight in offered["weight"]


def test_the_first_chain_needs_no_gradient_of_its_input() -> None:
    table = Given(lambda key, name: 1.0)
    chooser(table).best(CHAIN, first=True)
    read = "i8o12@"
    assert not any(key.startswith("input") and read in key for key in table.asked)
    chooser(table).best(CHAIN)
    assert any(key.startswith("input") and read in key for key in table.asked)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_timed_forms_cover_their_chains(
    config: ArchConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried(monkeypatch)
    table = TimingCache()
    chains = chains_of(plan(config)).values()
    found = [chooser(table, dtype).best(chain) for chain in chains]
    for chain, form in zip(chains, found, strict=True):
        assert_valid(chain, form, dtype)
    assert all(ms > 0 for times in table.times.values() for ms in times.values())
    untimed(monkeypatch)
    assert [chooser(table, dtype).best(chain) for chain in chains] == found


def test_times_are_kept_in_the_file_for_their_batch_and_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChainTuner, "_race", made_up(lambda name: varied("", name)))
    table = TimingCache(tmp_path / "times.json", "owner")
    form = chooser(table).best(CHAIN)
    table.save()
    monkeypatch.setattr(ChainTuner, "_race", refuse)
    assert chooser(TimingCache(tmp_path / "times.json", "owner")).best(CHAIN) == form
    for other in (chooser(table, batch=BATCH + 1), chooser(table, torch.bfloat16), chooser(TimingCache())):
        with pytest.raises(AssertionError):
            other.best(CHAIN)


def test_only_multiplying_out_is_alike_for_all_batches() -> None:
    def keys(dtype: torch.dtype, batch: int) -> set[str]:
        table = Given(lambda key, name: 1.0)
        chooser(table, dtype, batch).best(CHAIN)
        return set(table.asked)

    usual = keys(torch.float32, 3)
    shared = usual & keys(torch.float32, 4)
    assert shared == {key for key in usual if key.startswith("compose")} != set()
    assert not usual & keys(torch.bfloat16, 3)


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("wrong", [lambda y: 1.01 * y, lambda y: y * float("nan"), lambda y: y.roll(1, 0)])
def test_an_algorithm_that_computes_something_else_is_out_of_the_question(
    direction: str, wrong: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast it is."""
    monkeypatch.setattr(ChainTuner, "_race", made_up(lambda name: 1.0 if name == "conv" else 0.1))
    right = getattr(choice, direction)

    def spoilt(*given: Any) -> Tensor:
        y = right(*given)
        return y if given[-1] == "conv" else wrong(y)

    pointwise = Chain((Conv("pointwise", 8, 12),), 4, 4)
    others = {"forward", "input", "weight"} - {direction.partition("_")[0]}
    for spoil, algorithm in ((right, "matmul"), (spoilt, "conv")):
        monkeypatch.setattr(choice, direction, spoil)
        (use,) = chooser(TimingCache()).best(pointwise).algorithms
        assert getattr(use, direction.partition("_")[0]) == algorithm
        assert all(getattr(use, other) == "matmul" for other in others)


@EACH
def test_the_gain_of_a_chain_is_told_by_the_times_of_its_parts(config: ArchConfig) -> None:
    """The chosen form's time is what it was chosen by; the written one's is that of torch's own algorithms."""
    table = Given(varied)
    for chain in chains_of(plan(config)).values():
        for first in (False, True):
            ours = chooser(table)
            best = ours.best(chain, first)
            written, chosen = ours.gain(chain, best, first)
            assert chosen == pytest.approx(ours.cost(chain, best.pieces, first)[0])
            assert written >= ours.cost(chain, factored(chain), first)[0] * (1 - 1e-9)
            assert ours.gain(chain, plain_form(chain), first) == (written, written)
            assert chosen <= written


def test_times_hold_however_the_noise_was_laid_out() -> None:
    """Images of any shape are cut from one store of noise: channels-last, normal, no two shapes of another size."""
    ours = chooser(TimingCache(), torch.bfloat16)
    for channels, height, width in ((4, 3, 5), (16, 7, 2), (4, 3, 5)):
        x = ours._image(channels, height, width)
        assert x.shape == (BATCH, channels, height, width)
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert 0.7 < float(x.float().std()) < 1.3
