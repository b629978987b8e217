"""Open sources: one or several, lists of files, and patterns of shards."""

from __future__ import annotations

import codecs
import os
import re
import stat
from bisect import bisect_right
from collections import Counter
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from stochcl.data.access import PROBE, is_environment_fault, read_listed
from stochcl.data.array import MAGIC, ArraySource, MatrixSource, map_array
from stochcl.data.arrow import is_arrow
from stochcl.data.builtin import Cifar10Source, is_cifar10
from stochcl.data.folder import FileSource, FolderSource, open_url
from stochcl.data.names import DEFAULTS, SourceOptions, is_image_name, path_name
from stochcl.data.preprocess import MAX_FILE_BYTES, Preprocess, identify
from stochcl.data.source import Entry, Failure, ImageSource, check_not_empty
from stochcl.data.tar import TAR_ENDINGS, TarSource, decompressor, looks_like_tar
from stochcl.data.zip import ZipSource
from stochcl.errors import EnvironmentFault, SourceError, SourceNotFound, StochclError, UsageError
from stochcl.files import PathLike, exists, reading, refuse_pointer, seems_utf16
from stochcl.messages import escape_name, os_reason, plural
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray


_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


def open_source(path: PathLike, options: SourceOptions = DEFAULTS) -> ImageSource | MatrixSource:
    """Open a folder or file of images or embeddings."""
    if is_url(path):
        opened = open_url(str(path), options)
        if isinstance(opened, ImageSource):
            return opened
        raise SourceError(
            f"{escape_name(path)}: a tar behind a URL can only be compressed alone, to one archive, because it is "
            "read once; copy it here first."
        )
    path = Path(path)
    try:
        with reading(path):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return Cifar10Source(path) if is_cifar10(path) else FolderSource(path, options)
            if stat.S_ISREG(status.st_mode):
                return _open_file(path, options)
    except StochclError as exc:  # some are ValueErrors
        if isinstance(exc.__cause__, FileNotFoundError):
            raise SourceNotFound(f"{escape_name(path)}: there is no such file or folder.") from exc
        raise
    except ValueError as exc:  # a NUL in the path
        raise SourceError(f"{escape_name(path)}: this is not a path ({exc}).") from exc
    raise SourceError(f"{escape_name(path)}: this is neither a file nor a folder.")


def _open_file(path: Path, options: SourceOptions) -> ImageSource | MatrixSource:
    with path.open("rb") as file:
        head = file.read(PROBE)
    ending = path.suffix.lower()
    if not head:
        raise SourceError(f"{escape_name(path)}: this file is empty (0 bytes).")
    refuse_pointer(path, head, "the file")
    if ending == ".npz":
        raise SourceError(
            f"{escape_name(path)}: a .npz file holds several arrays and cannot be read in place; save the array that "
            "you want as .npy with numpy.save."
        )
    if head.startswith(MAGIC) or ending == ".npy":
        return ArraySource(path) if map_array(path).ndim == 4 else MatrixSource(path)
    if head.startswith(_ZIP_MAGIC) or ending == ".zip":
        return ZipSource(path, options)
    if is_arrow(path, head):
        raise SourceError(
            f"{escape_name(path)}: a Parquet or Arrow file is read once, so only `stochcl compress` to one archive "
            "takes it; give a folder, .zip, .tar or .npy file."
        )
    if is_cifar10(path, head):
        return Cifar10Source(path)
    if looks_like_tar(head) or decompressor(head) or path.name.lower().endswith(TAR_ENDINGS):
        return TarSource(path, options)
    if is_image_name(path.name) or identify(head):
        return FileSource(path)
    raise SourceError(
        f"{escape_name(path)}: this is not a source of images or embeddings; give a folder, .zip, .tar or .npy "
        "file, or an image."
    )


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


