"""Standard input as a source, and standard output as where an archive goes."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

from stochcl.data import ImageSource, open_list
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def standard_input(what: str) -> IO[bytes]:
    """Return the bytes of standard input.

    Raises
    ------
    UsageError
        If it is a terminal.
    """
    if sys.stdin.isatty():
        raise UsageError(f"standard input is a terminal, and {what} is read from it; send it through a pipe.")
    return sys.stdin.buffer


def source_of(
    sources: Sequence[Path], files_from: Path | None, *, null: bool, folder: Path
) -> Path | Sequence[Path] | IO[bytes] | ImageSource:
    """Return what a request names to read: paths, standard input, or the images of a list.

    Raises
    ------
    UsageError
        If it names nothing, or too much.
    SourceError
        If the list cannot be read.
    """
    if files_from is not None:
        if sources:
            raise UsageError("--files-from lists what is read; leave SOURCE out.")
        where = standard_input("a list of files") if str(files_from) == "-" else files_from
        return open_list(where, null=null or None, folder=folder)
    if null or str(folder) != ".":
        raise UsageError("--null and --directory say how a list is read; give it with --files-from.")
    if not sources:
        raise UsageError("there is nothing to compress: name a SOURCE, or a list of files with --files-from.")
    if "-" not in map(str, sources):
        return sources[0] if len(sources) == 1 else sources
    if len(sources) > 1:
        raise UsageError("- is standard input, a tar of images, and no other source goes with it.")
    return standard_input("a tar of images")


def output_of(path: Path) -> Path | IO[bytes]:
    """Return where an archive goes: the path, or for ``-`` standard output.

    Raises
    ------
    UsageError
        If standard output is a terminal.
    """
    if str(path) != "-":
        return path
    if sys.stdout.isatty():
        raise UsageError(
            "standard output is a terminal, and codes are no text; send them through a pipe, or give -o a name."
        )
    return sys.stdout.buffer
