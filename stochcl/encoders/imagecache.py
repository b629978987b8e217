"""Decoded images in a file, mapped rather than kept in memory, and decoded once for many runs and processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from typing import IO, TYPE_CHECKING

import numpy as np

from stochcl.atomic import lock
from stochcl.data import Failure, printable
from stochcl.data.files import why
from stochcl.encoders.imageset import ImageSet, check_enough
from stochcl.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.data import ImageBatch, ImageSource, Preprocess

_VERSION = 1
_BATCH = 256  # images between two entries of the journal: what an interruption loses at most
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
    squares, and which images are held out. A run that is interrupted is gone on with by the next; of several
    processes of one machine the first decodes, and the others wait for it.

    Parameters
    ----------
    folder : Path
        Made if it is not there; best on a local disk.
    sources, masks : sequences
        Sources, and of each the images that are held out.
    preprocess, workers, progress, label
        As :func:`stochcl.encoders.imageset.read_images` has them.

    Raises
    ------
    UsageError
        If the disk has no room for the images.
    OutputError
        If they cannot be written.
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
        raise OutputError(f"{printable(place)}: decoded images cannot be kept there: {why(exc)}.") from exc
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
    """Return the name of what these images are once they are decoded."""
    digest = hashlib.sha256(json.dumps([_VERSION, preprocess.size, preprocess.fit]).encode())
    for source, mask in zip(sources, masks, strict=True):
        digest.update(json.dumps([source.kind, os.fspath(source.path.absolute()), len(source)]).encode() + b"\n")
        for entry in source.entries:
            digest.update(json.dumps([entry.name, entry.size, entry.mtime_ns]).encode() + b"\n")
        digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()[:32]


def _wait_for(file: IO[bytes]) -> None:
    """Wait until no other process is at it."""
    while not lock(file):
        time.sleep(_POLL)


class _Cache:
    """Two files of squares, one after the other, and a journal of how far they have come."""

    def __init__(
        self, place: Path, sources: Sequence[ImageSource], masks: Sequence[NDArray[np.bool_]], size: int
    ) -> None:
        self._place, self._sources, self._masks = place, sources, masks
        self._shape, self._bytes = (size, size, 3), size * size * 3
        self.counts = [0, 0]  # images to train on, and held out
        self.failures: list[tuple[int, int, str]] = []  # source, row, reason
        self._at = (0, 0)  # source and row to go on from

    def fill(self, preprocess: Preprocess, workers: int, progress: Callable[[int, int], None]) -> None:
        """Decode what the files do not have yet."""
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
        """Take over what the journal says is in the files; a last line that is torn counts for nothing."""
        if not journal.exists():
            return
        data = journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            s, stop, counts, failed = json.loads(line)
            self._at = (s, stop) if stop < len(self._sources[s]) else (s + 1, 0)
            self.counts = counts
            self.failures += [(s, row, reason) for row, reason in failed]
        if len(whole) < len(data):
            with journal.open("r+b") as file:
                file.truncate(len(whole))
        sizes = [(self._place / name).stat().st_size for name in ("train", "held")]
        if any(size < count * self._bytes for size, count in zip(sizes, self.counts, strict=True)):
            raise UsageError(f"{printable(self._place)}: decoded images are missing there; delete this folder.")

    def _check_room(self, images: int) -> None:
        free, needed = shutil.disk_usage(self._place).free, images * self._bytes
        if needed > free:
            raise UsageError(
                f"{printable(self._place)}: {images:,} decoded images need {needed / 2**30:.1f} GiB, and the disk "
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
