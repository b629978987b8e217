"""Training images: their labels, and reading them into memory or a disk cache."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import folder_label
from stochcl.data import Failure, ImageBatch, ImageSource, Preprocess, held_out, read_labels
from stochcl.data.source import SubsetSource
from stochcl.errors import LabelsError, OutputError, TrainingError, UsageError
from stochcl.files import PathLike, lock
from stochcl.messages import Progress, escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def labeller(
    sources: Sequence[ImageSource], labels: PathLike | None = None, level: int | None = None
) -> Callable[[str], str]:
    """Return the function from an image's name to its label, by a folder of its path or by a CSV."""
    names = [entry.name for source in sources for entry in source.entries]
    if labels is None:
        label: Callable[[str], str] = folder_label if level is None else partial(folder_label, level=level)
        without = [name for name in names if not label(name)]
        advice = "put images into a folder for each class, or give a CSV of name,label with --labels"
    else:
        table = dict(zip(names, read_labels(labels).match(names), strict=True))
        without = [name for name in names if not table[name].strip()]
        advice = f"{escape_name(labels)} has an empty label for them"
        label = table.__getitem__
    if without:
        msg = f"{len(without):,} of {len(names):,} images have no label, such as {escape_name(without[0])}"
        raise LabelsError(f"{escape_name(sources[0].path)}: {msg}; {advice}.")
    return label


def labels_of(source: ImageSource, labels: PathLike | None = None, level: int | None = None) -> list[str]:
    """Return the label of each image of a source, see :func:`labeller`."""
    label = labeller([source], labels, level)
    return [label(entry.name) for entry in source.entries]


