"""The forms that a study trains in, fixed when each chain and network is first met: a resume uses the same ones.

They are kept as `forms.json` in the study's folder, which several workers may write: under a lock, and what is there
already stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import Field, ValidationError

from igc_nas.errors import ConfigError, StudyError
from igc_nas.io.files import MOST_RECORDS, read_bytes, write_whole
from igc_nas.io.records import Frozen, first_problem
from igc_nas.io.text import printable
from igc_nas.nn.lowering.chain import Piece
from igc_nas.nn.lowering.convolution import Algorithm, Algorithms
from igc_nas.nn.lowering.training import ChainForm, NetworkForm

FORMS_FILE = "forms.json"


class PinnedPiece(Frozen):
    """A piece and its algorithms, as the file holds them."""

    convs: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)]
    forward: Algorithm = "conv"
    input: Algorithm = "conv"
    weight: Algorithm = "conv"


class PinnedChain(Frozen):
    """What the file holds: the form of each chain by key, and how each network runs, by id."""

    chains: dict[str, tuple[PinnedPiece, ...]] = Field(default_factory=dict, strict=False)
    networks: dict[str, NetworkForm] = Field(default_factory=dict)


class PinnedForms:
    """The pinned forms of a study; without a folder they last as long as the process."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / FORMS_FILE
        self._held = PinnedChain()

    def chain(self, key: str, choose: Callable[[], ChainForm], is_possible: Callable[[ChainForm], bool]) -> ChainForm:
        """The form of a chain, chosen where none is pinned.

        Raises `StudyError` for a damaged file, and for a form that is not possible here: one of kernels that need a C
        compiler, or one that no chain has.
        """
        pinned = self._read().chains.get(key)
        if pinned is not None:
            return self._possible(key, _form(pinned), is_possible)
        form = choose()
        pieces = tuple(_pinned(piece, use) for piece, use in zip(form.pieces, form.algorithms, strict=True))
        with self._alone():
            there = self._read().chains.get(key)
            if there is not None:
                return self._possible(key, _form(there), is_possible)
            self._write(self._held.model_copy(update={"chains": self._held.chains | {key: pieces}}))
        return form

    def _possible(self, key: str, form: ChainForm, is_possible: Callable[[ChainForm], bool]) -> ChainForm:
        if not is_possible(form):
            raise StudyError(
                f"{self.path}: the form of {printable(key, lines=False)[:80]} cannot run here",
                "install a C compiler (cc) if the study was begun with one, or remove the file to choose anew",
            )
        return form

    def network(self, key: str, choose: Callable[[], NetworkForm]) -> NetworkForm:
        """How a network runs, chosen where it is not pinned. Raises `StudyError` for a damaged file."""
        pinned = self._read().networks.get(key)
        if pinned is None:
            pinned = choose()
            with self._alone():
                pinned = self._read().networks.get(key, pinned)
                self._write(self._held.model_copy(update={"networks": self._held.networks | {key: pinned}}))
        return pinned

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self.path is None:
            yield
            return
        if not self.path.parent.is_dir():
            raise StudyError(f"cannot write {self.path}: its folder is not there")
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire()
        except OSError as error:
            raise StudyError(f"cannot write {self.path}: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> PinnedChain:
        if self.path is not None and self.path.exists():
            hint = f"remove {self.path} to have its forms chosen anew"
            try:
                self._held = PinnedChain.model_validate_json(read_bytes(self.path, MOST_RECORDS))
            except ValidationError as error:
                raise StudyError(first_problem(error, str(self.path)), hint) from None
            except ConfigError as error:
                raise StudyError(error.message, hint) from None
        return self._held

    def _write(self, pinned: PinnedChain) -> None:
        self._held = pinned
        if self.path is not None:
            write_whole(self.path, pinned.model_dump_json(indent=1))


def _form(pinned: tuple[PinnedPiece, ...]) -> ChainForm:
    return ChainForm(
        tuple(Piece(piece.convs, piece.groups) for piece in pinned),
        tuple(Algorithms(piece.forward, piece.input, piece.weight) for piece in pinned),
    )


def _pinned(piece: Piece, use: Algorithms) -> PinnedPiece:
    return PinnedPiece(convs=piece.convs, groups=piece.groups, forward=use.forward, input=use.input, weight=use.weight)
