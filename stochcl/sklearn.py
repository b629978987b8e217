"""scikit-learn transformers: embeddings to codes, and images or the names of an archive's rows to codes.

>>> from stochcl.sklearn import CodesTransformer, EmbeddingCoder
>>> CodesTransformer(archive="codes.bin", output="vectors")
CodesTransformer(archive='codes.bin', output='vectors')
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from stochcl.data import sample_rows
from stochcl.errors import ModelMismatch, UsageError, for_caller
from stochcl.files import PathLike, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from stochcl.api.codec import Codec

    Paths = Sequence[PathLike] | NDArray[Any]

__all__ = ["CodesTransformer", "EmbeddingCoder"]

OUTPUTS = ("symbols", "vectors")
_ROWS = 1 << 16  # encoded at a time
_FLOATS = [np.float64, np.float32, np.float16]


class EmbeddingCoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Learns a short discrete code of embeddings, and a decoder from codes to vectors.

    It fits a model of vectors, as ``stochcl train vectors.npy`` does: :meth:`save` writes it, and ``stochcl compress
    -m`` reads it. At most 200,000 rows are used, evenly spread.

    Parameters
    ----------
    latents : int, optional
        D, the number of latents of a code. If latents, posterior or alphabet is None, the rate decides, as in
        ``stochcl train``.
    rate : float, optional
        Target bits per row in a file; without it, codes keep everything that helps to decode the vector.
    output : str
        Output of :meth:`transform`: ``symbols``, integers of shape (N, D); or ``vectors``, the decoded codes, float32
        of shape (N, W), which suit linear models better.
    kept : int, optional
        Number of latents that :meth:`transform` keeps, the first ones; all by default.
    objective : str
        ``nt-xent`` keeps what distinguishes rows, for classifiers; ``reconstruct`` keeps distances.
    posterior : str, optional
        Family of the latents: bernoulli, categorical or gaussian.
    alphabet : int, optional
        Number of values per latent; 2 for bernoulli.
    steps : int
        Training steps.
    max_time : float, optional
        Time limit of training in seconds.
    entropy : str
        ``autoregressive`` fits a network for small files; ``independent`` is faster, if no file is written.
    random_state : int, RandomState instance or None
        Seed of the drawn rows and of training.

    Attributes
    ----------
    latents_, alphabet_ : int
        Shape of the code.
    model_ : bytes
        The model's file.
    rate_ : float
        Bits per row, measured on held-out rows (with few rows, on the training rows).
    record_ : dict
        The training record.
    n_features_in_ : int
        W.
    feature_names_in_ : ndarray of str
        If the input has column names that are all text.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 6))
    >>> coder = EmbeddingCoder(latents=8, steps=5, random_state=0).fit(x)
    >>> coder.transform(x).max() <= 1
    np.True_
    """

    def __init__(
        self, latents: int | None = None, *, rate: float | None = None, output: str = "symbols",
        kept: int | None = None, objective: str = "nt-xent", posterior: str | None = None,
        alphabet: int | None = None, steps: int = 3000, max_time: float | None = None,
        entropy: str = "autoregressive", random_state: Any = None,
    ) -> None:  # fmt: skip
        self.latents = latents
        self.rate = rate
        self.output = output
        self.kept = kept
        self.objective = objective
        self.posterior = posterior
        self.alphabet = alphabet
        self.steps = steps
        self.max_time = max_time
        self.entropy = entropy
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Train on rows, shape (N, W), finite; ``y`` is ignored.

        Raises
        ------
        ValueError
            If there are fewer than two rows, or some are not finite.
        UsageError
            If a parameter makes no sense.

        Warns
        -----
        UserWarning
            If the codes miss the target rate by more than 5 %.
        """
        from stochcl.api.embedding_model import code_shape, rate_warnings, to_bytes, train_head

        self._check()
        rows: NDArray[Any] = validate_data(self, X, dtype=_FLOATS, ensure_min_samples=2)
        shape = code_shape(self.latents, self.rate, self.posterior, self.alphabet)
        self.latents_, self.alphabet_ = shape["latents"], shape["alphabet"]
        self._check()
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        train, held = sample_rows(rows, seed=seed)
        encoder, self.record_ = train_head(
            train, held, latents=shape.pop("latents"), config=shape, rate=self.rate, objective=self.objective,
            steps=self.steps, max_time=self.max_time, entropy=self.entropy, seed=seed,
        )  # fmt: skip
        self.latents_ = encoder.config.latents
        self.model_ = to_bytes(encoder, self.record_)
        self.rate_ = float(self.record_["latents"]["rate"])
        for missed in rate_warnings(self.record_):
            warnings.warn(for_caller(missed.removeprefix("warning: ")), UserWarning, stacklevel=2)
        return self

    def _check(self) -> None:
        """Refuse wrong parameters that training would not notice."""
        if self.output not in OUTPUTS:
            raise UsageError(f"output must be {' or '.join(OUTPUTS)}, got {self.output!r}.")
        most = int(getattr(self, "latents_", self.latents or 4096))
        if self.kept is not None and not 1 <= self.kept <= most:
            raise UsageError(f"kept must be 1 to {most:,} latents, got {self.kept}.")

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Encode rows.

        Returns
        -------
        ndarray
            Symbols, uint8 or uint16, shape (N, D); or decoded vectors, float32, shape (N, W), as ``output`` says.
        """
        check_is_fitted(self)
        self._check()
        rows: NDArray[Any] = validate_data(self, X, dtype=_FLOATS, reset=False)
        codec = self.codec()
        decoder = codec.tables.decoder if self.output == "vectors" else None
        parts = []
        for start in range(0, len(rows), _ROWS):
            symbols = codec.encode(rows[start : start + _ROWS], latents=self.kept).symbols()
            parts.append(symbols if decoder is None else _vectors(decoder, symbols))
        return np.concatenate(parts)

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Decode the output of :meth:`transform` to vectors, float32, shape (N, W).

        Raises
        ------
        ValueError
            If it has another width, or values that are not symbols.
        """
        check_is_fitted(self)
        if self.output == "vectors":
            vectors: NDArray[np.float32] = check_array(X, dtype=np.float32)
            self._check_width(vectors.shape[1])
            return vectors
        symbols = check_array(X, dtype=None)
        self._check_width(symbols.shape[1])
        values = symbols.astype(np.int64)
        if (values != symbols).any() or values.min() < 0 or values.max() >= self.alphabet_:
            raise ValueError(f"symbols are integers of 0 to {self.alphabet_ - 1}, as transform returns them")
        decoder = self.codec().tables.decoder
        if decoder is None:
            raise ValueError("this model has no decoder")
        return _vectors(decoder, values)

    def _check_width(self, width: int) -> None:
        if width != self._n_features_out:
            raise ValueError(f"transform returns {self._n_features_out} columns, and this has {width}")

    def codec(self) -> Codec:
        """Return the codec of the fitted model, to write files: ``codec().compress("vectors.npy", "codes.bin")``."""
        from stochcl.api.embedding_model import codec_of

        check_is_fitted(self)
        return codec_of(self.model_)

    def save(self, path: PathLike) -> None:
        """Write the fitted model to a file, for ``stochcl compress -m``.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        check_is_fitted(self)
        write_file(path, self.model_, "the model")

    @property
    def _n_features_out(self) -> int:
        if self.output == "vectors":
            return int(self.n_features_in_)
        return self.latents_ if self.kept is None else self.kept

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # symbols are integers, and vectors float32
        return tags


