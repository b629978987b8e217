"""The codec that :func:`stochcl.load` returns, and the image writer that :func:`stochcl.writer` returns."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compress import CompressOptions, compress_source
from stochcl.api.encode import CodecBase
from stochcl.api.models import model_of
from stochcl.codes import Codes, label_text
from stochcl.compress import Writer, open_archive
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stochcl.api.source import Given
    from stochcl.api.summary import Report
    from stochcl.files import PathLike
    from stochcl.messages import Progress


def codec_of(path: PathLike, model: PathLike | None = None, *, device: str = "auto") -> Codec:
    """Load a model by name or file, or by default the one that made an archive, found by its hash."""
    if model is None:
        with open_archive(path) as archive:
            model = model_of(archive.header, path)
    return Codec(model, device=device)


class Codec(CodecBase):
    """An encoder for compressing images or vectors, made by :func:`stochcl.load`.

    Parameters
    ----------
    model : str or path-like
        The name of a packaged model, or a model file.
    device : str
        auto, cpu, cuda...
    precision : str
        Numeric precision of the network: fp32, bf16 or int8. auto is int8 for EfficientNet-Lite networks on a CPU
        that were not fine-tuned, else fp32. bf16 is faster if the CPU supports it, int8 on any. Precisions give
        different bits (one in five with the default model), so an archive has one precision, recorded in its
        header.
    size : int, optional
        Side in pixels of the images that the network takes: by default the model's own; for residual latents, 3/4 to
        3/2 of it. An archive has one size, recorded in its header.

    Raises
    ------
    UsageError
        If there is no such model, device, precision or size.
    ModelError
        If the model file is damaged, foreign or a pickle.
    """

    def compress(
        self, source: Given, path: PathLike | IO[bytes], *, progress: Progress = lambda done, total: None,
        **options: Any,
    ) -> Report:  # fmt: skip
        """Compress a folder, an archive or an array of images, or a matrix of embeddings, to an archive.

        Parameters
        ----------
        source : path-like, sequence of path-like, binary file object, or a source that is open
            A folder (recursive), .zip, .tar, or .npy of uint8 images; several of them, or a pattern of shards such as
            ``shards-{000..099}.tar``. A file object is read once, as a tar of images. For a model of vectors of W
            numbers, a .npy matrix of W float columns, of any size: it is read in parts.
        path : path-like or binary file object
            The archive to write, complete or not at all. A file object is streamed to.
        progress : callable
            Called with the number of images done and the total.
        **options
            Fields of :class:`~stochcl.api.compress.CompressOptions`: latents, rate, batch_size, workers,
            size, fit, names, uncertainty, strict, force, resume.

        Raises
        ------
        SourceError, ImageError, OutputError, UsageError
        """
        where = Path(path) if isinstance(path, str | os.PathLike) else path
        return compress_source(self, source, where, CompressOptions(**options), progress)


class ImageWriter(Writer):
    """A writer that accepts images as well as codes, made by :func:`stochcl.writer`.

    Parameters
    ----------
    path : path-like
    codec : CodecBase
        The encoder.
    latents : int, optional
        Number of latents to keep; all by default.
    uncertainty : bool
        Whether to also store the codes' uncertainty.
    **options
        See :class:`stochcl.compress.Writer`.
    """

    def __init__(
        self, path: PathLike, codec: CodecBase, *, latents: int | None = None,
        uncertainty: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        self._codec = codec
        width = codec.latents if latents is None else latents
        header = codec.header(latents=width, preprocess=codec.preprocess, source_kind="stream")
        embed = not codec.has_packaged_tables
        super().__init__(path, header, codec.tables, embed_tables=embed, uncertainty=uncertainty, **options)

    def add(  # type: ignore[override]
        self,
        rows: Codes | Any,
        names: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        """Append codes, or images (or vectors, for a model of vectors), which are encoded first.

        Parameters
        ----------
        rows : Codes, or what :meth:`stochcl.Codec.encode` takes
            Images of shape (B, H, W, 3), uint8, or a list of paths, Pillow images and arrays; a tensor is converted
            to an array.
        names, labels : sequence, optional
            One per row, in all batches or in none; they replace those of codes. Without labels, the first folder
            of a name is the label. Labels may be text or numbers. None, NaN and negative integers mean no label
            (give regression targets as floats).
        **options
            ``positions``, ``sizes``: see :meth:`stochcl.compress.Writer.add`.

        Raises
        ------
        UsageError
            If the images do not suit the model, or the number of names or labels differs from the rows.
        ImageError, OutputError
        """
        if not isinstance(rows, Codes):
            if not len(rows):
                return
            given = np.asarray(rows) if hasattr(rows, "__array__") else rows
            rows = self._codec.encode(given, latents=self.header.latents)
        if names is not None:
            rows = replace(rows, names=tuple(map(str, _as_many(names, rows, "names"))))
        if labels is not None:
            rows = replace(rows, labels=tuple(map(label_text, _as_many(labels, rows, "labels"))))
        super().add(rows, **options)


def _as_many(texts: Sequence[Any], rows: Codes, what: str) -> Sequence[Any]:
    if isinstance(texts, str) or len(texts) != len(rows):
        raise UsageError(f"there are {len(rows):,} rows in this batch, and not as many {what}; give one for each.")
    return texts
