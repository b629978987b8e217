"""Images of an archive made worse in known ways, and encoded again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compression import open_inputs
from stochcl.api.encoding import latents_of
from stochcl.data import MatrixSource, printable
from stochcl.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from stochcl.data.subset import SubsetSource
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.api.codedset import CodedSet
    from stochcl.downstream.scores import Coded

_BATCH = 256


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Images that were made worse.

    Parameters
    ----------
    what : str
    strength : int
    rows : Coded
    """

    what: str
    strength: int
    rows: Coded


class Corrupter:
    """A sample of an archive's images, found in their source by name.

    Parameters
    ----------
    given : CodedSet
    places : ndarray of int
        Which rows of it to choose from.
    path : Path
        Their source.
    codec : Codec
        That made the archive.
    sample : int
        How many.
    seed : int
        Of the choice, and of what is random about corruptions.

    Attributes
    ----------
    chosen : ndarray of int
        Which of the places the images are.

    Raises
    ------
    SourceError
    UsageError
        If these are no images, or none is called as a row is.
    """

    def __init__(
        self, given: CodedSet, places: NDArray[Any], path: Path, codec: Codec, *, sample: int, seed: int
    ) -> None:
        self._given, self._seed = given, seed
        self._codec = codec.with_precision(given.archive.header.precision)
        source, names = open_inputs(path, codec), given.names
        if isinstance(source, MatrixSource):
            raise UsageError(f"{printable(path)}: corruptions are of images; leave out --images for embeddings.")
        if names is None:
            raise UsageError(f"{printable(given.path)}: its rows have no names to find their images by.")
        there = {entry.name: row for row, entry in enumerate(source.entries)}
        found = [(i, there[name]) for i, place in enumerate(places) if (name := names[place]) in there]
        if not found:
            first = printable(names[places[0]])
            raise UsageError(
                f"{printable(path)}: none of its images is called as one of {printable(given.path)}, such as {first}."
            )
        picked = [found[i] for i in np.sort(np.random.default_rng(seed).permutation(len(found))[:sample])]
        subset = SubsetSource(source, [row for _, row in picked])
        preprocess = replace(codec.preprocess, fit=given.archive.header.preprocess["fit"])
        kept, parts = [], []
        for batch in subset.batches(preprocess, batch_size=_BATCH, workers=1):
            parts.append(batch.images)
            kept += [picked[i][0] for i in batch.positions]
        self._pixels, self.chosen = np.concatenate(parts), np.array(kept, np.intp)

    def __iter__(self) -> Iterator[Corrupted]:
        """Yield the images in every way and strength."""
        header = self._given.archive.header
        for what in CORRUPTIONS:
            for strength in STRENGTHS:
                pixels = corrupt(self._pixels, what, strength, seed=self._seed)
                codes = latents_of(self._codec.encode_prepared(pixels).codes, header)
                yield Corrupted(what, strength, self._given.coded(codes))

    def __len__(self) -> int:
        return len(CORRUPTIONS) * len(STRENGTHS)
