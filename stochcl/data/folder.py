"""Images in a folder, in one file, or behind a URL."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from stochcl.data.access import PROBE, is_environment_fault, read_listed, time_of
from stochcl.data.names import DEFAULTS, FileFilter, SourceOptions, path_name, sort_key
from stochcl.data.preprocess import MAX_FILE_BYTES
from stochcl.data.source import Entry, Failure, ImageSource
from stochcl.data.tar import TAR_ENDINGS, TarStream
from stochcl.data.zip import ZipSource
from stochcl.errors import EnvironmentFault, ImageError, SourceError, SourceNotFound
from stochcl.files import reading
from stochcl.messages import escape_name, os_reason
from stochcl.remote import Remote, url_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class FolderSource(ImageSource):
    """The images in a folder and its subfolders.

    Hidden files and folders are left out. Links are followed, but each folder is read only once: loops of links end,
    and a link to a folder that is also read under its own name is rejected.
    """

    kind: ClassVar[str] = "folder"

    def __init__(self, path: Path, options: SourceOptions = DEFAULTS) -> None:
        self.path = path
        self._root = path
        listing = _Listing(path, FileFilter(options))
        self._enter([(entry, None) for entry in listing.entries], listing.rejected, listing.files, "folder")

    def _read(self, i: int) -> bytes:
        return read_listed(self._root / self.entries[i].name, MAX_FILE_BYTES)


class FileSource(FolderSource):
    """One image file, as a source of one image named like the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.parent
        status = path.stat()
        self.entries = [Entry(path.name, status.st_size, status.st_mtime_ns)]


class _Listing:
    """One walk over a folder; real folders come before links, so that a folder keeps its own name."""

    def __init__(self, root: Path, files: FileFilter) -> None:
        self.root, self.files = root, files
        self.entries: list[Entry] = []
        self.rejected: list[Failure] = []
        self._links: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self._walk("")
        while self._links:
            links, self._links = sorted(self._links, key=sort_key), []
            for name in links:
                self._walk(name, linked=True)

    def _walk(self, top: str, *, linked: bool = False) -> None:
        folders = [top]
        while folders:
            name = folders.pop()
            try:
                status = (self.root / name).stat()
                if (status.st_dev, status.st_ino) in self._seen:
                    if linked:
                        self.rejected.append(Failure(name, "it links to a folder that is read already"))
                    continue
                self._seen.add((status.st_dev, status.st_ino))
                with os.scandir(self.root / name) as items:
                    folders.extend(self._sort_out(items, f"{name}/" if name else ""))
            except OSError as exc:
                if not name or is_environment_fault(exc):
                    with reading(self.root / name, "this folder", EnvironmentFault if name else SourceError):
                        raise
                self.rejected.append(Failure(name, f"the folder cannot be read: {os_reason(exc)}"))

    def _sort_out(self, items: Iterator[os.DirEntry[str]], prefix: str) -> list[str]:
        """Add a folder's files to the lists; return its real subfolders."""
        folders: list[str] = []
        for item in items:
            if item.name.startswith(".") or (not prefix and item.name == "__MACOSX"):
                continue
            name = prefix + item.name
            try:
                if item.is_dir():
                    (self._links if item.is_symlink() else folders).append(name)
                elif self._is_image(name, item):
                    self._enter(name, item)
            except OSError as exc:
                if is_environment_fault(exc):
                    raise
                self.rejected.append(Failure(name, f"it cannot be looked at: {os_reason(exc)}"))
        return folders

    def _is_image(self, name: str, item: os.DirEntry[str]) -> bool:
        """Return whether a file is taken as an image; register it if it labels one."""
        path, kind = self.root / name, self.files.kind(name)

        def head() -> bytes:
            with path.open("rb") as file:
                return file.read(PROBE)

        known = kind != "unknown" or item.is_file()
        return known and self.files.takes(name, kind, partial(read_listed, path, MAX_FILE_BYTES), head)

    def _enter(self, name: str, item: os.DirEntry[str]) -> None:
        try:
            status = item.stat()
        except FileNotFoundError:
            self.rejected.append(Failure(name, "it is a broken link" if item.is_symlink() else "it is gone"))
            return
        if stat.S_ISREG(status.st_mode):
            self.entries.append(Entry(name, status.st_size, status.st_mtime_ns))
        else:
            self.rejected.append(Failure(name, "it is not a regular file"))


class UrlSource(ImageSource):
    """The images below a URL, or one image, named by their paths below it.

    The folder is listed once; a server that cannot list has no folders.
    """

    kind: ClassVar[str] = "url"

    def __init__(self, url: str, options: SourceOptions = DEFAULTS) -> None:
        self.path, self._remote = url, Remote(url)
        files, rejected = FileFilter(options), list[Failure]()
        listed: list[tuple[Entry, str]] = []
        with _explained(url, "there is nothing there, or the server cannot be reached or lists no folder"):
            found = self._list(files)
        for name, place, info in found:
            try:
                listed.append((Entry(path_name(name), int(info.get("size") or 0), time_of(info)), place))
            except ValueError as exc:
                rejected.append(Failure(name, str(exc)))
        self._places = self._enter(listed, rejected, files, "place")

    def _list(self, files: FileFilter) -> list[tuple[str, str, dict[str, Any]]]:
        """Return name, place and file-system info of each image."""
        system, root = self._remote.opened()
        if system.isfile(root):
            return [(root.rstrip("/").rpartition("/")[2], root, system.info(root))]
        found, there = [], system.find(root, detail=True)
        if not there:
            raise FileNotFoundError(root)
        for place, info in there.items():
            name = place.removeprefix(root.rstrip("/")).lstrip("/")
            head = partial(system.cat_file, place, start=0, end=PROBE)
            if files.takes(name, files.kind(name), partial(self._bytes_at, place), head):
                found.append((name, place, info))
        return found

    def _read(self, i: int) -> bytes:
        if self.entries[i].size > MAX_FILE_BYTES:
            raise ImageError(f"it has {self.entries[i].size:,} bytes, and the limit is {MAX_FILE_BYTES:,}")
        return self._bytes_at(self._places[i])

    def _bytes_at(self, place: str) -> bytes:
        try:
            with url_errors(str(self.path)):
                return bytes(self._remote.opened()[0].cat_file(place))
        except OSError as exc:  # the network failed, or the file vanished after listing
            raise EnvironmentFault(f"it cannot be read: {os_reason(exc)}") from exc


def open_url(url: str, options: SourceOptions = DEFAULTS) -> UrlSource | ZipSource | TarStream:
    """Open a folder of images, an image, a zip or a tar behind a URL; a tar is streamed, once."""
    ending = url.partition("?")[0].lower()
    if ending.endswith((".npy", ".npz", ".parquet", ".arrow", ".feather")):
        raise SourceError(
            f"{escape_name(url)}: only folders, images, .zip and .tar files are read from URLs; copy this file here."
        )
    if not ending.endswith((".zip", *TAR_ENDINGS)):
        return UrlSource(url, options)
    with _explained(url, "there is no such file"):
        if ending.endswith(".zip"):
            return ZipSource(url, options)
        system, place = Remote(url).opened()
        return TarStream(system.open(place, "rb"), url, options)


@contextmanager
def _explained(url: str, nothing: str) -> Iterator[None]:
    """Turn errors into a SourceError for the URL, with ``nothing`` as the reason if nothing is there."""
    try:
        with reading(url), url_errors(url):
            yield
    except SourceError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            raise SourceNotFound(f"{escape_name(url)}: {nothing}.") from exc
        raise
