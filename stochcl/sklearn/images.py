"""A scikit-learn transformer from image files, or from the names of an archive's rows, to codes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from stochcl.errors import ModelMismatch, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Paths = Sequence[str | os.PathLike[str]] | NDArray[Any]

__all__ = ["CodesTransformer"]

OUTPUTS = ("symbols", "vectors")


class CodesTransformer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Encodes images by their paths with a model, or looks their codes up by name in an archive, without torch.

    Nothing is learnt: ``fit`` takes down which model it is and how wide its codes are, and ``transform`` refuses
    another model than that.

    Parameters
    ----------
    model : str or path-like
        That encodes, as :func:`stochcl.load` takes it.
    archive : str or path-like, optional
        Take codes from this archive, a file, a folder of shards or a URL, in which the images are called as they are
        given; no model is loaded.
    output : str
        ``symbols``, integers of shape (N, D); or ``vectors``, what they decode to, float32 of shape (N, V).
    latents : int, optional
        The first so many; all by default.
    batch_size : int
        Images encoded at a time.
    device : str
        Where to encode.

    Attributes
    ----------
    model_sha256_ : str
    latents_ : int
        D.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> pipe = make_pipeline(CodesTransformer(archive="codes.bin", output="vectors"), LogisticRegression())
    >>> pipe.fit(["cats/0.jpg", "dogs/0.jpg"], ["cat", "dog"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "general",
        *,
        archive: str | os.PathLike[str] | None = None,
        output: str = "symbols",
        latents: int | None = None,
        batch_size: int = 256,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.archive = archive
        self.output = output
        self.latents = latents
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Paths, y: object = None) -> Self:
        """Check that the model or archive is there and suits the parameters; ``X`` and ``y`` are not looked into.

        Raises
        ------
        UsageError, SourceError, ModelError, FormatError
        """
        _paths(X)
        if self.output not in OUTPUTS:
            raise UsageError(f"output is {' or '.join(OUTPUTS)}, not {self.output!r}.")
        if not self.batch_size >= 1:
            raise UsageError(f"batch_size is at least 1 image, not {self.batch_size}.")
        if self.archive is not None:
            with self._opened() as archive:
                self.model_sha256_, width = archive.header.model_sha256, archive.header.latents
                decoder = archive.decoder if self.output == "vectors" else None
        else:
            codec = self._codec()
            if codec.columns is not None:
                raise UsageError(f"{self.model}: this is a model of vectors; take stochcl.sklearn.EmbeddingCoder.")
            self.model_sha256_, width = codec.model.sha256, codec.latents
            decoder = codec.tables.decoder if self.output == "vectors" else None
        if self.latents is not None and not 1 <= self.latents <= width:
            raise UsageError(f"latents is 1 to {width:,}, not {self.latents}.")
        if self.output == "vectors" and decoder is None:
            raise UsageError("this model has no vector decoder; take output='symbols'.")
        self.latents_ = self.latents or width
        self._n_features_out = self.latents_ if decoder is None else decoder.dim
        return self

    def transform(self, X: Paths) -> NDArray[Any]:
        """Return the codes of images, or of rows of the archive, in the order given.

        Raises
        ------
        UsageError
            If these are no paths, or the archive has no such row.
        ImageError
            If an image cannot be read.
        ModelMismatch
            If it is no longer the model of ``fit``.
        """
        check_is_fitted(self)
        paths = _paths(X)
        if self.archive is not None:
            return self._looked_up([os.fspath(path) for path in paths])
        codec = self._codec()
        self._check_model(codec.model.sha256)
        parts = []
        for start in range(0, len(paths), self.batch_size):
            symbols = codec.encode(paths[start : start + self.batch_size], latents=self.latents_).symbols()
            parts.append(symbols if self.output == "symbols" else codec.tables.decoder.decode(symbols))
        return np.concatenate(parts)

    def _looked_up(self, names: list[str]) -> NDArray[Any]:
        with self._opened() as archive:
            self._check_model(archive.header.model_sha256)
            if archive.names is None:
                raise UsageError(f"{self.archive}: its rows have no names (--no-names?).")
            rows = {name: row for row, name in enumerate(archive.names)}
            if missing := [name for name in names if name not in rows]:
                raise UsageError(f"{self.archive}: it has no row {missing[0]!r} ({len(missing):,} are missing).")
            codes: NDArray[Any] = archive[[rows[name] for name in names]].prefix(self.latents_).symbols()
            if self.output == "symbols" or archive.decoder is None:
                return codes
            vectors: NDArray[Any] = archive.decoder.decode(codes)
            return vectors

    def _check_model(self, found: str) -> None:
        if found != self.model_sha256_:
            raise ModelMismatch(
                f"{self.archive or self.model}: it is of model {found[:12]}, not of "
                f"{self.model_sha256_[:12]}, as in fit."
            )

    def _opened(self) -> Any:
        from stochcl.api.archives import open_archive

        return open_archive(self.archive)  # type: ignore[arg-type]

    def _codec(self) -> Any:
        """Return the model, loaded once for its parameters and the file as it stands."""
        from stochcl.api.codec import Codec
        from stochcl.api.models import find_model

        status = find_model(self.model).stat()
        key = os.fspath(self.model), self.device, status.st_mtime_ns, status.st_size
        held = self.__dict__.get("_loaded")
        if held is None or held[0] != key:
            held = self._loaded = key, Codec(self.model, device=self.device)
        return held[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded model out: it is read again where it is wanted."""
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_loaded", None)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True  # paths: no matrix, and nothing for scikit-learn to validate
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _paths(given: Paths) -> list[Any]:
    """Return paths as a list, refusing what are none."""
    if isinstance(given, str | bytes | os.PathLike):
        raise UsageError("give a list of paths, not one: put it into a list.")
    array = np.asarray(given, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:  # a column of a table
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        raise UsageError(f"paths have shape (N,), at least one, not {array.shape}.")
    for i, path in enumerate(array):
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"row {i:,}: a path is text, not {type(path).__name__}.")
    return list(array)
