"""Images to train on: their labels, and reading them into memory or into a cache on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from stochcl.codes import folder_label
from stochcl.data import Failure, ImageSource, Preprocess, held_out, read_labels
from stochcl.data.open import SubsetSource
from stochcl.errors import LabelsError, OutputError, TrainingError, UsageError
from stochcl.files import lock
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.data import ImageBatch


def labeller(
    sources: Sequence[ImageSource], labels: str | os.PathLike[str] | None = None, level: int | None = None
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


def labels_of(
    source: ImageSource, labels: str | os.PathLike[str] | None = None, level: int | None = None
) -> list[str]:
    """Return the label of each image of a source, see :func:`labeller`."""
    label = labeller([source], labels, level)
    return [label(entry.name) for entry in source.entries]


def classes_of(data: ImageSet) -> tuple[str, ...]:
    """Return the classes of images to train on, in the order of their names."""
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

    Images are uint8, shape (N, S, S, 3); held-out ones are only ever measured on. Labels are the first folders of
    names by default; pre-training does not see them, the live kNN accuracy does. Those skipped could not be read.
    """

    train: NDArray[np.uint8]
    held: NDArray[np.uint8]
    train_labels: tuple[str, ...]
    held_labels: tuple[str, ...]
    skipped: tuple[Failure, ...]


