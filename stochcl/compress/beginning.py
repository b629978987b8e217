"""What an archive begins with: header, tables, fitted models; and the index that speaks for them at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.compress.framing import CHUNK, PROLOGUE, crc
from stochcl.compress.index import Index
from stochcl.compress.model import FITTED, Candidate, pack_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stochcl.compress.coder import EntropyModel
    from stochcl.compress.gathering import SegmentWriter
    from stochcl.compress.header import Header
    from stochcl.compress.tables import Tables


class Beginning:
    """The bytes before the first segment, and the models that segments may be coded with.

    Parameters
    ----------
    header : Header
    tables : Tables
        Those that ``header.tables_sha256`` names.
    embed : bool
        Whether they go into the archive.
    fitted : sequence of IndependentModel or AutoregressiveModel
        Models of the archive's own latents that are to be stored in it.

    Attributes
    ----------
    data : bytes
    candidates : list of Candidate
    """

    def __init__(self, header: Header, tables: Tables, *, embed: bool, fitted: Sequence[EntropyModel] = ()) -> None:
        header.check()
        if header.tables_sha256 != tables.sha256:
            msg = "the header names other tables than those that are given"
            raise ValueError(msg)
        self.data, self._tables_at = header.to_bytes(), (0, 0)
        if embed:
            self._tables_at = (len(self.data), CHUNK.size + len(tables.data))
            self.data += CHUNK.pack(b"TABL", len(tables.data)) + tables.data
        self.candidates = tables.candidates(header.latents, header.selection)
        self._fitted_at: list[tuple[int, int]] = []
        for number, model in enumerate(fitted):
            self.data += self._place(pack_model(model))
            self.candidates.append(Candidate(model, FITTED, number))

    def _place(self, model: bytes) -> bytes:
        """Return the chunk of a fitted model, whose place is what has been begun so far."""
        payload = crc(model).to_bytes(4, "little") + model
        self._fitted_at.append((len(self.data), CHUNK.size + len(payload)))
        return CHUNK.pack(b"FITT", len(payload)) + payload

    def index(self, writer: SegmentWriter, start: int) -> Index:
        """Return the index of all that a writer has written, to begin at ``start``."""
        return Index(
            rows=sum(head.rows for _, head in writer.written),
            source_bytes=writer.source_bytes,
            tables=self._tables_at,
            segments=writer.written,
            skipped=tuple(writer.skipped),
            start=start,
            header_crc=int.from_bytes(self.data[PROLOGUE.size - 4 : PROLOGUE.size], "little"),
            fitted=tuple(self._fitted_at),
        )
