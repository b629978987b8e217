"""The images that training runs over, decoded once to 8-bit squares, in memory or in a mapped file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stochcl.data import Failure, ImageSource, Preprocess, folder_label, held_out, printable
from stochcl.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images.

    Parameters
    ----------
    train, held : ndarray of uint8, shape (N, S, S, 3)
        Images to train on, and those held out, which are only ever measured on.
    train_labels, held_labels : tuple of str
        First folders of their names, or what else labels them. Training without labels never sees them; the live
        kNN accuracy does.
    skipped : tuple of Failure
        Images that could not be read.
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
) -> ImageSet:
    """Decode sources into memory, or to files of a folder that are mapped.

    Parameters
    ----------
    sources : sequence of ImageSource
    preprocess : Preprocess
        What brings an image to S x S.
    hold_out : int
        How many images of each class of each source are kept from training, see
        :func:`stochcl.data.held_out`.
    workers : int
        Decoding threads.
    progress : callable
        Told, now and then, how many images of how many have been read.
    label : callable
        The label of an image of this name.
    cache : Path, optional
        A folder to decode to, see :func:`stochcl.encoders.imagecache.read_cached`: then memory does not limit how
        many images there are, and the next run finds them decoded.

    Raises
    ------
    TrainingError
        If fewer than two images can be trained on.
    UsageError
        If the decoded images would not fit into memory.
    """
    total = sum(len(source) for source in sources)
    masks = [
        held_out(source.entries, hold_out, label) if hold_out else np.zeros(len(source), bool) for source in sources
    ]
    if cache is not None:
        from stochcl.encoders.imagecache import read_cached  # which needs this module

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


def check_enough(images: int, sources: Sequence[ImageSource]) -> None:
    """Raise TrainingError where fewer than two images can be trained on."""
    if images < 2:
        names = ", ".join(printable(source.path) for source in sources)
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