def read_images(
    sources: Sequence[ImageSource],
    preprocess: Preprocess,
    *,
    hold_out: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    label: Callable[[str], str] = folder_label,
    cache: Path | None = None,
    most: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Decode sources into memory, or to files of a folder that are mapped.

    ``most`` bounds the images to train on, a seeded choice from all sources.
    """
    masks = [
        held_out(source.entries, hold_out, label) if hold_out else np.zeros(len(source), bool) for source in sources
    ]
    if most is not None:
        sources, masks = _choose(sources, masks, most, seed)
    total = sum(len(source) for source in sources)
    if cache is not None:
        return read_cached(cache, sources, masks, preprocess, workers=workers, progress=progress, label=label)
    _check_memory(total * preprocess.size**2 * 3, total)
    # Images to train on fill this array from its beginning; taking them out of it at the end would need it twice.
    images = np.empty((total, preprocess.size, preprocess.size, 3), np.uint8)
    held = [images[:0].copy()]
    labels: dict[bool, list[str]] = {False: [], True: []}
    skipped: list[Failure] = []
    done = 0
    for source, mask in zip(sources, masks, strict=True):
        skipped += source.rejected
        for batch in source.batches(preprocess, workers=workers):
            out = mask[list(batch.positions)]
            begin = len(labels[False])
            images[begin : begin + len(out) - out.sum()] = batch.images[~out]
            held.append(batch.images[out])
            for name, kept_out in zip(batch.names, out.tolist(), strict=True):
                labels[kept_out].append(label(name))
            skipped += batch.failures
            done += len(batch.rows)
            progress(done, total)
    check_enough(len(labels[False]), sources)
    return ImageSet(
        train=images[: len(labels[False])],
        held=np.concatenate(held),
        train_labels=tuple(labels[False]),
        held_labels=tuple(labels[True]),
        skipped=tuple(skipped),
    )


def _choose(
    sources: Sequence[ImageSource], masks: list[NDArray[np.bool_]], most: int, seed: int
) -> tuple[list[ImageSource], list[NDArray[np.bool_]]]:
    """Return sources with all held-out images and ``most`` of the others at most, and which are held out."""
    free = np.flatnonzero(~np.concatenate(masks))
    kept = np.concatenate(masks)
    kept[np.random.default_rng(seed).permutation(free)[:most]] = True
    parts = np.split(kept, np.cumsum([len(mask) for mask in masks])[:-1])
    rows = [np.flatnonzero(part).tolist() for part in parts]
    chosen: list[ImageSource] = [SubsetSource(source, part) for source, part in zip(sources, rows, strict=True)]
    return chosen, [mask[part] for mask, part in zip(masks, parts, strict=True)]


def check_enough(images: int, sources: Sequence[ImageSource]) -> None:
    """Raise TrainingError where fewer than two images can be trained on."""
    if images < 2:
        names = ", ".join(escape_name(source.path) for source in sources)
        raise TrainingError(f"{names}: training needs at least two readable images; add images or hold out fewer.")


def _check_memory(needed: int, images: int) -> None:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system says
        return
    if needed > 0.7 * memory:
        msg = (
            f"{images:,} decoded images need {needed / 2**30:.1f} GiB, and this machine has "
            f"{memory / 2**30:.1f} GiB of memory; pass --cache FOLDER to keep them on a disk, or train on fewer "
            "images or at a smaller size."
        )
        raise UsageError(msg)


_VERSION = 2
_BATCH = 256  # images between two entries of the journal: the most that an interruption loses
_POLL = 0.2  # seconds


def read_cached(
    folder: Path,
    sources: Sequence[ImageSource],
    masks: Sequence[NDArray[np.bool_]],
    preprocess: Preprocess,
    *,
    workers: int,
    progress: Callable[[int, int], None],
    label: Callable[[str], str],
) -> ImageSet:
    """Decode sources to files in a folder, unless that has been done, and map them.

    The files are named by what they hold: the sources' listings (names, sizes, times), the size and fit of the
    squares, and which images are held out. The next run resumes an interrupted one;
    of several processes of one machine the first decodes, and the others wait for it.
    """
    place = folder / _key(sources, masks, preprocess)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("ab") as file:
            _wait_for(file)
            cache = _Cache(place, sources, masks, preprocess.size)
            cache.fill(preprocess, workers, progress)
        train, held = cache.mapped()
    except OSError as exc:
        raise OutputError(f"{escape_name(place)}: decoded images cannot be kept there: {os_reason(exc)}.") from exc
    bad = {(failure[0], failure[1]) for failure in cache.failures}
    labels: dict[bool, list[str]] = {False: [], True: []}
    for s, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        for row, (entry, out) in enumerate(zip(source.entries, mask.tolist(), strict=True)):
            if (s, row) not in bad:
                labels[out].append(label(entry.name))
    check_enough(len(train), sources)
    skipped = [
        failure
        for s, source in enumerate(sources)
        for failure in [
            *source.rejected,
            *(Failure(source.entries[row].name, reason) for where, row, reason in cache.failures if where == s),
        ]
    ]
    return ImageSet(train, held, tuple(labels[False]), tuple(labels[True]), tuple(skipped))


def _key(sources: Sequence[ImageSource], masks: Sequence[NDArray[np.bool_]], preprocess: Preprocess) -> str:
    """Return the name of the decoded images: a hash of listings, held-out images, size and fit."""
    digest = hashlib.sha256(json.dumps([_VERSION, preprocess.size, preprocess.fit]).encode())
    for source, mask in zip(sources, masks, strict=True):
        digest.update(json.dumps([source.kind, str(Path(source.path).absolute()), len(source)]).encode() + b"\n")
        for entry in source.entries:
            digest.update(json.dumps([entry.name, entry.size, entry.mtime_ns]).encode() + b"\n")
        digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()[:32]


def _wait_for(file: IO[bytes]) -> None:
    """Wait until no other process is at it."""
    while not lock(file):
        time.sleep(_POLL)


class _Cache:
    """Two files of decoded squares, to train on and held out, and a journal of their progress."""

    def __init__(
        self, place: Path, sources: Sequence[ImageSource], masks: Sequence[NDArray[np.bool_]], size: int
    ) -> None:
        self._place, self._sources, self._masks = place, sources, masks
        self._shape, self._bytes = (size, size, 3), size * size * 3
        self.counts = [0, 0]  # images to train on, and held out
        self.failures: list[tuple[int, int, str]] = []  # source, row, reason
        self._at = (0, 0)  # source and row to go on from

    def fill(self, preprocess: Preprocess, workers: int, progress: Callable[[int, int], None]) -> None:
        """Decode the images that the files lack."""
        total = sum(len(source) for source in self._sources)
        journal = self._place / "journal"
        self._replay(journal)
        before = [sum(len(source) for source in self._sources[:s]) for s in range(len(self._sources) + 1)]
        done = before[self._at[0]] + self._at[1]
        progress(done, total)
        if done == total:
            return
        self._check_room(total - done)
        with (
            self._open("train") as train,
            self._open("held") as held,
            journal.open("ab", buffering=0) as lines,
        ):
            files = (train, held)
            for file, count in zip(files, self.counts, strict=True):
                file.truncate(count * self._bytes)
                file.seek(0, os.SEEK_END)
            for s, batch in self._batches(preprocess, workers):
                self._take(s, batch, files)
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
                failed = [[row, reason] for where, row, reason in self.failures if (where, row) >= self._at]
                self._at = (s, batch.rows.stop) if batch.rows.stop < len(self._sources[s]) else (s + 1, 0)
                lines.write(json.dumps([s, batch.rows.stop, self.counts, failed]).encode() + b"\n")
                os.fsync(lines.fileno())
                progress(before[s] + batch.rows.stop, total)

    def _take(self, s: int, batch: ImageBatch, files: tuple[IO[bytes], IO[bytes]]) -> None:
        out = self._masks[s][list(batch.positions)]
        for which, file in enumerate(files):
            images = batch.images[out == bool(which)]
            file.write(images.tobytes())
            self.counts[which] += len(images)
        failed = sorted(set(batch.rows).difference(batch.positions))
        self.failures += [(s, row, f.reason) for row, f in zip(failed, batch.failures, strict=True)]

    def _batches(self, preprocess: Preprocess, workers: int) -> Iterator[tuple[int, ImageBatch]]:
        first, start = self._at
        for s in range(first, len(self._sources)):
            for batch in self._sources[s].batches(
                preprocess, batch_size=_BATCH, workers=workers, start=start if s == first else 0
            ):
                yield s, batch

    def _open(self, name: str) -> IO[bytes]:
        path = self._place / name
        path.touch()
        return path.open("r+b")

    def _replay(self, journal: Path) -> None:
        """Read from the journal what the files hold, and drop a torn last line."""
        if not journal.exists():
            return
        data = journal.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        for line in complete.splitlines():
            s, stop, counts, failed = json.loads(line)
            self._at = (s, stop) if stop < len(self._sources[s]) else (s + 1, 0)
            self.counts = counts
            self.failures += [(s, row, reason) for row, reason in failed]
        if len(complete) < len(data):
            with journal.open("r+b") as file:
                file.truncate(len(complete))
        sizes = [(self._place / name).stat().st_size for name in ("train", "held")]
        if any(size < count * self._bytes for size, count in zip(sizes, self.counts, strict=True)):
            raise UsageError(f"{escape_name(self._place)}: decoded images are missing there; delete this folder.")

    def _check_room(self, images: int) -> None:
        free, needed = shutil.disk_usage(self._place).free, images * self._bytes
        if needed > free:
            raise UsageError(
                f"{escape_name(self._place)}: {images:,} decoded images need {needed / 2**30:.1f} GiB, and the disk "
                f"has {free / 2**30:.1f} GiB left; give another folder, or train on fewer images or at a smaller "
                "size."
            )

    def mapped(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return images to train on and those held out, uint8, (N, S, S, 3); writing to them changes no file."""
        return self._map("train", self.counts[0]), self._map("held", self.counts[1])

    def _map(self, name: str, count: int) -> NDArray[np.uint8]:
        if not count:
            return np.empty((0, *self._shape), np.uint8)
        return np.asarray(np.memmap(self._place / name, np.uint8, "c", shape=(count, *self._shape)))
