"""The images that training runs over, decoded once and kept in memory as 8-bit squares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stochcl.data import Failure, ImageSource, Preprocess, folder_label, held_out, printable
from stochcl.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images.

    Parameters
    ----------
    train, held : ndarray of uint8, shape (N, S, S, 3)
        Images to train on, and those held out, which are only ever measured on.
    train_labels, held_labels : tuple of str
        First folders of their names. Training never sees them; the live kNN accuracy does.
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
) -> ImageSet:
    """Decode sources into memory.

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

    Raises
    ------
    TrainingError
        If fewer than two images can be trained on.
    UsageError
        If the decoded images would not fit into memory.
    """
    total = sum(len(source) for source in sources)
    _check_memory(total * preprocess.size**2 * 3, total)
    images = np.empty((total, preprocess.size, preprocess.size, 3), np.uint8)
    labels: list[str] = []
    kept_out: list[bool] = []
    skipped: list[Failure] = []
    done = 0
    for source in sources:
        mask = held_out(source.entries, hold_out) if hold_out else np.zeros(len(source), bool)
        skipped += source.rejected
        for batch in source.batches(preprocess, workers=workers):
            images[len(labels) : len(labels) + len(batch.names)] = batch.images
            labels += [folder_label(name) for name in batch.names]
            kept_out += _of_readable(source, batch.rows, batch.failures, mask)
            skipped += batch.failures
            done += len(batch.rows)
            progress(done, total)
    held = np.array(kept_out, bool)
    images = images[: len(held)]
    if len(held) - held.sum() < 2:
        names = ", ".join(printable(source.path) for source in sources)
        raise TrainingError(f"{names}: training needs at least two readable images; add images or hold out fewer.")
    return ImageSet(
        train=images if not held.any() else images[~held],
        held=images[held],
        train_labels=tuple(label for label, out in zip(labels, held, strict=True) if not out),
        held_labels=tuple(label for label, out in zip(labels, held, strict=True) if out),
        skipped=tuple(skipped),
    )


def _of_readable(
    source: ImageSource, rows: range, failures: tuple[Failure, ...], mask: NDArray[np.bool_]
) -> list[bool]:
    """Return the mask of a batch's readable images: failures are rows too, in order, known by name."""
    out = []
    failed = [failure.name for failure in failures]
    for row in rows:
        if failed and source.entries[row].name == failed[0]:
            failed.pop(0)
        else:
            out.append(bool(mask[row]))
    return out


def _check_memory(needed: int, images: int) -> None:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system says
        return
    if needed > 0.7 * memory:
        msg = (
            f"{images:,} decoded images need {needed / 2**30:.1f} GiB, and this machine has "
            f"{memory / 2**30:.1f} GiB of memory; train on fewer images or at a smaller size."
        )
        raise UsageError(msg)
