"""The labelled data that everything is measured on, and what a network makes of it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.joined import JoinedSource
from stochcl.benchmarks.matrices import _labels, _matrix
from stochcl.codes import folder_label
from stochcl.data import ImageSource, held_out, open_source
from stochcl.data.builtin import DigitsSource
from stochcl.data.labels import read_labels
from stochcl.errors import SourceError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.benchmarks.rate_accuracy.request import Request

_BATCH = 256
_PARTS = 5  # one of which is scored on where nothing else is named
_LEAST = 2  # images of each part


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a source that are fitted to, or scored on.

    Parameters
    ----------
    source : ImageSource or ndarray of float32, shape (M, V)
    rows : ndarray of int, shape (N,)
    labels : ndarray of str, shape (N,)
    """

    source: ImageSource | NDArray[np.float32]
    rows: NDArray[np.intp]
    labels: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, codec: Codec) -> Iterator[NDArray[np.uint8]]:
        """Yield the images as the codec prepares them, uint8, shape (B, S, S, 3)."""
        assert isinstance(self.source, ImageSource)
        for start in range(0, len(self.rows), _BATCH):
            rows = self.rows[start : start + _BATCH].tolist()
            yield np.stack([self.source.load(row, codec.preprocess) for row in rows])

    def inputs(self, codec: Codec) -> Iterator[NDArray[Any]]:
        """Yield what the codec encodes: images, or rows of a matrix."""
        if isinstance(self.source, ImageSource):
            yield from self.images(codec)
            return
        for start in range(0, len(self.rows), _BATCH):
            yield self.source[self.rows[start : start + _BATCH]]

    def fingerprint(self) -> str:
        """Return a digest of the rows: names, sizes and times of files, or the numbers; and the labels."""
        digest = hashlib.sha256("\0".join(self.labels.tolist()).encode("utf-8", "surrogateescape"))
        if isinstance(self.source, ImageSource):
            entries = (self.source.entries[row] for row in self.rows.tolist())
            digest.update(json.dumps([[e.name, e.size, e.mtime_ns] for e in entries]).encode())
        else:
            digest.update(self.source[self.rows].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the probe learns from, what is scored on, and what quantisers are fitted to besides (without labels)."""

    train: Part
    test: Part
    fit: Part | None = None

    @property
    def images(self) -> bool:
        """Whether these are images, rather than vectors."""
        return isinstance(self.train.source, ImageSource)

    def source_side(self) -> int | None:
        """Return the side of the images themselves, where the first hundred are all squares of one size."""
        from PIL import Image

        if not isinstance(self.test.source, ImageSource):
            return None
        sizes = set()
        for row in self.test.rows[:100].tolist():
            sizes.add(Image.open(io.BytesIO(self.test.source._read(row))).size)
        (size, *others) = sizes
        return size[0] if not others and size[0] == size[1] else None


def read_inputs(request: Request) -> Inputs:
    """Open what a request names, match labels, and choose rows."""
    source, labels = _open_all(request.sources, request.labels)
    shown = printable(request.sources[0])
    rng = np.random.default_rng([request.seed, 29])
    if request.test is None:
        scored = _last(source, labels, request.hold_out) if request.hold_out else _share(labels, 1 / _PARTS, rng)
        train = Part(source, np.flatnonzero(~scored), labels[~scored])
        test = Part(source, np.flatnonzero(scored), labels[scored])
    else:
        other, other_labels = _open(request.test, request.test_labels)
        if isinstance(source, ImageSource) != isinstance(other, ImageSource):
            raise UsageError(f"{printable(request.test)}: of this and {shown} one is a matrix only.")
        train = Part(source, np.arange(len(labels)), labels)
        test = Part(other, np.arange(len(other_labels)), other_labels)
    train, test = (
        _fewer(part, most, rng) for part, most in ((train, request.train_images), (test, request.test_images))
    )
    classes = len(np.unique(train.labels))
    if min(len(train), len(test)) < _LEAST or classes < 2:
        raise SourceError(
            f"{shown}: this leaves {len(train):,} images of {classes} classes "
            f"to fit to and {len(test):,} to score on; a classifier needs two classes and more images."
        )
    return Inputs(train, test, _elsewhere(request, source) if request.fit else None)


def _elsewhere(request: Request, like: ImageSource | NDArray[np.float32]) -> Part:
    """Open what quantisers are fitted to besides, and draw rows of it."""
    source = _joined([_rows_of(path) for path in request.fit])
    shown, measured = printable(request.fit[0]), printable(request.sources[0])
    if isinstance(source, ImageSource) != isinstance(like, ImageSource):
        raise UsageError(f"{shown}: of this and {measured} one is a matrix only.")
    kept = np.arange(len(source))
    if isinstance(source, ImageSource):
        names = np.array([folder_label(entry.name) for entry in source.entries], np.str_)
        kept = np.flatnonzero(~_last(source, names, request.fit_hold_out))
    elif not isinstance(like, ImageSource) and source.shape[1] != like.shape[1]:
        have = f"these rows have {source.shape[1]:,} columns, and those of {measured} have {like.shape[1]:,}"
        raise SourceError(f"{shown}: {have}.")
    elif request.fit_hold_out:
        raise UsageError(f"{shown}: --fit-hold-out leaves out images of each class, and a matrix has none.")
    if len(kept) < _LEAST:
        raise SourceError(f"{shown}: this leaves {len(kept)} images to fit quantisers to; name a source with more.")
    # Of its own generator: the images that are learned from and scored on are the same with it and without.
    rows = np.sort(np.random.default_rng([request.seed, 43]).permutation(kept)[: request.fit_images])
    return Part(source, rows, np.full(len(rows), ""))


def _open_all(paths: Sequence[Path], labels: Path | None) -> tuple[Any, NDArray[np.str_]]:
    """Open one source, or several of images as one."""
    parts = [_open(path, labels) for path in paths]
    return _joined([source for source, _ in parts]), np.concatenate([found for _, found in parts])


def _joined(sources: Sequence[ImageSource | NDArray[np.float32]]) -> ImageSource | NDArray[np.float32]:
    """Return the only source, or several of images as one."""
    if len(sources) == 1:
        return sources[0]
    images = [source for source in sources if isinstance(source, ImageSource)]
    if len(images) < len(sources):
        raise UsageError("several sources are taken of images only; join matrices with numpy.concatenate.")
    return JoinedSource(images)


def _last(source: ImageSource | NDArray[np.float32], labels: NDArray[np.str_], count: int) -> NDArray[np.bool_]:
    """Mark the last rows of each class of each source, as :func:`stochcl.data.held_out` does for training."""
    lengths = [len(part) for part in source.sources] if isinstance(source, JoinedSource) else [len(labels)]
    marks = []
    for part in np.split(labels, np.cumsum(lengths)[:-1]):
        names = part.tolist()
        marks.append(held_out(names, count, label=lambda name: name))
    return np.concatenate(marks)


def _open(path: Path, labels: Path | None) -> tuple[ImageSource | NDArray[np.float32], NDArray[np.str_]]:
    source = _rows_of(path)
    if isinstance(source, ImageSource):
        names = [entry.name for entry in source.entries]
        found = [folder_label(name) for name in names] if labels is None else read_labels(labels).match(names)
        return source, np.asarray(found, np.str_)
    if labels is None:
        raise UsageError(f"{printable(path)}: a matrix has no labels of its own; give them with --labels.")
    if labels.suffix == ".npy":
        array = _labels(labels, len(source))
        return source, np.asarray(array).astype(np.str_)
    table: Callable[[list[str]], tuple[str, ...]] = read_labels(labels).match
    return source, np.asarray(table([str(i) for i in range(len(source))]), np.str_)


def _rows_of(path: Path) -> ImageSource | NDArray[np.float32]:
    """Open images, or read a matrix."""
    source = DigitsSource() if str(path) == "digits" and not path.exists() else open_source(path)
    return source if isinstance(source, ImageSource) else _matrix(path)


def _share(labels: NDArray[np.str_], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark this share of the rows of every class, at least one where a class has two."""
    marked = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = round(share * len(rows))
        marked[rows[: max(count, 1) if len(rows) > 1 else count]] = True
    return marked


def _fewer(part: Part, most: int | None, rng: np.random.Generator) -> Part:
    if most is None or most >= len(part):
        return part
    kept = np.flatnonzero(_share(part.labels, most / len(part), rng))
    kept = np.sort(rng.permutation(kept)[:most])
    return Part(part.source, part.rows[kept], part.labels[kept])
