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
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Conv, Interleave
from igc_nas.arch.plan import Plan, plan
from igc_nas.nn.lowering import chain_tuner as choice
from igc_nas.nn.lowering import native
from igc_nas.nn.lowering import network_tuner as fastest
from igc_nas.nn.lowering.chain import (
    Chain,
    Form,
    Piece,
    dense,
    factored,
    form_macs,
    forms_of,
    layout,
    semidense,
)
from igc_nas.nn.lowering.chain_tuner import NEVER_MS, ChainTuner
from igc_nas.nn.lowering.convolution import Algorithm, Algorithms, Direction, options, product
from igc_nas.nn.lowering.network_tuner import NetworkTuner
from igc_nas.nn.lowering.parts import chains_in, training_blocks
from igc_nas.nn.lowering.timing_cache import Times, TimingCache
from igc_nas.nn.lowering.training import ChainForm, LoweredNetwork, plain_form
from igc_nas.nn.network import Network
from tests.support.shares import examples
from tests.support.tuning import ARCHS, BATCH, CPU, EACH, Timed

CHAIN = Chain(
    (Conv("primary", 8, 12, 3, 1, 4), Interleave(12, 4), Conv("secondary", 12, 12, 1, 1, 3), Interleave(12, 3)), 6, 5
)
FACTORED, SEMIDENSE, DENSE = factored(CHAIN), semidense(CHAIN), dense(CHAIN)
MERGED = (Piece(1, 2), Piece(1, 1))


class Given(TimingCache):
    """A cache that knows every time."""

    def __init__(self, time_of: Timed) -> None:
        super().__init__()
        self.time_of = time_of
        self.asked: list[str] = []

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        self.asked.append(key)
        return {name: self.time_of(key, name) for name in names}


class MadeUp(TimingCache):
    """A cache that measures, and then replaces the time of each algorithm that may be used by a made-up one."""

    def __init__(self, time_of: Timed, path: Path | None = None, owner: str = "") -> None:
        super().__init__(path, owner)
        self.time_of = time_of

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        def made_up() -> Times:
            return {name: ms if ms == NEVER_MS else self.time_of(key, name) for name, ms in measure().items()}

        return super().get(key, names, made_up)


class Known(TimingCache):
    """A cache that must not measure anything."""

    def get(self, key: str, names: Iterable[str], measure: Callable[[], Times]) -> Times:
        return super().get(key, names, refuse)


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("nothing is to be timed here")


