"""Labels of images that are trained or scored on: their first folders, or a CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.data import folder_label, printable, read_labels
from stochcl.errors import LabelsError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from stochcl.data import ImageSource
    from stochcl.encoders.imageset import ImageSet


def labeller(sources: Sequence[ImageSource], labels: str | os.PathLike[str] | None = None) -> Callable[[str], str]:
    """Return what gives the label of each image of these sources, by its name.

    Parameters
    ----------
    sources : sequence of ImageSource
    labels : path-like, optional
        A CSV of ``name,label``; without one the label is an image's first folder.

    Raises
    ------
    LabelsError
        If an image has no label; the message counts them and names the first.
    """
    names = [entry.name for source in sources for entry in source.entries]
    if labels is None:
        without = [name for name in names if not folder_label(name)]
        advice = "put images into a folder for each class, or give a CSV of name,label with --labels"
        label: Callable[[str], str] = folder_label
    else:
        table = dict(zip(names, read_labels(labels).match(names), strict=True))
        without = [name for name in names if not table[name].strip()]
        advice = f"{printable(labels)} has an empty label for them"
        label = table.__getitem__
    if without:
        msg = f"{len(without):,} of {len(names):,} images have no label, such as {printable(without[0])}"
        raise LabelsError(f"{printable(sources[0].path)}: {msg}; {advice}.")
    return label


def labels_of(source: ImageSource, labels: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the label of each image of a source, see :func:`labeller`."""
    label = labeller([source], labels)
    return [label(entry.name) for entry in source.entries]


def classes_of(data: ImageSet) -> tuple[str, ...]:
    """Return the classes of images to train on, in the order of their names.

    Raises
    ------
    LabelsError
        If there is but one class, or one of which every image is held out.
    """
    classes = tuple(sorted(set(data.train_labels)))
    if lost := sorted(set(data.held_labels) - set(classes)):
        msg = f"every image of {printable(lost[0])} is held out, and none is left to train on"
        raise LabelsError(f"{msg}; hold out fewer.")
    if len(classes) < 2:
        msg = f"all {len(data.train_labels):,} images are of one class, {printable(classes[0])}"
        raise LabelsError(f"{msg}; a classifier needs two.")
    return classes
