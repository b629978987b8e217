"""The options of rate-accuracy, its labelled data, and image files as codes."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl.benchmarks import baselines as base
from stochcl.benchmarks import quantisers as quant
from stochcl.benchmarks.probes import CODINGS, METRICS, NEIGHBOURS, PROBES
from stochcl.benchmarks.run import Config, need
from stochcl.codes import folder_label
from stochcl.data import ImageSource, held_out
from stochcl.data.builtin import DigitsSource
from stochcl.data.labels import read_labels
from stochcl.data.open import JoinedSource, open_sources
from stochcl.errors import MissingExtraError, SourceError, UsageError
from stochcl.files import exists
from stochcl.messages import escape_name
from stochcl.options import declared, option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec

    Rows = ImageSource | NDArray[np.float32]

_BATCH = 256
_PARTS = 5  # 1 / share of the rows scored on if no test is given
_LEAST = 2  # images in each part

ELSEWHERE = " fitted elsewhere"
"""The suffix of a quantiser's name if it was fitted to other images."""

SIDES = (8, 12, 16, 32)
"""Sides in pixels of the small images, up to the network's input size."""

_RIFF_HEADERS = 12 + 8 + 10  # RIFF and WEBP; the chunk; VP8's frame header, which holds the size
_SCAN, _END = b"\xff\xda", 2  # JPEG's start of scan, and the bytes of the end marker

# Baselines for a chosen number of bits, and those with fixed bits per column.
BASELINES: dict[str, type[base.Baseline]] = {
    "random-signs": base.RandomSigns, "pca-signs": base.PrincipalSigns, "itq": base.Itq, "pq": quant.Product,
    "opq": quant.OptimisedProduct, "rq": quant.Residual, "rq-4bit": quant.SmallResidual, "lsq": quant.LocalSearch,
    "pca-scalar": base.PrincipalScalar,
}  # fmt: skip
FLOATS: dict[str, type[base.PerColumn]] = {
    "float32": base.Float32, "float16": base.Float16, "int8": base.Int8, "rabitq": base.RaBitQ, "binary": base.Binary
}  # fmt: skip

# Pillow's names and settings; qualities below 20 cost accuracy faster than bits.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 20, "optimize": True, "subsampling": 2}),
    "webp": ("WEBP", {"quality": 20, "method": 6}),
    "avif": ("AVIF", {"quality": 20, "speed": 6}),
    "jxl": ("JXL", {"quality": 20, "effort": 5}),
}

# Groups of baselines: features as numbers, quantised features, and small images.
GROUPS = {"features": tuple(FLOATS), "quantisers": tuple(BASELINES), "pixels": tuple(FORMATS)}
METHODS = tuple(name for names in GROUPS.values() for name in names)


