"""The codec: what :func:`stochcl.load` returns, which encodes and compresses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stochcl.api.compress import CompressOptions, compress_source
from stochcl.api.encode import CodecBase
from stochcl.api.models import model_of
from stochcl.compress import open_archive

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.api.source import Given
    from stochcl.api.summary import Report


def codec_of(
    path: str | os.PathLike[str], model: str | os.PathLike[str] | None = None, *, device: str = "auto"
) -> Codec:
    """Load the model of this name or file, or else the one that made an archive, which is found by its hash."""
    if model is None:
        with open_archive(path) as archive:
            model = model_of(archive.header, path)
    return Codec(model, device=device)


class Codec(CodecBase):
    """An encoder, ready to compress images, or vectors; :func:`stochcl.load` makes one.

    Parameters
    ----------
    model : str or path-like
        The name of an embedded model, or a model file.
    device : str
        auto, cpu, cuda...
    precision : str
        fp32 or bf16, of the network's arithmetic. bf16 is faster where the processor has it; a few bits in a
        thousand come out differently, so that an archive has one precision, in its header.

    Raises
    ------
    UsageError
        If there is no such model, device or precision.
    ModelError
        If the model file is damaged, foreign or a pickle.
    """

    def compress(
        self,
        source: Given,
        path: str | os.PathLike[str] | IO[bytes],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **options: Any,
    ) -> Report:
        """Compress a folder, an archive or an array of images, or a matrix of embeddings, to an archive.

        Parameters
        ----------
        source : path-like, sequence of path-like, binary file object, or a source that is open
            A folder (recursive), .zip, .tar, or .npy of uint8 images; several of them, or a pattern of shards as
            ``shards-{000..099}.tar``. A file object is read once as a tar of images. For a model of vectors of W
            numbers, a .npy matrix of W float columns, of any size: it is read in parts.
        path : path-like or binary file object
            The archive to write; complete, or not there. To a file object it is streamed.
        progress : callable
            Told how many images of how many are done.
        **options
            Fields of :class:`~stochcl.api.compress.CompressOptions`: latents, rate, batch_size, workers,
            fit, names, uncertainty, strict, force, resume.

        Raises
        ------
        SourceError, ImageError, OutputError, UsageError
        """
        where = Path(path) if isinstance(path, str | os.PathLike) else path
        return compress_source(self, source, where, CompressOptions(**options), progress)