def classes_of(data: ImageSet) -> tuple[str, ...]:
    """Return the classes of training images, sorted by name."""
    classes = tuple(sorted(set(data.train_labels)))
    if lost := sorted(set(data.held_labels) - set(classes)):
        msg = f"every image of {escape_name(lost[0])} is held out, and none is left to train on"
        raise LabelsError(f"{msg}; hold out fewer.")
    if len(classes) < 2:
        msg = f"all {len(data.train_labels):,} images are of one class, {escape_name(classes[0])}"
        raise LabelsError(f"{msg}; a classifier needs two.")
    return classes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images.

    Images are uint8, shape (N, S, S, 3); held-out ones are only used for measurement. Labels are the first folders of
    names by default; pre-training ignores them, except in the live kNN accuracy. ``skipped`` could not be read.
    """

    train: NDArray[np.uint8]
    held: NDArray[np.uint8]
    train_labels: tuple[str, ...]
    held_labels: tuple[str, ...]
    skipped: tuple[Failure, ...]


def read_images(
    sources: Sequence[ImageSource], preprocess: Preprocess, *, hold_out: int = 0, workers: int = 1,
    progress: Progress = lambda done, total: None, label: Callable[[str], str] = folder_label,
    cache: Path | None = None, most: int | None = None, seed: int = 0,
) -> ImageSet:  # fmt: skip
    """Decode sources into memory, or into memory-mapped files of a folder.

    ``most`` limits the training images to a seeded sample from all sources.
    """
    masks = [held_out(s.entries, hold_out, label) if hold_out else np.zeros(len(s), bool) for s in sources]
    if most is not None:
        sources, masks = _choose(sources, masks, most, seed)
    if cache is None:
        decoded = _Decoded(sources, masks, preprocess)
        decoded.fill(workers, progress)
    else:
        decoded = _read_cached(cache, sources, masks, preprocess, workers, progress)
    bad = {(s, row): reason for s, row, reason in decoded.failures}
    labels: tuple[list[str], list[str]] = [], []
    skipped: list[Failure] = []
    for s, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        skipped += source.rejected
        for row, (entry, out) in enumerate(zip(source.entries, mask.tolist(), strict=True)):
            if (s, row) in bad:
                skipped.append(Failure(entry.name, bad[s, row]))
            else:
                labels[out].append(label(entry.name))
    train, held = decoded.images()
    check_enough(len(train), sources)
    return ImageSet(train, held, tuple(labels[False]), tuple(labels[True]), tuple(skipped))


def _choose(
    sources: Sequence[ImageSource], masks: list[NDArray[np.bool_]], most: int, seed: int
) -> tuple[list[ImageSource], list[NDArray[np.bool_]]]:
    """Return sources with all held-out images and at most ``most`` others, and the held-out masks."""
    free = np.flatnonzero(~np.concatenate(masks))
    kept = np.concatenate(masks)
    kept[np.random.default_rng(seed).permutation(free)[:most]] = True
    parts = np.split(kept, np.cumsum([len(mask) for mask in masks])[:-1])
    rows = [np.flatnonzero(part).tolist() for part in parts]
    chosen: list[ImageSource] = [SubsetSource(source, part) for source, part in zip(sources, rows, strict=True)]
    return chosen, [mask[part] for mask, part in zip(masks, parts, strict=True)]


def check_enough(images: int, sources: Sequence[ImageSource]) -> None:
    """Raise TrainingError if fewer than two training images remain."""
    if images < 2:
        names = ", ".join(escape_name(source.path) for source in sources)
        raise TrainingError(f"{names}: training needs at least two readable images; add images or hold out fewer.")


_VERSION = 2
_BATCH = 256  # images per journal entry: the most that an interruption loses
_POLL = 0.2  # seconds
_FILES = ("train", "held")


class _Decoded:
    """Decoded squares in memory, for training and held out."""

    def __init__(
        self, sources: Sequence[ImageSource], masks: Sequence[NDArray[np.bool_]], preprocess: Preprocess
    ) -> None:
        self.sources, self.masks, self.preprocess = sources, masks, preprocess
        self.shape = (preprocess.size, preprocess.size, 3)
        self.total, held = sum(map(len, masks)), int(sum(mask.sum() for mask in masks))
        self.room = (self.total - held, held)
        self.counts = [0, 0]  # training images, held-out images
        self.failures: list[tuple[int, int, str]] = []  # source, row, reason
        self.at = (0, 0)  # source and row to resume from
        self.open()

    def open(self) -> None:
        """Allocate memory for all images."""
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # not every system tells
            memory = 1 << 62
        self.refuse_beyond(0.7 * memory, self.total, f"this machine has {memory / 2**30:.1f} GiB of memory",
                           "pass --cache FOLDER to keep them on a disk")  # fmt: skip
        self._arrays = [np.empty((count, *self.shape), np.uint8) for count in self.room]

    def refuse_beyond(self, room: float, images: int, there: str, advice: str) -> None:
        """Refuse images that need more bytes than available."""
        needed = images * math.prod(self.shape)
        if needed > room:
            raise UsageError(
                f"{images:,} decoded images need {needed / 2**30:.1f} GiB, and {there}; {advice}, or train on fewer "
                "images or at a smaller size."
            )

    def fill(self, workers: int, progress: Progress) -> None:
        """Decode the missing images."""
        before = [0, *accumulate(map(len, self.masks))]
        first, start = self.at
        progress(before[first] + start, self.total)
        for s in range(first, len(self.sources)):
            for batch in self.sources[s].batches(
                self.preprocess, batch_size=_BATCH, workers=workers, start=start if s == first else 0
            ):
                self.add(s, batch)
                progress(before[s] + batch.rows.stop, self.total)

    def add(self, s: int, batch: ImageBatch) -> None:
        """Store a batch of a source."""
        out = self.masks[s][list(batch.positions)]
        for which in (0, 1):
            images = batch.images[out == bool(which)]
            self.write(which, images)
            self.counts[which] += len(images)
        failed = sorted(set(batch.rows).difference(batch.positions))
        self.failures += [(s, row, f.reason) for row, f in zip(failed, batch.failures, strict=True)]

    def write(self, which: int, images: NDArray[np.uint8]) -> None:
        """Append images."""
        self._arrays[which][self.counts[which] : self.counts[which] + len(images)] = images

    def images(self) -> list[NDArray[np.uint8]]:
        """Return training and held-out images, uint8, (N, S, S, 3)."""
        return [array[:count] for array, count in zip(self._arrays, self.counts, strict=True)]


def _read_cached(
    folder: Path, sources: Sequence[ImageSource], masks: Sequence[NDArray[np.bool_]], preprocess: Preprocess,
    workers: int, progress: Progress,
) -> _Decoded:  # fmt: skip
    """Decode sources to files in a folder, unless they exist already.

    The folder is named by a hash of the sources' listings (names, sizes, times), the size and fit of the squares, and
    the held-out images. If several processes of a machine start, the first decodes and the others wait.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, preprocess.size, preprocess.fit]).encode())
    for source, mask in zip(sources, masks, strict=True):
        digest.update(json.dumps([source.kind, str(Path(source.path).absolute()), len(source)]).encode() + b"\n")
        for entry in source.entries:
            digest.update(json.dumps([entry.name, entry.size, entry.mtime_ns]).encode() + b"\n")
        digest.update(np.packbits(mask).tobytes())
    place = folder / digest.hexdigest()[:32]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("ab") as file:
            while not lock(file):
                time.sleep(_POLL)
            cache = _Cache(place, sources, masks, preprocess)
            cache.fill(workers, progress)
    except OSError as exc:
        raise OutputError(f"{escape_name(place)}: decoded images cannot be kept there: {os_reason(exc)}.") from exc
    return cache