def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "raced", refuse)
    monkeypatch.setattr(fastest, "timed", refuse)
    monkeypatch.setattr(fastest, "round_robin", refuse)


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real timing, two rounds of each."""
    monkeypatch.setattr(choice, "CAP_S", 0.0)
    monkeypatch.setattr(fastest, "RACE_CAP_S", 0.0)


def raced(
    monkeypatch: pytest.MonkeyPatch, lowered_ms: float, native_ms: float | None = None, threads: int = 2
) -> list[str]:
    """Each entrant runs its steps, the times are made up: the factored network takes 1 ms. None: here is no compiler.

    Nothing is obvious from the parts. Says who ran, step by step.
    """
    script = {"native": native_ms, "lowered": lowered_ms, "factored": 1.0}
    ran: list[str] = []
    original = NetworkTuner._step

    def step_of(
        self: NetworkTuner, ours: Network, forward: Callable[[Tensor], Tensor], x: Tensor
    ) -> Callable[[], float]:
        lowered = isinstance(forward, LoweredNetwork)
        form = forward.form if lowered else "factored"
        whole_step = original(self, ours, forward, x)

        def once() -> float:
            ran.append(form)
            assert whole_step() > 0
            ms = script[form]
            assert ms is not None, "here is no compiler"
            return ms

        return once

    if native_ms is None:
        monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(fastest, "RACE_CAP_S", 0.0)
    monkeypatch.setattr(NetworkTuner, "_step", step_of)
    monkeypatch.setattr(NetworkTuner, "_is_obvious", lambda *_: False)
    return ran


def made_up(time_of: Callable[[str], float]) -> Callable[[ChainTuner, Mapping[str, Callable[[], object]]], Times]:
    """A race whose times are made up; everybody runs once."""

    def race(self: ChainTuner, runs: Mapping[str, Callable[[], object]]) -> Times:
        for run in runs.values():
            run()
        return {name: time_of(name) for name in runs}

    return race


def tuner(
    cache: TimingCache, dtype: torch.dtype = torch.float32, batch: int = BATCH, compute: Any = product
) -> ChainTuner:
    return ChainTuner(cache, batch, dtype, CPU.torch_device, compute=compute)


def chains_of(whole: Plan) -> dict[str, Chain]:
    return {chain.key: chain for _, parts in training_blocks(whole) for chain in chains_in(parts)}


def hash_of(text: str) -> int:
    return sum(number * ord(letter) for number, letter in enumerate(text, start=1)) % 997


def varied(key: str, name: str) -> float:
    return 1 + hash_of(key + name) / 100


def is_product(key: str) -> bool:
    return key.startswith(("forward", "input", "weight"))


# Chains.


def test_the_cost_of_a_form_is_that_of_its_parts() -> None:
    """Three products a segment; multiplying out where there is something to; a permutation there and back."""
    ones = tuner(Given(lambda key, name: 1.0))
    for form, first, parts in (
        (FACTORED, False, 2 * 3 + 2 * 2),
        (FACTORED, True, 2 * 3 - 1 + 2 * 2),
        (SEMIDENSE, False, 2 * 3 + 1),
        (SEMIDENSE, True, 2 * 3 - 1 + 1),
        (MERGED, False, 2 * 3 + 2),
        (DENSE, False, 3 + 1),
        (DENSE, True, 2 + 1),
    ):
        assert ones.cost(CHAIN, form, first)[0] == parts, form
    assert ones.best(CHAIN).pieces == DENSE


@pytest.mark.parametrize(
    ("slow", "form"),
    [
        (lambda key: key.startswith("p"), DENSE),
        (lambda key: is_product(key) and "c3s1g1i" in key, SEMIDENSE),
        (lambda key: key.startswith("compose"), FACTORED),
        (lambda key: is_product(key) and ("c3s1g4i" in key or "c1s1g3" in key), DENSE),
    ],
    ids=["permutations", "a dense spatial convolution", "multiplying out", "groups"],
)
def test_slow_parts_are_avoided(slow: Callable[[str], bool], form: Form) -> None:
    found = tuner(Given(lambda key, name: 100.0 if slow(key) else 1.0)).best(CHAIN)
    assert found.pieces == form


@given(st.data())
@examples(50)
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
    cache = Given(time_of)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    found = tuner(cache, dtype).best(chain, first)
    costs = {form: tuner(cache, dtype).cost(chain, form, first)[0] for form in forms_of(chain)}
    assert costs[found.pieces] == min(costs.values())
    assert_valid(chain, found, dtype)
    for position, (segment, use) in enumerate(zip(layout(chain, found.pieces), found.algorithms, strict=True)):
        cache.asked.clear()
        tuner(cache, dtype).cost(chain, found.pieces, first)
        shape = [key for key in cache.asked if key.startswith("forward")][position].removeprefix("forward")
        for direction, offered in options(segment.as_conv, dtype, BATCH * 49).items():
            if direction == "input" and first and position == 0:
                assert use.input == "conv"
            else:
                times = {algorithm: time_of(direction + shape, algorithm) for algorithm in offered}
                assert times[getattr(use, direction)] == min(times.values())


@given(st.data())
@examples(50)
def test_the_parts_of_a_form_are_timed_only_until_the_limit(data: st.DataObject) -> None:
    """A cost below the limit is exact; any other is either exact or infinite, without algorithms."""
    cache = Given(varied)
    form = data.draw(st.sampled_from([FACTORED, SEMIDENSE, MERGED, DENSE]))
    first, limit = data.draw(st.booleans()), data.draw(st.floats(0, 200))
    whole, algorithms = tuner(cache).cost(CHAIN, form, first)
    asked = len(cache.asked)
    found = tuner(cache).cost(CHAIN, form, first, limit=limit)
    if whole < limit:
        assert found == (whole, algorithms)
    else:
        assert found in ((math.inf, ()), (whole, algorithms))
        assert len(cache.asked) <= 2 * asked
    assert tuner(cache).cost(CHAIN, form, first, limit=0.0) == (math.inf, ())


def test_forms_are_timed_from_the_fewest_macs_on_and_only_while_they_may_win() -> None:
    """A form whose first product is slower than the best form is not timed any further."""
    macs = [form_macs(CHAIN, form) for form in (FACTORED, SEMIDENSE, MERGED, DENSE)]
    assert macs[0] == min(macs)
    cache = Given(lambda key, name: 1.0 if "g4" in key or "g3" in key or key.startswith("p") else 1000.0)
    found = tuner(cache).best(CHAIN)
    assert found.pieces == FACTORED
    products = [key for key in cache.asked if is_product(key)]
    assert products[:6] == [key for key in products if "g4i" in key or "g3i" in key][:6], "the factored form first"
    slow = [key for key in products[6:] if not ("g4i" in key or "g3i" in key)]
    assert all(key.startswith("forward") for key in slow), "the first slow product decides"
    assert not any(key.startswith("compose") for key in cache.asked)


def test_of_equally_fast_forms_the_one_of_fewest_macs_is_taken() -> None:
    assert tuner(Given(lambda key, name: 0.0)).best(CHAIN).pieces == FACTORED


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_form_is_allowed_and_one_of_unavailable_algorithms_is_not(
    config: ArchConfig, dtype: torch.dtype
) -> None:
    ours = tuner(Given(varied), dtype)
    for position, chain in enumerate(chains_of(plan(config)).values()):
        best = ours.best(chain, first=position == 0)
        assert ours.allows(chain, best)
        assert not ours.allows(chain, replace(best, pieces=best.pieces[:-1]))
        assert not ours.allows(chain, replace(best, algorithms=(*best.algorithms, Algorithms())))
        for form in forms_of(chain):
            plain = ChainForm(form, (Algorithms(),) * len(form))
            assert ours.allows(chain, plain)
            for at, segment in enumerate(layout(chain, form)):
                offered = options(segment.as_conv, dtype, BATCH * 49)
                for direction, algorithm in itertools.product(offered, get_args(Algorithm)):
                    use = list(plain.algorithms)
                    use[at] = replace(use[at], **{direction: algorithm})
                    allowed = ours.allows(chain, ChainForm(form, tuple(use)))
                    assert allowed == (algorithm in offered[direction]), (direction, algorithm, segment.as_conv)


def assert_valid(chain: Chain, form: ChainForm, dtype: torch.dtype = torch.float32) -> None:
    """It covers the chain, by algorithms that are available."""
    assert form.pieces in forms_of(chain)
    assert sum(piece.convs for piece in form.pieces) == len(chain.convs)
    assert len(form.algorithms) == len(form.pieces)
    for segment, use in zip(layout(chain, form.pieces), form.algorithms, strict=True):
        offered = options(segment.as_conv, dtype, BATCH * 49)
        assert use.forward in offered["forward"]
        assert use.input in offered["input"]
        assert use.weight in offered["weight"]


def test_the_first_chain_needs_no_gradient_of_its_input() -> None:
    cache = Given(lambda key, name: 1.0)
    tuner(cache).best(CHAIN, first=True)
    read = "i8o12@"
    assert not any(key.startswith("input") and read in key for key in cache.asked)
    tuner(cache).best(CHAIN)
    assert any(key.startswith("input") and read in key for key in cache.asked)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_timed_forms_cover_their_chains(config: ArchConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "times.json", "owner")
    chains = chains_of(plan(config)).values()
    found = [tuner(cache, dtype).best(chain) for chain in chains]
    for chain, form in zip(chains, found, strict=True):
        assert_valid(chain, form, dtype)
    assert all(ms > 0 for times in cache.times.values() for ms in times.values())
    known = Known(tmp_path / "times.json", "owner")
    assert [tuner(known, dtype).best(chain) for chain in chains] == found


def test_times_are_kept_in_the_file_for_their_batch_and_dtype(tmp_path: Path) -> None:
    form = tuner(MadeUp(varied, tmp_path / "times.json", "owner")).best(CHAIN)
    known = Known(tmp_path / "times.json", "owner")
    assert tuner(known).best(CHAIN) == form
    for other in (tuner(known, batch=BATCH + 1), tuner(known, torch.bfloat16), tuner(Known())):
        with pytest.raises(AssertionError):
            other.best(CHAIN)


def test_keys_are_those_of_the_files_on_disk() -> None:
    """Users keep these files: another key would have every shape timed anew."""
    cache = Given(lambda key, name: 1.0)
    for form in (FACTORED, DENSE):
        tuner(cache).cost(CHAIN, form)
    assert cache.asked == [
        "forward c3s1g4i8o12@6x5 b3 float32",
        "input c3s1g4i8o12@6x5 b3 float32",
        "weight c3s1g4i8o12@6x5 b3 float32",
        "p4of12@6x5 b3 float32",
        "forward c1s1g3i12o12@6x5 b3 float32",
        "input c1s1g3i12o12@6x5 b3 float32",
        "weight c1s1g3i12o12@6x5 b3 float32",
        "p3of12@6x5 b3 float32",
        "forward c3s1g1i8o12@6x5 b3 float32",
        "input c3s1g1i8o12@6x5 b3 float32",
        "weight c3s1g1i8o12@6x5 b3 float32",
        "compose c3g4i8o12-p4of12-c1g3i12o12-p3of12 /1 float32",
    ]


def test_only_multiplying_out_is_alike_for_all_batches() -> None:
    def keys(dtype: torch.dtype, batch: int) -> set[str]:
        cache = Given(lambda key, name: 1.0)
        tuner(cache, dtype, batch).best(CHAIN)
        return set(cache.asked)

    usual = keys(torch.float32, 3)
    shared = usual & keys(torch.float32, 4)
    assert shared == {key for key in usual if key.startswith("compose")} != set()
    assert not usual & keys(torch.bfloat16, 3)


@pytest.mark.parametrize("direction", ["forward", "input", "weight"])
@pytest.mark.parametrize("wrong", [lambda y: 1.01 * y, lambda y: y * float("nan"), lambda y: y.roll(1, 0)])
def test_an_algorithm_with_a_wrong_result_is_never_chosen(
    direction: Direction, wrong: Callable[[Tensor], Tensor]
) -> None:
    """Even if it is the fastest."""

    def spoilt(of: Direction, algorithm: Algorithm, *tensors: Any) -> Tensor:
        y = product(of, algorithm, *tensors)
        return wrong(y) if of == direction and algorithm != "conv" else y

    pointwise = Chain((Conv("pointwise", 8, 12),), 4, 4)
    others = {"forward", "input", "weight"} - {direction}
    for compute, expected in ((product, "matmul"), (spoilt, "conv")):
        cache = MadeUp(lambda key, name: 1.0 if name == "conv" else 0.1)
        (use,) = tuner(cache, compute=compute).best(pointwise).algorithms
        assert getattr(use, direction) == expected
        assert all(getattr(use, other) == "matmul" for other in others)


@EACH
def test_the_gain_of_a_chain_is_told_by_the_times_of_its_parts(config: ArchConfig) -> None:
    """The chosen form's time is what it was chosen by; the written one's is that of torch's own algorithms."""
    table = Given(varied)
    for chain in chains_of(plan(config)).values():
        for first in (False, True):
            ours = tuner(table)
            best = ours.best(chain, first)
            written, chosen = ours.gain(chain, best, first)
            assert chosen == pytest.approx(ours.cost(chain, best.pieces, first)[0])
            assert written >= ours.cost(chain, factored(chain), first)[0] * (1 - 1e-9)
            assert ours.gain(chain, plain_form(chain), first) == (written, written)
            assert chosen <= written


def test_products_are_timed_on_channels_last_noise_of_the_convolutions_shape() -> None:
    """Images of all shapes are views of one noise."""
    images: list[Tensor] = []

    def noted(of: Direction, algorithm: Algorithm, x: Tensor, weight: Tensor, grad: Tensor, conv: Conv) -> Tensor:
        images.append(x)
        return product(of, algorithm, x, weight, grad, conv)

    ours = tuner(TimingCache(), torch.bfloat16, compute=noted)
    for channels, height, width in ((4, 3, 5), (16, 7, 2), (4, 3, 5)):
        images.clear()
        ours.best(Chain((Conv("pointwise", channels, 8),), height, width))
        for x in images:
            assert x.shape == (BATCH, channels, height, width)
            assert x.dtype == torch.bfloat16
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert 0.7 < float(x.float().std()) < 1.3
