"""An archive's rows with all that says how uncertain they are: what a probe is given, symbols, lengths, entropies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.targets import rows_of
from stochcl.compress import Rows, open_archive
from stochcl.compress.lengths import code_lengths
from stochcl.data import printable
from stochcl.downstream.scores import Coded
from stochcl.errors import ModelMismatch, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.compress import Tables

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]


@dataclass(frozen=True, eq=False)
class CodedSet:
    """An archive's rows, with their names, and how others are made like them.

    Parameters
    ----------
    path : path-like
    archive : Archive
        May be closed.
    rows : Coded
    names : sequence of str or None
    used : str
        What a probe is given: vectors or symbols.
    latents : int or None
        Of which prefix.
    """

    path: PathLike
    archive: Rows
    rows: Coded
    names: Sequence[str] | None
    used: str
    latents: int | None

    @classmethod
    def of(cls, archive: Rows, path: PathLike, used: str, latents: int | None) -> CodedSet:
        """Take the rows of an open archive."""
        x = rows_of(archive, used, latents)
        symbols = x if used == "symbols" else archive.to_numpy(latents)
        parts = [_lengths(archive, codes, latents) for codes in archive.iter_codes()]
        lengths = np.concatenate([np.zeros(0, np.float32), *parts])
        return cls(path, archive, Coded(x, symbols, lengths, archive.uncertainty), archive.names, used, latents)

    def like(self, path: PathLike, tables: Where) -> CodedSet:
        """Read another archive, of the same model and latents.

        Raises
        ------
        SourceError, FormatError
        ModelMismatch, UsageError
            If it is of others.
        """
        with open_archive(path, tables=tables) as archive:
            a, b = archive.header, self.archive.header
            shown, first = printable(path), printable(self.path)
            if a.model_sha256 != b.model_sha256:
                raise ModelMismatch(f"{shown}: this archive was made by another model than {first}.")
            width = self.latents or b.latents
            if a.selection != b.selection or a.latents < width or (self.latents is None and a.latents != width):
                msg = f"{shown}: it holds other latents than {first}; --latents K takes the first K of both."
                raise UsageError(msg)
            return CodedSet.of(archive, path, self.used, self.latents)

    def coded(self, codes: Codes) -> Coded:
        """Return codes of the archive's latents as rows like these."""
        lengths = _lengths(self.archive, codes, self.latents)
        if self.latents is not None:
            codes = codes.prefix(self.latents)
        symbols, decoder = codes.symbols(), self.archive.decoder
        x: NDArray[Any] = symbols if self.used == "symbols" or decoder is None else decoder.decode(symbols)
        return Coded(x, symbols, lengths, codes.uncertainty)

    @property
    def binary(self) -> bool:
        """Whether latents are bits."""
        return self.archive.header.alphabet == 2


def _lengths(archive: Rows, codes: Codes, latents: int | None) -> NDArray[np.float32]:
    selection = archive.header.selection
    if latents is not None:
        codes, selection = codes.prefix(latents), None if selection is None else selection[:latents]
    return code_lengths(codes, archive.tables, selection)
