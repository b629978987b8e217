"""Writing an archive batch by batch, for callers with a loader of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, label_text
from stochcl.compress import Writer
from stochcl.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from stochcl.api.encode import CodecBase


class ImageWriter(Writer):
    """A writer that takes images as well as codes; :func:`stochcl.writer` makes one.

    Parameters
    ----------
    path : path-like
    codec : CodecBase
        That encodes.
    latents : int, optional
        Width of the codes; the model's by default.
    uncertainty : bool
        Whether to store the codes' uncertainty, too.
    **options
        See :class:`stochcl.compress.Writer`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        codec: CodecBase,
        *,
        latents: int | None = None,
        uncertainty: bool = False,
        **options: Any,
    ) -> None:
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
        """Append codes, or images, or vectors where the model takes those, which are encoded first.

        Parameters
        ----------
        rows : Codes, or what :meth:`stochcl.Codec.encode` takes
            Images of shape (B, H, W, 3), uint8, or a list of paths, Pillow images and arrays; a tensor is taken as
            the array that it holds.
        names, labels : sequence, optional
            One a row; all batches have them or none has. The first folder of a name is a label, if there are no
            others. In place of those that codes have. Labels may be text or numbers; None, NaN and negative whole
            numbers are no label (give targets of a regression as floats).
        **options
            ``positions``, ``sizes``: see :meth:`stochcl.compress.Writer.add`.

        Raises
        ------
        UsageError
            If these are no images of the model's kind, or not as many names or labels.
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
