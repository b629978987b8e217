"""What the rows of an archive are learned from: their codes, labels and groups."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.data import printable, read_labels
from stochcl.errors import LabelsError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stochcl.compress import Rows

    PathLike = str | os.PathLike[str]


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Put the file that labels came from before what is wrong with them."""
    try:
        yield
    except LabelsError as exc:
        raise LabelsError(f"{printable(path)}: {exc}") from exc


def input_of(archive: Rows, given: str) -> str:
    """Return ``vectors`` or ``symbols``; of auto, vectors where the model has a decoder."""
    if given == "auto":
        return "vectors" if archive.has_decoder else "symbols"
    return given


def rows_of(archive: Rows, used: str, latents: int | None) -> NDArray[Any]:
    """Return vectors or symbols, shape (N, V) or (N, D)."""
    return archive.to_vectors(latents) if used == "vectors" else archive.to_numpy(latents)


def has_categories(archive: Rows) -> bool:
    """Tell whether symbols are names rather than quantities: their model decodes them through codebooks."""
    return archive.header.alphabet > 2 and archive.decoder is not None and archive.decoder.codebooks is not None


def kind_of(archive: Rows) -> str:
    """Return what symbols are: ``bits``, ``categories``, or ``levels``, numbers in order."""
    if archive.header.alphabet == 2:
        return "bits"
    return "categories" if has_categories(archive) else "levels"


def labels_of(archive: Rows, path: PathLike, labels: PathLike | None, column: str | None = None) -> tuple[str, ...]:
    """Return a label for every row: from the CSV, or from the archive.

    Raises
    ------
    LabelsError
        If there are none, or a row has none in the CSV.
    """
    shown = printable(path)
    if archive.names is None and (labels is not None or archive.labels is None):
        raise LabelsError(f"{shown}: its rows have no names to find labels by (--no-names?); compress with names.")
    if labels is not None and archive.names is not None:
        return read_labels(labels).match(archive.names, column)
    if archive.labels is None:
        raise LabelsError(f"{shown}: it has no labels, for its images lie in no folders; give them with --labels.")
    return tuple(archive.labels)


def groups_of(archive: Rows, path: PathLike, groups: str, labels: PathLike | None) -> tuple[str, ...]:
    """Return a group for every row, from a CSV file ``name,group``, or else from a column of the labels' file.

    Raises
    ------
    LabelsError
        If there is neither such a file nor such a column, or a row is not in it, or its group is empty.
    """
    if Path(groups).is_file():
        table, found = groups, labels_of(archive, path, groups)
    elif labels is not None:
        table, found = str(labels), labels_of(archive, path, labels, groups)
    else:
        raise LabelsError(
            f"{printable(groups)}: there is no such file of groups; give a CSV file name,group, "
            "or a column of --labels."
        )
    empty = [i for i, group in enumerate(found) if not group.strip()]
    if empty:
        first = printable((archive.names or ())[empty[0]])
        raise LabelsError(
            f"{printable(table)}: {len(empty):,} of {len(found):,} images have an empty group, the first {first}; "
            "give every image one."
        )
    return found
