"""Which kind of source a path is."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.data.array import MAGIC, ArraySource, is_images, map_array, refuse_npz
from stochcl.data.arrowfile import is_arrow
from stochcl.data.cifar import Cifar10Source, is_cifar10
from stochcl.data.files import why
from stochcl.data.folder import FileSource, FolderSource
from stochcl.data.matrix import MatrixSource
from stochcl.data.names import printable
from stochcl.data.preprocess import identify
from stochcl.data.source import ImageSource, is_image_name
from stochcl.data.tar import TarSource, compression, looks_like_tar
from stochcl.data.zip import ZipSource
from stochcl.errors import SourceError

if TYPE_CHECKING:
    import os

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
_PROBE = 1 << 16  # enough of a file for any image format to be known by


def open_source(path: str | os.PathLike[str]) -> ImageSource | MatrixSource:
    """Open whatever holds images or embeddings.

    Parameters
    ----------
    path : str or path-like
        A folder of images (recursive), a .zip or .tar (.tar.gz, .tar.bz2, .tar.xz) of images, one image file,
        or a .npy file: two-dimensional float is embeddings, four-dimensional uint8 is images. Archives and
        arrays are known by their content, whatever they are called. A folder of CIFAR-10's published batches is its
        training images, ``test_batch`` in it the others.

    Returns
    -------
    ImageSource or MatrixSource
        Nothing but the listing has been read.

    Raises
    ------
    SourceError
        If there is nothing there, it cannot be read, it is damaged, or it holds no image.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return Cifar10Source(path) if is_cifar10(path) else FolderSource(path)
        if stat.S_ISREG(status.st_mode):
            return _open_file(path)
    except FileNotFoundError as exc:
        raise SourceError(f"{printable(path)}: there is no such file or folder.") from exc
    except OSError as exc:
        raise SourceError(f"{printable(path)}: it cannot be read: {why(exc)}.") from exc
    except ValueError as exc:  # a NUL in the path
        raise SourceError(f"{printable(path)}: this is not a path ({exc}).") from exc
    raise SourceError(f"{printable(path)}: this is neither a file nor a folder.")


def _open_file(path: Path) -> ImageSource | MatrixSource:
    with path.open("rb") as file:
        head = file.read(_PROBE)
    ending = path.suffix.lower()
    if not head:
        raise SourceError(f"{printable(path)}: this file is empty (0 bytes).")
    if ending == ".npz":
        raise refuse_npz(path)
    if head.startswith(MAGIC) or ending == ".npy":
        return ArraySource(path) if is_images(map_array(path)) else MatrixSource(path)
    if head.startswith(_ZIP_MAGIC) or ending == ".zip":
        return ZipSource(path)
    if is_arrow(path, head):
        raise SourceError(
            f"{printable(path)}: a Parquet or Arrow file is read once, from front to back, which `stochcl compress` "
            "to one file of codes does, and nothing else; give a folder, .zip, .tar or .npy file."
        )
    if is_cifar10(path, head):
        return Cifar10Source(path)
    if looks_like_tar(head) or compression(path) or path.name.lower().endswith(_TAR_ENDINGS):
        return TarSource(path)
    if is_image_name(path.name) or identify(head):
        return FileSource(path)
    msg = (
        f"{printable(path)}: this is not a source of images or embeddings; give a folder, .zip, .tar or .npy "
        "file, or an image."
    )
    raise SourceError(msg)
