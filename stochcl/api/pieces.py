"""What of several sources a shard is made of, so that who makes it lists those alone, and not all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from stochcl.api.encoding import listing
from stochcl.data import Failure, SubsetSource, open_source, printable
from stochcl.data.several import JoinedSource, ListSource
from stochcl.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stochcl.api.encoding import Source
    from stochcl.data import ImageSource


@dataclass(frozen=True)
class Piece:
    """The images of a shard, by the sources that hold them.

    Parameters
    ----------
    sources : tuple of str
        Paths, absolute.
    listings : tuple of str
        Digests of what these hold, see :func:`~stochcl.api.encoding.listing`.
    rows : range
        Positions of the shard's images in these sources, one after the other.
    rejected : tuple of Failure
        Images of all sources that will not be opened, where it is this shard that names them.
    """

    sources: tuple[str, ...]
    listings: tuple[str, ...]
    rows: range
    rejected: tuple[Failure, ...] = ()

    def to_json(self) -> str:
        """Return it as JSON, in ASCII."""
        values = vars(self) | {"rows": [self.rows.start, self.rows.stop]}
        return json.dumps(values | {"rejected": [[failure.name, failure.reason] for failure in self.rejected]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what :meth:`to_json` made text of."""
        values = json.loads(text)
        rejected = tuple(Failure(name, reason) for name, reason in values["rejected"])
        return cls(tuple(values["sources"]), tuple(values["listings"]), range(*values["rows"]), rejected)


def pieces_of(source: Source, parts: Iterator[tuple[int, range]]) -> Iterator[Piece | None]:
    """Yield a piece for each shard, a number and positions in the source; None where that has to be listed whole."""
    digests: dict[int, str] = {}
    for number, rows in parts:
        if not isinstance(source, JoinedSource) or any(isinstance(one, ListSource) for one in source.sources):
            yield None
            continue
        which, within = source.within(rows)
        for i in which:
            digests[i] = digests.get(i) or listing(source.sources[i])
        yield Piece(
            tuple(str(source.sources[i].path) for i in which),
            tuple(digests[i] for i in which),
            within,
            () if number else tuple(source.rejected),
        )


def open_piece(piece: Piece, held: dict[str, ImageSource]) -> SubsetSource:
    """Open the sources of a piece, and return its images; ``held`` has those of the piece before, and then of this.

    Raises
    ------
    SourceError
        If one cannot be read, or holds something else than it did.
    """
    opened: dict[str, ImageSource] = {}
    for path, digest in zip(piece.sources, piece.listings, strict=True):
        source = held.get(path) or open_source(path)
        if listing(source) != digest:
            raise SourceError(
                f"{printable(path)}: a worker finds other images there, or of other times or sizes; let all machines "
                "see the same files, and change none of them meanwhile."
            )
        opened[path] = source  # type: ignore[assignment]  # a matrix has another digest
    held.clear()
    held.update(opened)
    part = SubsetSource(JoinedSource([opened[path] for path in piece.sources]), piece.rows)
    part.rejected = list(piece.rejected)
    return part