def expand(pattern: PathLike) -> list[Path | str]:
    """Expand numeric ranges and ``*`` in a pattern, as bash does; an existing path is returned unchanged.

    Examples
    --------
    >>> [str(path) for path in expand("shards-{008..010}.tar")]
    ['shards-008.tar', 'shards-009.tar', 'shards-010.tar']
    """
    text = str(pattern)
    if not text:
        raise UsageError("the name of a source is empty; '.' is the current folder.")
    match = _RANGE.search(text)
    if not is_url(text) and exists(text):
        return [Path(text)]
    if match is None:
        # pathlib's own takes no absolute pattern
        found = [] if "*" not in text or is_url(text) else sorted(glob(text), key=os.fsencode)  # noqa: PTH207
        return [*map(Path, found)] or [text if is_url(text) else Path(text)]
    first, last = match.groups()
    if abs(int(last) - int(first)) >= _MOST_SHARDS:
        raise UsageError(f"{escape_name(text)}: a pattern may name at most {_MOST_SHARDS:,} files.")
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    numbers = range(int(first), int(last) + step, step)
    before, after = text[: match.start()], text[match.end() :]
    return [path for n in numbers for path in expand(f"{before}{n:0{width}d}{after}")]


def open_sources(paths: Sequence[PathLike], options: SourceOptions = DEFAULTS) -> ImageSource | MatrixSource:
    """Open one source, or several that are read in the given order."""
    found = [path for given in paths for path in expand(given)]
    if not found:
        raise UsageError("there is nothing to read: name a source.")
    sources = [open_source(path, options) for path in found]
    if len(found) == 1:
        return sources[0]
    images = [source for source in sources if isinstance(source, ImageSource)]
    if not images:
        return MatrixSource([Path(path) for path in found])
    if len(images) < len(sources):
        other = next(path for path, source in zip(found, sources, strict=True) if isinstance(source, MatrixSource))
        raise UsageError(f"{escape_name(other)}: these are embeddings, and other sources are images; give one kind.")
    return JoinedSource(
        [
            ListSource([str(path)], shown=str(path)) if isinstance(source, FileSource) else source
            for path, source in zip(found, images, strict=True)
        ]
    )


