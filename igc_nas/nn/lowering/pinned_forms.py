"""The forms in which a study trains, fixed when a chain or a network first occurs, so that a resume uses the same.

They are kept as `forms.json` in the study's folder. Several workers may write it, under a lock; an entry is never
overwritten.
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
    """A piece and the algorithms of its convolution, in the file."""

    convs: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)]
    forward: Algorithm = "conv"
    input: Algorithm = "conv"
    weight: Algorithm = "conv"


class PinnedFormsFile(Frozen):
    """The content of the file: the form of each chain by the chain's key, and of each network by its id."""

    chains: dict[str, tuple[PinnedPiece, ...]] = Field(default_factory=dict, strict=False)
    networks: dict[str, NetworkForm] = Field(default_factory=dict)


class PinnedForms:
    """The pinned forms of a study; without a folder they are kept in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / FORMS_FILE
        self._held = PinnedFormsFile()

    def chain_form(
        self, key: str, choose: Callable[[], ChainForm], is_possible: Callable[[ChainForm], bool]
    ) -> ChainForm:
        """The pinned form of a chain; if there is none, that of `choose`, which is then pinned.

        Raises `StudyError` for a damaged file, and for a pinned form that `is_possible` refuses: because its kernels
        need a C compiler, or because it does not fit the chain.
        """
        pinned = self._read().chains.get(key)
        if pinned is not None:
            return self._possible(key, _form(pinned), is_possible)
        form = choose()
        pieces = tuple(_pinned(piece, use) for piece, use in zip(form.pieces, form.algorithms, strict=True))
        with self._locked():
            there = self._read().chains.get(key)
            if there is not None:
                return self._possible(key, _form(there), is_possible)
            self._write(self._held.model_copy(update={"chains": self._held.chains | {key: pieces}}))
        return form

    def _possible(self, key: str, form: ChainForm, is_possible: Callable[[ChainForm], bool]) -> ChainForm:
        if not is_possible(form):
            raise StudyError(
                f"{self.path}: the form of {printable(key, lines=False)[:80]} cannot run here",
                "install a C compiler (cc) if the study began with one, or remove the file to choose anew",
            )
        return form

    def network_form(self, key: str, choose: Callable[[], NetworkForm]) -> NetworkForm:
        """The pinned form of a network; if there is none, that of `choose`, which is then pinned.

        Raises `StudyError` for a damaged file.
        """
        pinned = self._read().networks.get(key)
        if pinned is None:
            pinned = choose()
            with self._locked():
                pinned = self._read().networks.get(key, pinned)
                self._write(self._held.model_copy(update={"networks": self._held.networks | {key: pinned}}))
        return pinned

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
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

    def _read(self) -> PinnedFormsFile:
        if self.path is not None and self.path.exists():
            hint = f"remove {self.path} to have its forms chosen anew"
            try:
                self._held = PinnedFormsFile.model_validate_json(read_bytes(self.path, MOST_RECORDS))
            except ValidationError as error:
                raise StudyError(first_problem(error, str(self.path)), hint) from None
            except ConfigError as error:
                raise StudyError(error.message, hint) from None
        return self._held

    def _write(self, pinned: PinnedFormsFile) -> None:
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
