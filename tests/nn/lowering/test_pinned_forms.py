"""Pinned forms are chosen once and read back equal; a damaged file is named; an impossible form is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Conv, Interleave
from igc_nas.arch.plan import plan
from igc_nas.errors import IgcNasError, StudyError
from igc_nas.nn.lowering.chain import Chain, Form, Piece, dense, factored, forms_of, is_form, layout
from igc_nas.nn.lowering.chain_tuner import ChainTuner
from igc_nas.nn.lowering.convolution import Algorithm, Algorithms, options
from igc_nas.nn.lowering.parts import chains_in
from igc_nas.nn.lowering.pinned_forms import FORMS_FILE, PinnedForms
from igc_nas.nn.lowering.timing_cache import TimingCache
from igc_nas.nn.lowering.training import (
    ChainForm,
    LoweredChain,
    LoweredNetwork,
    NetworkForm,
    plain_form,
    training_blocks,
)
from igc_nas.nn.network import build
from tests.support.builders import divisors, one_line
from tests.support.shares import examples

T = TypeVar("T")

SHARED = examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
CHAIN = Chain(
    (Conv("primary", 8, 12, 3, 1, 4), Interleave(12, 4), Conv("secondary", 12, 12, 1, 1, 3), Interleave(12, 3)), 6, 5
)
ALONE = Chain((Conv("depthwise", 8, 8, 5, 1, 8),), 6, 5)
TUNED = ChainForm((Piece(2, 1),), (Algorithms("matmul", "flip", "matmul"),))


def refuse() -> Any:
    raise AssertionError("this is pinned")


def fits(chain: Chain, dtype: torch.dtype = torch.bfloat16) -> Callable[[ChainForm], bool]:
    """The check that training makes of a form from the file."""
    return partial(ChainTuner(TimingCache(), 4, dtype, torch.device("cpu")).allows, chain)


def choosing(form: ChainForm) -> Callable[[], ChainForm]:
    return lambda: form


@st.composite
def chain_forms(draw: st.DrawFn, chain: Chain = CHAIN) -> ChainForm:
    """The forms that may be chosen, with available algorithms."""
    alone = tuple(Piece(1, draw(divisors(conv.groups))) for conv in chain.convs)
    pieces = draw(st.sampled_from([*forms_of(chain), alone]))
    offered = [options(segment.as_conv, torch.bfloat16, 100).values() for segment in layout(chain, pieces)]
    return ChainForm(pieces, tuple(Algorithms(*(draw(st.sampled_from(of)) for of in each)) for each in offered))


# Chosen once.


def test_a_form_is_chosen_once_and_read_back(tmp_path: Path) -> None:
    first = PinnedForms(tmp_path)
    assert first.chain_form("key", choosing(TUNED), fits(CHAIN)) == TUNED
    assert first.network_form("id", lambda: "lowered") == "lowered"
    for pins in (first, PinnedForms(tmp_path)):
        assert pins.chain_form("key", refuse, fits(CHAIN)) == TUNED
        assert pins.network_form("id", refuse) == "lowered"
    assert FORMS_FILE in {path.name for path in tmp_path.iterdir()} <= {FORMS_FILE, "forms.lock"}


@given(
    st.dictionaries(st.text(), chain_forms(), max_size=4),
    st.dictionaries(st.text(), st.sampled_from(get_args(NetworkForm))),
)
@SHARED
def test_any_forms_are_read_back(
    tmp_path: Path, chains: dict[str, ChainForm], networks: dict[str, NetworkForm]
) -> None:
    (tmp_path / FORMS_FILE).unlink(missing_ok=True)
    pins = PinnedForms(tmp_path)
    for key, form in chains.items():
        pins.chain_form(key, choosing(form), fits(CHAIN))
    for key, form in networks.items():
        pins.network_form(key, lambda form=form: form)
    for again in (pins, PinnedForms(tmp_path)):
        assert {key: again.chain_form(key, refuse, fits(CHAIN)) for key in chains} == chains
        assert {key: again.network_form(key, refuse) for key in networks} == networks


def test_without_a_folder_forms_are_kept_in_memory() -> None:
    pins = PinnedForms()
    pins.chain_form("key", choosing(TUNED), fits(CHAIN))
    pins.network_form("id", lambda: "factored")
    assert pins.chain_form("key", refuse, fits(CHAIN)) == TUNED
    assert pins.network_form("id", refuse) == "factored"
    assert PinnedForms().chain_form("key", choosing(plain_form(CHAIN)), fits(CHAIN)) == plain_form(CHAIN)


def test_two_workers_that_choose_in_turn_keep_each_others_forms(tmp_path: Path) -> None:
    """Each reads the forms that the other has written meanwhile."""
    one, other = PinnedForms(tmp_path), PinnedForms(tmp_path)
    one.chain_form("a", choosing(TUNED), fits(CHAIN))
    other.chain_form("b", choosing(plain_form(ALONE)), fits(ALONE))
    one.network_form("n", lambda: "lowered")
    assert other.chain_form("a", refuse, fits(CHAIN)) == TUNED
    assert one.chain_form("b", refuse, fits(ALONE)) == plain_form(ALONE)
    assert other.network_form("n", refuse) == "lowered"


def test_a_choice_that_fails_pins_nothing(tmp_path: Path) -> None:
    for choose in (
        lambda: PinnedForms(tmp_path).chain_form("key", refuse, fits(CHAIN)),
        lambda: PinnedForms(tmp_path).network_form("id", refuse),
    ):
        with pytest.raises(AssertionError):
            choose()
    assert not (tmp_path / FORMS_FILE).exists()


def test_of_two_forms_chosen_at_once_both_workers_use_the_first(tmp_path: Path) -> None:
    """Two workers begin the same network: both train in one form."""
    one, other = PinnedForms(tmp_path), PinnedForms(tmp_path)
    plain = plain_form(CHAIN)

    def meanwhile() -> ChainForm:
        assert other.chain_form("key", choosing(plain), fits(CHAIN)) == plain
        return TUNED

    assert one.chain_form("key", meanwhile, fits(CHAIN)) == plain

    def network_meanwhile() -> NetworkForm:
        assert other.network_form("id", lambda: "native") == "native"
        return "lowered"

    assert one.network_form("id", network_meanwhile) == "native"
    for pins in (one, other, PinnedForms(tmp_path)):
        assert pins.chain_form("key", refuse, fits(CHAIN)) == plain
        assert pins.network_form("id", refuse) == "native"


def test_an_impossible_form_pinned_by_another_worker_meanwhile_is_refused(tmp_path: Path) -> None:
    one, other = PinnedForms(tmp_path), PinnedForms(tmp_path)

    def meanwhile() -> ChainForm:
        other.chain_form("key", choosing(plain_form(ALONE)), fits(ALONE))
        return TUNED

    with pytest.raises(StudyError, match="cannot run here"):
        one.chain_form("key", meanwhile, fits(CHAIN))
    assert PinnedForms(tmp_path).chain_form("key", refuse, fits(ALONE)) == plain_form(ALONE)


def test_a_missing_folder_is_a_study_error(tmp_path: Path) -> None:
    with pytest.raises(IgcNasError, match="cannot write"):
        PinnedForms(tmp_path / "none").network_form("id", lambda: "lowered")


@pytest.mark.parametrize("folder", ["text", "text/folder"])
def test_an_invalid_folder_is_a_study_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "text").write_text("hello")
    for choose in (
        lambda: PinnedForms(tmp_path / folder).network_form("id", lambda: "lowered"),
        lambda: PinnedForms(tmp_path / folder).chain_form("key", choosing(TUNED), fits(CHAIN)),
    ):
        with pytest.raises(IgcNasError) as raised:
            choose()
        one_line(raised)


# A damaged file.


def write(folder: Path, data: Any) -> Path:
    path = folder / FORMS_FILE
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def assert_refused(folder: Path) -> None:
    """The error names it in one line, and the file is not modified."""
    path = folder / FORMS_FILE
    before = path.read_bytes()
    for read in (
        lambda: PinnedForms(folder).chain_form("key", refuse, fits(CHAIN)),
        lambda: PinnedForms(folder).network_form("id", refuse),
    ):
        with pytest.raises(StudyError) as raised:
            read()
        assert str(path) in one_line(raised)
        assert str(path) in (raised.value.hint or "")
    assert path.read_bytes() == before


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    pins = PinnedForms(tmp_path)
    pins.chain_form("kéy", choosing(TUNED), fits(CHAIN))
    pins.network_form("id", lambda: "lowered")
    whole = (tmp_path / FORMS_FILE).read_bytes()
    for length in range(0, len(whole) - 1, 3):
        write(tmp_path, whole[:length])
        assert_refused(tmp_path)


PIECE: dict[str, Any] = {"convs": 2, "groups": 1}


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"chains": []},
        {"chains": {"key": [PIECE | {"convs": 0}]}},
        {"chains": {"key": [PIECE | {"convs": -2}]}},
        {"chains": {"key": [PIECE | {"convs": 2.0}]}},
        {"chains": {"key": [PIECE | {"convs": "2"}]}},
        {"chains": {"key": [PIECE | {"groups": True}]}},
        {"chains": {"key": [PIECE | {"groups": 0}]}},
        {"chains": {"key": [PIECE | {"forward": "fft"}]}},
        {"chains": {"key": [PIECE | {"forward": None}]}},
        {"chains": {"key": [PIECE | {"more": 1}]}},
        {"chains": {"key": [{"convs": 2}]}},
        {"chains": {"key": PIECE}},
        {"chains": {"another key": None}},
        {"networks": {"id": "dense"}},
        {"networks": {"id": 1}},
        {"networks": {"id\n\x1b[0m": 1}},
        {"forms": {}},
        b'{"chains": {"key": [{"convs": 1e400, "groups": 1}]}}',
        b'{"chains": {"key": [{"convs": NaN, "groups": 1}]}}',
        b'{"networks": {"\xff": "lowered"}}',
        b'{"networks": {"\\ud800": "lowered"}}',
        b"[" * 100_000,
        b'{"chains": {"key": ' + b"[" * 100_000,
        b"",
        b"\0",
        b'{} {"networks": {}}',
    ],
)
def test_a_file_of_other_content_is_refused(tmp_path: Path, data: Any) -> None:
    write(tmp_path, data)
    assert_refused(tmp_path)


@given(st.binary(max_size=60) | st.text().map(str.encode))
@SHARED
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, data)
    assert_refused(tmp_path)


@given(st.data())
@SHARED
def test_a_file_with_a_changed_byte_is_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / FORMS_FILE).unlink(missing_ok=True)
    pins = PinnedForms(tmp_path)
    pins.chain_form("key", choosing(TUNED), fits(CHAIN))
    pins.network_form("id", lambda: "lowered")
    changed = bytearray((tmp_path / FORMS_FILE).read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    write(tmp_path, bytes(changed))
    assert_read_or_refused(tmp_path)


def assert_read_or_refused(folder: Path) -> None:
    """Reading returns forms, or raises an error of one line that names the file."""
    form = unless_refused(
        folder, lambda: PinnedForms(folder).chain_form("key", choosing(plain_form(CHAIN)), fits(CHAIN))
    )
    network = unless_refused(folder, lambda: PinnedForms(folder).network_form("id", lambda: "factored"))
    assert (form is None) == (network is None)
    if form is not None:
        assert sum(piece.convs for piece in form.pieces) == len(CHAIN.convs)
        assert len(form.pieces) == len(form.algorithms)
        assert fits(CHAIN)(form)
        assert network in get_args(NetworkForm)


def unless_refused(folder: Path, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except StudyError as error:
        message = error.message
    assert str(folder / FORMS_FILE) in message
    assert message.isprintable()
    return None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["conv", "lowered"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["key", "id", "convs", "groups", "forward", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON, JSON)
@SHARED
def test_reading_any_json_returns_forms_or_raises(tmp_path: Path, chains: Any, networks: Any) -> None:
    for data in (chains, {"chains": chains, "networks": networks}, {"chains": {"key": [chains]}}):
        write(tmp_path, data)
        assert_read_or_refused(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / FORMS_FILE).mkdir()
    with pytest.raises(IgcNasError):
        PinnedForms(tmp_path).network_form("id", refuse)


def test_a_file_of_no_entries_pins_nothing(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert PinnedForms(tmp_path).chain_form("key", choosing(TUNED), fits(CHAIN)) == TUNED
    assert PinnedForms(tmp_path).chain_form("key", refuse, fits(CHAIN)) == TUNED


# A form that does not fit.


@pytest.mark.parametrize("counts", [[], [1], [3], [1, 1, 1], [1, 2], [2**70]])
def test_a_form_of_another_length_is_refused(tmp_path: Path, counts: list[int]) -> None:
    pieces = [{"convs": count, "groups": 1} for count in counts]
    write(tmp_path, {"chains": {"key": pieces}, "networks": {"id": "lowered"}})
    text = (tmp_path / FORMS_FILE).read_bytes()
    with pytest.raises(StudyError, match="cannot run here"):
        PinnedForms(tmp_path).chain_form("key", choosing(TUNED), fits(CHAIN))
    assert PinnedForms(tmp_path).network_form("id", refuse) == "lowered"
    assert (tmp_path / FORMS_FILE).read_bytes() == text


ARCH = ArchConfig.parse(
    {
        "input": (3, 6, 5),
        "classes": 4,
        "stem": {"width": 8},
        "stage": [{"unit": "igcv1", "L": 4, "M": 3, "kernel": 5, "blocks": 2}],
    }
)
WHOLE = plan(ARCH)
CHAINS = {chain.key: chain for _, parts in training_blocks(WHOLE) for chain in chains_in(parts)}
LAST = list(CHAINS.values())[-1]
"""5x5 in 4 groups, interleave, 1x1 in 3 groups, interleave; its input needs a gradient."""


def pinned(*pieces: tuple[int, int], **algorithms: Algorithm) -> list[dict[str, Any]]:
    return [{"convs": convs, "groups": groups, **algorithms} for convs, groups in pieces]


IMPOSSIBLE = {
    "groups that divide nothing": pinned((1, 3), (1, 3)),
    "more groups than there are": pinned((1, 8), (1, 3)),
    "groups of many convolutions": pinned((2, 2)),
    "the first one's groups of many convolutions": pinned((2, 4)),
    "windows of a grouped convolution": pinned((1, 4), (1, 3), forward="matmul"),
    "pixels for the input of a 5x5": pinned((2, 1), input="matmul"),
    "windows for a grouped weight": pinned((1, 4), (1, 3), weight="matmul"),
    "tiles of a dense convolution": pinned((2, 1), weight="tiles"),
}


def step(pieces: list[dict[str, Any]] | None, folder: Path) -> list[torch.Tensor]:
    """Logits and gradients of one step, by the last chain's form as pinned."""
    torch.manual_seed(0)
    network, x = build(ARCH, 0).train(), torch.randn(4, 3, 6, 5)
    run: Callable[[torch.Tensor], torch.Tensor] = network
    if pieces is not None:
        write(folder, {"chains": {"key": pieces}})
        form = PinnedForms(folder).chain_form("key", lambda: plain_form(LAST), fits(LAST, torch.float32))
        run = LoweredNetwork(network, WHOLE, {LAST.key: form}, torch.float32)
    logits = run(x)
    F.cross_entropy(logits, torch.arange(4)).backward()
    return [logits.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


def is_the_factored(folder: Path, pieces: list[dict[str, Any]]) -> bool:
    found, true = (torch.cat([tensor.flatten() for tensor in step(given, folder)]) for given in (pieces, None))
    return bool((found - true).norm() < 1e-4 * true.norm())


@pytest.mark.parametrize("pieces", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_form_is_refused(tmp_path: Path, pieces: list[dict[str, Any]]) -> None:
    """It raises a `StudyError`, and never computes another function."""
    with pytest.raises(StudyError, match="cannot run here"):
        is_the_factored(tmp_path, pieces)


def test_a_form_from_the_file_or_memory_is_checked(tmp_path: Path) -> None:
    """A refused form stays pinned."""
    pins, asked = PinnedForms(tmp_path), []
    pins.chain_form("key", choosing(TUNED), refuse)

    def never(form: ChainForm) -> bool:
        asked.append(form)
        return False

    for again in (pins, PinnedForms(tmp_path)):
        with pytest.raises(StudyError, match="C compiler"):
            again.chain_form("key", refuse, never)
    assert asked == [TUNED, TUNED]
    assert PinnedForms(tmp_path).chain_form("key", refuse, lambda _: True) == TUNED


def test_possible_forms_are_run_as_pinned(tmp_path: Path) -> None:
    assert is_the_factored(tmp_path, pinned((2, 1), forward="matmul", input="flip", weight="matmul"))
    assert PinnedForms(tmp_path).chain_form("key", refuse, fits(LAST, torch.float32)) == TUNED
    assert is_the_factored(tmp_path, pinned((1, 2), input="flip") + pinned((1, 1)))
    assert PinnedForms(tmp_path).chain_form("key", refuse, fits(LAST, torch.float32)).pieces == (
        Piece(1, 2),
        Piece(1, 1),
    )
    assert factored(LAST) != dense(LAST)
    assert is_the_factored(tmp_path, pinned(*((piece.convs, piece.groups) for piece in factored(LAST))))


# Which forms compute their chain.


def splits(convs: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut `convs` convolutions into pieces."""
    if not convs:
        yield ()
    for first in range(1, convs + 1):
        yield from ((first, *rest) for rest in splits(convs - first))


def output(chain: Chain, form: Form) -> torch.Tensor:
    """The output of a form for a fixed image and fixed weights."""
    generator = torch.Generator().manual_seed(0)
    block = nn.Module()
    for conv in chain.convs:
        module = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.kernel // 2, 1, conv.groups, False
        ).double()
        module.weight.data.normal_(generator=generator)
        block.add_module(conv.name, module)
    x = torch.randn(2, chain.convs[0].in_channels, chain.height, chain.width, generator=generator).double()
    used = ChainForm(form, (Algorithms(),) * len(form))
    with torch.no_grad():
        return LoweredChain(block, chain, used, torch.float64)(x.contiguous(memory_format=torch.channels_last))


SMALL_CHAINS = {
    "igcv1": CHAIN,
    "depthwise": ALONE,
    "igcv3": Chain(
        (
            Conv("a", 4, 8, 1, 1, 2),
            Interleave(8, 2),
            Conv("b", 8, 8, 3, 2, 8),
            Interleave(8, 4),
            Conv("c", 8, 4, 1, 1, 4),
        ),
        5,
        4,
    ),
    "two that look beside a pixel": Chain((Conv("a", 4, 4, 3), Interleave(4, 2), Conv("b", 4, 4, 3, 1, 2)), 5, 4),
    "strided twice": Chain((Conv("a", 4, 4, 1, 2), Conv("b", 4, 4, 1, 2, 2)), 5, 4),
}


@pytest.mark.parametrize("chain", SMALL_CHAINS.values(), ids=SMALL_CHAINS.keys())
def test_forms_of_a_chain_compute_it(chain: Chain) -> None:
    """All that a file can hold; pieces of one convolution are valid if their groups divide its groups."""
    wanted = output(chain, factored(chain))
    allowed = set()
    for counts in splits(len(chain.convs)):
        for groups in itertools.product((1, 2, 3, 4, 8, 16), repeat=len(counts)):
            form = tuple(Piece(*piece) for piece in zip(counts, groups, strict=True))
            if len(form) == len(chain.convs):
                divide = all(conv.groups % piece.groups == 0 for conv, piece in zip(chain.convs, form, strict=True))
                assert is_form(chain, form) == divide, form
            if is_form(chain, form):
                allowed.add(form)
                found = output(chain, form)
                assert found.shape == wanted.shape, form
                assert (found - wanted).norm() < 1e-9 * wanted.norm(), form
    assert set(forms_of(chain)) <= allowed


@pytest.mark.parametrize(
    "form",
    [
        (),
        (Piece(1, 4),),
        (Piece(1, 4), Piece(1, 3), Piece(1, 1)),
        (Piece(3, 1),),
        (Piece(0, 1), Piece(2, 1)),
        (Piece(3, 1), Piece(-1, 1)),
        (Piece(2, 0),),
        (Piece(2, -1),),
        (Piece(1, -4), Piece(1, 3)),
        (Piece(1, 8), Piece(1, 3)),
        (Piece(1, 3), Piece(1, 3)),
        (Piece(1, 4), Piece(1, 4)),
        (Piece(2, 4),),
        (Piece(2, 2),),
        (Piece(2**70, 1),),
    ],
)
def test_a_form_must_cover_its_chain(form: Form) -> None:
    assert not is_form(CHAIN, form)


def test_two_spatial_convolutions_are_not_multiplied_out() -> None:
    """The product would differ at the border."""
    for name in ("two that look beside a pixel", "strided twice"):
        assert not is_form(SMALL_CHAINS[name], (Piece(2, 1),))
        assert is_form(SMALL_CHAINS[name], (Piece(1, 1), Piece(1, 1)))