class JoinedSource(ImageSource):
    """Several sources in the given order; an image keeps its name, which may occur twice."""

    kind: ClassVar[str]

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = sources
        self.path = Path(f"{sources[0].path} and {len(sources) - 1:,} more")
        kinds = {source.kind for source in sources}
        self.kind = kinds.pop() if len(kinds) == 1 else "several"  # type: ignore[misc]
        self.entries = [entry for source in sources for entry in source.entries]
        self.rejected = [failure for source in sources for failure in source.rejected]
        self.others = sum((source.others or Counter() for source in sources), Counter[str]())
        if any(source.labels for source in sources):
            self.labels = [label for source in sources for label in source.labels or [""] * len(source)]
        self.told = (*dict.fromkeys(line for source in sources for line in source.told), *_shared_names(sources))
        self._ends = list(accumulate(len(source) for source in sources))

    def _sample(self, most: int) -> Iterator[bytes]:
        for source in self.sources[:: -(-len(self.sources) // most)]:
            yield from source._sample(max(1, most // len(self.sources)))

    def within(self, rows: range) -> tuple[range, range]:
        """Return the range of sources that hold these rows, and the rows counted from the first of those sources."""
        if not rows:
            return range(0), range(0)
        which = range(bisect_right(self._ends, rows.start), bisect_right(self._ends, rows.stop - 1) + 1)
        before = self._ends[which.start - 1] if which.start else 0
        return which, range(rows.start - before, rows.stop - before)

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        which, there = self.within(range(i, i + 1))
        return self.sources[which.start]._image(there.start, preprocess)

    def _read(self, i: int) -> bytes:
        which, there = self.within(range(i, i + 1))
        return self.sources[which.start]._read(there.start)


def _shared_names(sources: Sequence[ImageSource]) -> list[str]:
    """Describe the names that occur in more than one source."""
    owners: dict[str, int] = {}
    both = [e.name for i, source in enumerate(sources) for e in source.entries if owners.setdefault(e.name, i) != i]
    if not both:
        return []
    count = f"{plural(len(both), 'name')} of one source {'is' if len(both) == 1 else 'are'} in another, too"
    return [f"{count}, the first {escape_name(both[0])}: all images are kept, and labels by name are of both"]


class ListSource(ImageSource):
    """Image files from a list, in its order and named as in the list.

    Parameters
    ----------
    paths : sequence of str
        Relative to ``folder``, or absolute. A name is the path without a leading ``./``, ``../`` or ``/``; an
        absolute path below ``folder`` becomes relative to it.
    folder : path-like
    shown : str
        Name of the list in messages.
    """

    kind: ClassVar[str] = "list"

    def __init__(self, paths: Iterable[str], folder: PathLike = ".", shown: str = "the list") -> None:
        self.path = Path(shown)
        self._folder = Path(folder)
        self._paths: list[str] = []
        self.entries: list[Entry] = []
        self.rejected: list[Failure] = []
        for path in paths:
            self._add(path)
        check_not_empty(self.path, self.entries, self.rejected, "list")

    def _add(self, path: str) -> None:
        try:
            status = (self._folder / path).stat()
            name = self._name(path)
        except OSError as exc:
            if is_environment_fault(exc) and not isinstance(exc, FileNotFoundError | NotADirectoryError):
                raise EnvironmentFault(f"{escape_name(path)}: it cannot be read: {os_reason(exc)}.") from exc
            self.rejected.append(Failure(path, f"it cannot be read: {os_reason(exc)}"))
            return
        except ValueError as exc:
            self.rejected.append(Failure(path, str(exc)))
            return
        self._paths.append(path)
        self.entries.append(Entry(name, status.st_size, status.st_mtime_ns))

    def _name(self, path: str) -> str:
        folder = str(self._folder.absolute()).rstrip("/") + "/"
        return path_name(path.removeprefix(folder), backslashes=os.sep == "\\")

    def _read(self, i: int) -> bytes:
        return read_listed(self._folder / self._paths[i], MAX_FILE_BYTES)


def read_list(file: IO[bytes], *, null: bool | None = None) -> list[str]:
    r"""Read a list of paths, separated by null bytes if there are any (or if ``null``), else by newlines.

    It is UTF-8, with or without a byte order mark, or UTF-16 with one, as PowerShell writes it. UTF-16 without a mark
    is refused, because its zero bytes would separate one-letter paths.

    Examples
    --------
    >>> import io
    >>> read_list(io.BytesIO(b"a b.png\nc.png\n")), read_list(io.BytesIO(b"a\nb.png\0c.png\0"))
    (['a b.png', 'c.png'], ['a\nb.png', 'c.png'])
    """
    data = file.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode("utf-8", "surrogateescape")
        except UnicodeError as exc:
            raise SourceError(f"the list of files begins as UTF-16 and is not ({exc}); save it as UTF-8.") from exc
    elif not null and seems_utf16(data):
        raise SourceError("the list of files is UTF-16 without a byte order mark; save it as UTF-8.")
    data = data.removeprefix(codecs.BOM_UTF8)
    if null is None:
        null = b"\0" in data
    parts = data.split(b"\0") if null else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [part.decode("utf-8", "surrogateescape") for part in parts if part]


def open_list(where: PathLike | IO[bytes], *, null: bool | None = None, folder: PathLike = ".") -> ListSource:
    """Open the image files in a list, from a file or a stream, see :class:`ListSource` and :func:`read_list`."""
    if isinstance(where, str | os.PathLike):
        with reading(where, "this list"), Path(where).open("rb") as file:
            shown, paths = str(where), read_list(file, null=null)
    else:
        shown, paths = "the list on standard input", read_list(where, null=null)
    if not paths:
        raise SourceError(f"{escape_name(shown)}: this list of files is empty.")
    return ListSource(paths, folder, shown)