class _Cache(_Decoded):
    """Decoded squares in two files with a journal, so that an interrupted run resumes."""

    def __init__(self, place: Path, *args: Any) -> None:
        self.place = place
        super().__init__(*args)

    def open(self) -> None:
        """Read from the journal what the files hold, and drop a torn last line."""
        for name in (*_FILES, "journal"):
            (self.place / name).touch()
        data = (self.place / "journal").read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        for line in complete.splitlines():
            s, stop, self.counts, failed = json.loads(line)
            self.at = (s, stop) if stop < len(self.sources[s]) else (s + 1, 0)
            self.failures += [(s, row, reason) for row, reason in failed]
        os.truncate(self.place / "journal", len(complete))
        for name, count in zip(_FILES, self.counts, strict=True):
            if (self.place / name).stat().st_size < count * math.prod(self.shape):
                raise UsageError(f"{escape_name(self.place)}: decoded images are missing there; delete this folder.")
        free = shutil.disk_usage(self.place).free
        left = self.total - sum(self.counts) - len(self.failures)
        self.refuse_beyond(free, left, f"the disk has {free / 2**30:.1f} GiB left", "give another folder")

    def add(self, s: int, batch: ImageBatch) -> None:
        """Store a batch, and record it in the journal once it is on disk."""
        known = len(self.failures)
        super().add(s, batch)
        failed = [failure[1:] for failure in self.failures[known:]]
        with (self.place / "journal").open("ab", buffering=0) as lines:
            lines.write(json.dumps([s, batch.rows.stop, self.counts, failed]).encode() + b"\n")
            os.fsync(lines.fileno())

    def write(self, which: int, images: NDArray[np.uint8]) -> None:
        """Write images after the recorded ones."""
        with (self.place / _FILES[which]).open("r+b") as file:
            file.seek(self.counts[which] * math.prod(self.shape))
            file.write(images.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def images(self) -> list[NDArray[np.uint8]]:
        """Return the memory-mapped images; writing to them changes no file."""
        mapped = []
        for name, count in zip(_FILES, self.counts, strict=True):
            shape = (count, *self.shape)  # an empty file cannot be mapped
            found = np.memmap(self.place / name, np.uint8, "c", shape=shape) if count else np.empty(shape, np.uint8)
            mapped.append(np.asarray(found))
        return mapped