def _vectors(decoder: Any, symbols: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return decoded vectors that do not depend on the order or number of rows.

    Sums in single precision do, on some processors; rounding from double precision hides it.
    """
    found: NDArray[np.float32] = decoder.decode(symbols, np.float64).astype(np.float32)
    return found


class CodesTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Encodes images by path with a model, or looks their codes up by name in an archive, without torch.

    Nothing is learnt: ``fit`` records the model and the width of its codes, and ``transform`` refuses other models.

    Parameters
    ----------
    model : str or path-like
        The encoder, as for :func:`stochcl.load`.
    archive : str or path-like, optional
        Look codes up in this archive (a file, a folder of shards or a URL) by the names given to :meth:`transform`;
        no model is loaded.
    output : str
        ``symbols``, integers of shape (N, D); or ``vectors``, the decoded codes, float32 of shape (N, V).
    latents : int, optional
        Number of latents to keep, the first ones; all by default.
    batch_size : int
        Images encoded at a time.
    device : str
        Device for encoding.

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
        self, model: PathLike = "general", *, archive: PathLike | None = None,
        output: str = "symbols", latents: int | None = None, batch_size: int = 256, device: str = "auto",
    ) -> None:  # fmt: skip
        self.model = model
        self.archive = archive
        self.output = output
        self.latents = latents
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Paths, y: object = None) -> Self:
        """Check that the model or archive exists and fits the parameters; ``X`` and ``y`` are ignored.

        Raises
        ------
        UsageError, SourceError, ModelError, FormatError
        """
        _paths(X)
        if self.output not in OUTPUTS:
            raise UsageError(f"output must be {' or '.join(OUTPUTS)}, got {self.output!r}.")
        if not self.batch_size >= 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")
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
            raise UsageError(f"latents must be 1 to {width:,}, got {self.latents}.")
        if self.output == "vectors" and decoder is None:
            raise UsageError("this model has no vector decoder; take output='symbols'.")
        self.latents_ = self.latents or width
        self._n_features_out = self.latents_ if decoder is None else decoder.dim
        return self

    def transform(self, X: Paths) -> NDArray[Any]:
        """Return the codes of images, or of rows of the archive, in the given order.

        Raises
        ------
        UsageError
            If ``X`` are not paths, or the archive has no such row.
        ImageError
            If an image cannot be read.
        ModelMismatch
            If the model is not the one from ``fit``.
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
            found: NDArray[Any] = archive.decoder.decode(codes)
            return found

    def _check_model(self, found: str) -> None:
        if found != self.model_sha256_:
            raise ModelMismatch(
                f"{self.archive or self.model}: it is of model {found[:12]}, not of "
                f"{self.model_sha256_[:12]}, as in fit."
            )

    def _opened(self) -> Any:
        from stochcl.compress.sharded import open_archive

        return open_archive(self.archive)  # type: ignore[arg-type]

    def _codec(self) -> Any:
        """Return the model, cached by its parameters and the file's status."""
        from stochcl.api.codec import Codec
        from stochcl.api.models import find_model

        status = find_model(self.model).stat()
        key = os.fspath(self.model), self.device, status.st_mtime_ns, status.st_size
        held = self.__dict__.get("_loaded")
        if held is None or held[0] != key:
            held = self._loaded = key, Codec(self.model, device=self.device)
        return held[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the loaded model, which is read again when needed."""
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_loaded", None)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True  # paths, which scikit-learn cannot validate
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _paths(given: Paths) -> list[Any]:
    """Return paths as a list; refuse other values."""
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