@dataclass(frozen=True)
class RateAccuracyConfig(Config):
    """The options of rate-accuracy. All baselines quantise the first model's features."""

    command_name: ClassVar[str] = "stochcl benchmark rate-accuracy"

    sources: tuple[Path, ...] = option(())
    test: Path | None = option(
        None, "Score on these images or rows.", unit="TEST", shown="a fifth of each class of SOURCE"
    )
    hold_out: int = option(
        0, "Score on the last N images of each class, which training with the same option leaves out.", at_least=0,
        unit="N",
    )  # fmt: skip
    labels: Path | None = option(
        None, "Labels of SOURCE: a CSV file name,label, or .npy for a matrix.", unit="FILE", shown="first folders"
    )
    test_labels: Path | None = option(None, "Labels of TEST.", unit="FILE")
    model: tuple[Path, ...] = option(
        (), "A model, by name or file; may be repeated.", short="-m", unit="MODEL", shown="general"
    )
    metric: tuple[str, ...] = option(("accuracy",), "What to measure; may be repeated.", choices=METRICS)
    probe: str = option("logistic", "The classifier whose accuracy is measured.", choices=PROBES)
    queries: int = option(2000, "Look up at most this many test rows for recall@10 and map@1000.", at_least=1)
    ladder: tuple[int, ...] = option((), "Widths of our codes.", at_least=1, unit="K,K,...", shown="the model's")
    bits: tuple[int, ...] = option(
        (8, 16, 32, 64, 128, 256), "Sizes of quantisers, in bits.", at_least=1, unit="B,B,..."
    )
    baselines: tuple[str, ...] = option(
        ("all",), "What to compare with: all, none, or names of groups (features, quantisers, pixels) and methods.",
        choices=("all", "none", *GROUPS, *METHODS), unit="NAMES",
    )  # fmt: skip
    coding: tuple[str, ...] = option(
        ("packed", "linear"), "How codes of quantisers are stored: packed, or through our coder.", choices=CODINGS
    )
    beam: tuple[int, ...] = option(
        (4, 8), "Beam widths of residual quantisation, one row each.", at_least=1, unit="N,N,..."
    )
    trials: int = option(1, "Fits of residual quantisation with different seeds, one row each.", at_least=1)
    train_images: int | None = option(None, "Train on at most N images.", at_least=2, unit="N")
    test_images: int | None = option(None, "Score on at most N images.", at_least=2, unit="N")
    fit_to: tuple[Path, ...] = option(
        (), "Also measure quantisers that are fitted to these images; may be repeated.", unit="OTHER"
    )
    fit_images: int = option(20_000, "Fit to at most N images of OTHER.", at_least=2, unit="N")
    fit_hold_out: int = option(0, "Leave out the last N images of each class of OTHER.", at_least=0, unit="N")
    precision: str = option("fp32", "Numeric precision of the networks.", choices=("fp32", "bf16", "int8"))
    device: str = option("cpu", "cpu, cuda, ...")
    seed: int = option(0, "Random seed.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if {"all", "none"} & set(self.baselines) and len(self.baselines) > 1:
            raise UsageError("--baselines all and none stand alone; omit the other names.")
        if not self.sources:
            raise UsageError("name a source to measure on.")
        if self.hold_out and self.test is not None:
            raise UsageError("--test and --hold-out both name what to score on; give one of them.")
        if self.test_labels is not None and self.test is None:
            raise UsageError("--test-labels needs --test.")
        if not self.fit_to:
            known = declared(type(self))
            if any(getattr(self, name) != known[name].default for name in ("fit_images", "fit_hold_out")):
                raise UsageError("--fit-images and --fit-hold-out need --fit-to.")
            return
        if not set(self.methods) & set(BASELINES):
            raise UsageError(
                "--fit-to needs quantisers to fit, and --baselines names none; add quantisers, or one of "
                f"{', '.join(BASELINES)}."
            )
        # Otherwise images scored on would also be fitted to.
        measured = {path.resolve() for path in (*self.sources, self.test) if path is not None}
        if same := [path for path in self.fit_to if path.resolve() in measured]:
            raise UsageError(f"{escape_name(same[0])}: this source is also measured on; give --fit-to other images.")

    @property
    def methods(self) -> tuple[str, ...]:
        """The requested names of :data:`METHODS`."""
        asked: set[str] = set()
        for name in self.baselines:
            asked |= set(METHODS if name == "all" else GROUPS.get(name, (name,)))
        return tuple(name for name in METHODS if name in asked)

    @property
    def needs_labels(self) -> bool:
        """Whether a metric needs classes."""
        return set(self.metric) != {"recall@10"}


@dataclass(frozen=True)
class PixelCode:
    """A format of :data:`FORMATS` at a side in pixels."""

    format: str
    side: int

    @property
    def name(self) -> str:
        """The method's name."""
        return f"{FORMATS[self.format][0]} pixels"

    @property
    def coding(self) -> str:
        """The setting in words."""
        return f"{self.side} x {self.side}, quality {FORMATS[self.format][1]['quality']}"

    def need(self) -> None:
        """Raise MissingExtraError if this Pillow cannot write the format."""
        from PIL import features

        if self.format == "jxl":
            need("pillow_jxl")
            import pillow_jxl  # noqa: F401 - it tells Pillow of the format
        elif self.format in ("webp", "avif") and not features.check(self.format):
            name = FORMATS[self.format][0]
            raise MissingExtraError(f"this Pillow was built without {name}; install one that has it.")

    def code(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int, int]:
        """Shrink, code, decode and enlarge one image, shape (S, S, 3).

        Returns the image, the file's bytes, and the bytes without headers that files of this size and quality share.
        """
        from PIL import Image

        name, settings = FORMATS[self.format]
        whole = Image.fromarray(pixels)
        size = whole.size
        buffer = io.BytesIO()
        whole.resize((self.side, self.side), Image.Resampling.BICUBIC, reducing_gap=3).save(buffer, name, **settings)
        data = buffer.getvalue()
        back = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        return np.asarray(back), len(data), bare_bytes(self.format, data)


def bare_bytes(kind: str, data: bytes) -> int:
    """Return the bytes of a file without its headers: a lower bound of its size if the rest is fixed in advance.

    JPEG: the scans without Huffman tables; WebP: the frame without its header; AVIF: the media data boxes (ISO/IEC
    14496-12, 4.2); JPEG XL: the whole bare codestream.
    """
    if kind == "jpeg":
        start = data.index(_SCAN)
        length: int = struct.unpack_from(">H", data, start + 2)[0]
        return len(data) - (start + 2 + length) - _END
    if kind == "webp":
        return max(0, len(data) - _RIFF_HEADERS)
    if kind != "avif":
        return len(data)
    at = found = 0
    while at + 8 <= len(data):
        size, box = struct.unpack_from(">I4s", data, at)
        size = int(size) or len(data) - at  # 0: the box reaches to the end
        found += size - 8 if box == b"mdat" else 0
        at += max(size, 8)
    return found


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a source to fit to or to score on; a matrix is float32, shape (M, V)."""

    source: Rows
    rows: NDArray[np.intp]
    labels: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, codec: Codec) -> Iterator[NDArray[Any]]:
        """Yield batches for the codec: prepared images, uint8, (B, S, S, 3), or rows of a matrix."""
        for start in range(0, len(self.rows), _BATCH):
            rows = self.rows[start : start + _BATCH]
            if isinstance(self.source, ImageSource):
                yield np.stack([self.source.load(row, codec.preprocess) for row in rows.tolist()])
            else:
                yield self.source[rows]

    def fingerprint(self) -> str:
        """Return a digest of the rows (names, sizes and times of files, or the numbers) and the labels."""
        digest = hashlib.sha256("\0".join(self.labels.tolist()).encode("utf-8", "surrogateescape"))
        if isinstance(self.source, ImageSource):
            entries = (self.source.entries[row] for row in self.rows.tolist())
            digest.update(json.dumps([[e.name, e.size, e.mtime_ns] for e in entries]).encode())
        else:
            digest.update(self.source[self.rows].tobytes())
        return digest.hexdigest()

    def largest(self, most: int | None, rng: np.random.Generator) -> Split:
        """Return at most ``most`` rows, with the same share of every class."""
        if most is None or most >= len(self):
            return self
        kept = np.flatnonzero(_share(self.labels, most / len(self), rng))
        kept = np.sort(rng.permutation(kept)[:most])
        return Split(self.source, self.rows[kept], self.labels[kept])


@dataclass(frozen=True, eq=False)
class Inputs:
    """Rows for the probe to learn from, rows to score on, and optional rows (without labels) to fit quantisers to."""

    train: Split
    test: Split
    fit: Split | None = None

    @property
    def images(self) -> bool:
        """Whether these are images, rather than vectors."""
        return isinstance(self.train.source, ImageSource)


def read_inputs(config: RateAccuracyConfig) -> Inputs:
    """Open the sources, match labels, and choose rows."""
    source, labels = _open(config.sources, config.labels, needed=config.needs_labels)
    shown = escape_name(config.sources[0])
    rng = np.random.default_rng([config.seed, 29])
    if config.test is None:
        scored = _last(source, labels, config.hold_out) if config.hold_out else _share(labels, 1 / _PARTS, rng)
        train = Split(source, np.flatnonzero(~scored), labels[~scored])
        test = Split(source, np.flatnonzero(scored), labels[scored])
    else:
        other, other_labels = _open((config.test,), config.test_labels, needed=config.needs_labels)
        _check_alike(other, source, config.test, config.sources[0])
        train = Split(source, np.arange(len(labels)), labels)
        test = Split(other, np.arange(len(other_labels)), other_labels)
    train, test = train.largest(config.train_images, rng), test.largest(config.test_images, rng)
    classes = len(np.unique(train.labels))
    if "recall@10" in config.metric and len(test) <= NEIGHBOURS:
        raise SourceError(f"{shown}: recall@10 needs more than {NEIGHBOURS} test rows, got {len(test)}.")
    if min(len(train), len(test)) < _LEAST or (config.needs_labels and classes < 2):
        raise SourceError(
            f"{shown}: this leaves {len(train):,} images of {classes} classes "
            f"to fit to and {len(test):,} to score on; a classifier needs two classes and more images."
        )
    return Inputs(train, test, _elsewhere(config, source) if config.fit_to else None)


def _elsewhere(config: RateAccuracyConfig, like: Rows) -> Split:
    """Open the sources of --fit-to and draw rows from them."""
    source = _rows_of(config.fit_to)
    shown = escape_name(config.fit_to[0])
    _check_alike(source, like, config.fit_to[0], config.sources[0])
    kept = np.arange(len(source))
    if isinstance(source, ImageSource):
        names = np.array([folder_label(entry.name) for entry in source.entries], np.str_)
        kept = np.flatnonzero(~_last(source, names, config.fit_hold_out))
    elif config.fit_hold_out:
        raise UsageError(f"{shown}: --fit-hold-out leaves out images of each class, and a matrix has none.")
    if len(kept) < _LEAST:
        raise SourceError(f"{shown}: this leaves {len(kept)} images to fit quantisers to; name a source with more.")
    # A separate generator, so that --fit-to does not change the training and test rows.
    rows = np.sort(np.random.default_rng([config.seed, 43]).permutation(kept)[: config.fit_images])
    return Split(source, rows, np.full(len(rows), ""))


def _check_alike(source: Rows, like: Rows, path: Path, other: Path) -> None:
    """Raise if only one source holds images, or if their rows differ in width."""
    shown, measured = escape_name(path), escape_name(other)
    if isinstance(source, ImageSource) or isinstance(like, ImageSource):
        if not (isinstance(source, ImageSource) and isinstance(like, ImageSource)):
            raise UsageError(f"{shown}: of this and {measured}, one holds images and one a matrix; give two alike.")
    elif source.shape[1] != like.shape[1]:
        have = f"these rows have {source.shape[1]:,} columns, and those of {measured} have {like.shape[1]:,}"
        raise SourceError(f"{shown}: {have}; give rows of one width.")


def _rows_of(paths: Sequence[Path]) -> Rows:
    """Open images, several sources as one, or read a matrix."""
    if [str(path) for path in paths] == ["digits"] and not exists(paths[0]):
        return DigitsSource()
    source = open_sources(paths)
    if isinstance(source, ImageSource):
        return source
    vectors = source.take(slice(None))
    if not np.isfinite(vectors).all():
        raise SourceError(f"{escape_name(paths[0])}: some of its numbers are not finite; leave those rows out.")
    return vectors


def _open(paths: Sequence[Path], labels: Path | None, *, needed: bool) -> tuple[Rows, NDArray[np.str_]]:
    """Open sources and the labels of their rows, which are empty for a matrix if not needed."""
    source = _rows_of(paths)
    if isinstance(source, ImageSource):
        names = [entry.name for entry in source.entries]
        found = [folder_label(name) for name in names] if labels is None else read_labels(labels).match(names)
        return source, np.asarray(found, np.str_)
    if labels is None and not needed:
        return source, np.full(len(source), "")
    if labels is None:
        raise UsageError(f"{escape_name(paths[0])}: a matrix has no labels of its own; give them with --labels.")
    table = read_labels(labels)
    if table.is_array and len(table) != len(source):
        raise SourceError(f"{escape_name(labels)}: labels are one integer or text for each of {len(source):,} rows.")
    return source, np.asarray(table.match([str(i) for i in range(len(source))]), np.str_)


def _last(source: Rows, labels: NDArray[np.str_], count: int) -> NDArray[np.bool_]:
    """Mark the last rows of each class of each source, as :func:`stochcl.data.held_out` does for training."""
    lengths = [len(part) for part in source.sources] if isinstance(source, JoinedSource) else [len(labels)]
    parts = np.split(labels, np.cumsum(lengths)[:-1])
    return np.concatenate([held_out(part.tolist(), count, label=str) for part in parts])


def _share(labels: NDArray[np.str_], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark this share of the rows of every class, at least one if a class has two."""
    marked = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = round(share * len(rows))
        marked[rows[: max(count, 1) if len(rows) > 1 else count]] = True
    return marked
