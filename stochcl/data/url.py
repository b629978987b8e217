"""Images behind URLs, read through fsspec."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from stochcl.data.access import PROBE
from stochcl.data.names import is_hidden, path_name, sort_key
from stochcl.data.options import DEFAULTS, FileFilter, SourceOptions
from stochcl.data.preprocess import MAX_FILE_BYTES, identify
from stochcl.data.source import Entry, Failure, ImageSource, check_not_empty
from stochcl.data.tar import TarStream
from stochcl.data.tar_headers import TAR_ENDINGS
from stochcl.errors import EnvironmentFault, ImageError, SourceError, SourceNotFound
from stochcl.messages import escape_name, os_reason
from stochcl.remote import Remote, url_errors

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified")


class UrlSource(ImageSource):
    """The images below a URL, or the image that it is, named by their paths below it.

    Listing asks for the folder once; a server that lists no folders has none.
    """

    kind: ClassVar[str] = "url"

    def __init__(self, url: str, options: SourceOptions = DEFAULTS) -> None:
        self.path, self._remote = url, Remote(url)
        files, rejected = FileFilter(options), list[Failure]()
        listed: list[tuple[Entry, str]] = []
        try:
            with url_errors(url):
                found = self._list(files)
        except FileNotFoundError as exc:
            raise SourceError(
                f"{escape_name(url)}: there is nothing there, or the server cannot be reached or lists no folder."
            ) from exc
        except OSError as exc:
            raise SourceError(f"{escape_name(url)}: it cannot be read: {os_reason(exc)}.") from exc
        for name, place, info in found:
            try:
                listed.append((Entry(path_name(name), int(info.get("size") or 0), _time_of(info)), place))
            except ValueError as exc:
                rejected.append(Failure(name, str(exc)))
        listed.sort(key=lambda pair: sort_key(pair[0].name))
        self.entries = [entry for entry, _ in listed]
        self._places = [place for _, place in listed]
        self.rejected, self.others = rejected, files.others
        check_not_empty(url, self.entries, rejected, "place", files.others)
        self.labels = files.labels(url, self.entries)

    def _list(self, files: FileFilter) -> list[tuple[str, str, dict[str, Any]]]:
        """Return name, place and facts of each image."""
        system, root = self._remote.opened()
        if system.isfile(root):
            return [(root.rstrip("/").rpartition("/")[2], root, system.info(root))]
        found, there = [], system.find(root, detail=True)
        if not there:
            raise FileNotFoundError(root)
        for place, info in there.items():
            name = place.removeprefix(root.rstrip("/")).lstrip("/")
            if is_hidden(name) or (kind := files.kind(name)) == "other":
                continue
            if kind == "label":
                files.add_label(name, lambda place=place: self._bytes_at(place))  # type: ignore[misc]
            elif kind == "image" or identify(bytes(system.cat_file(place, start=0, end=PROBE))):
                found.append((name, place, info))
        return found

    def _read(self, i: int) -> bytes:
        if self.entries[i].size > MAX_FILE_BYTES:
            raise ImageError(f"it has {self.entries[i].size:,} bytes, and more than {MAX_FILE_BYTES:,} are not read")
        return self._bytes_at(self._places[i])

    def _bytes_at(self, place: str) -> bytes:
        try:
            with url_errors(str(self.path)):
                return bytes(self._remote.opened()[0].cat_file(place))
        except OSError as exc:  # of the network, or it was there when it was listed
            raise EnvironmentFault(f"it cannot be read: {os_reason(exc)}") from exc


def _time_of(info: dict[str, Any]) -> int:
    """Return when a file was last changed, in nanoseconds, 0 where that is not said."""
    value = next((info[key] for key in _TIMES if key in info), 0)
    value = value.timestamp() if isinstance(value, datetime) else value
    return int(value * 1e9) if isinstance(value, int | float) else 0


def open_url(url: str, options: SourceOptions = DEFAULTS) -> UrlSource | TarStream:
    """Open a folder of images, an image, or a tar behind a URL; a tar is read once, as it comes."""
    ending = url.partition("?")[0].lower()
    if ending.endswith((".zip", ".npy", ".npz", ".parquet", ".arrow", ".feather")):
        raise SourceError(
            f"{escape_name(url)}: behind a URL folders, images and tars are read; copy this file here first."
        )
    if not ending.endswith(TAR_ENDINGS):
        return UrlSource(url, options)
    try:
        with url_errors(url):
            system, place = Remote(url).opened()
            return TarStream(system.open(place, "rb"), url, options)
    except FileNotFoundError as exc:
        raise SourceNotFound(f"{escape_name(url)}: there is no such file.") from exc
    except OSError as exc:
        raise SourceError(f"{escape_name(url)}: it cannot be read: {os_reason(exc)}.") from exc
