"""A scikit-learn transformer: embeddings to codes, and back to vectors in the units that they came in.

>>> from sklearn.datasets import load_digits
>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.pipeline import make_pipeline
>>> from stochcl.sklearn import EmbeddingCoder
>>> x, y = load_digits(return_X_y=True)
>>> coder = EmbeddingCoder(latents=32, steps=50, random_state=0)
>>> codes = coder.fit_transform(x)
>>> codes.shape, codes.dtype.name
((1797, 32), 'uint8')
>>> coder.inverse_transform(codes).shape
(1797, 64)
>>> probe = make_pipeline(EmbeddingCoder(latents=32, output="vectors", steps=50), LogisticRegression())
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from stochcl.data import sample_rows
from stochcl.errors import UsageError

if TYPE_CHECKING:
    import os

    from numpy.typing import ArrayLike, NDArray

    from stochcl.api.codec import Codec

__all__ = ["EmbeddingCoder"]

OUTPUTS = ("symbols", "vectors")
_ROWS = 1 << 16  # encoded at a time
_FLOATS = [np.float64, np.float32, np.float16]


class EmbeddingCoder(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Learns a short discrete code of embeddings, and a decoder from codes to vectors.

    What is fitted is a model of vectors, the same as ``stochcl train vectors.npy`` makes: :meth:`save` writes it,
    and ``stochcl compress -m`` takes it. Rows are drawn evenly from those given, 200,000 at most.

    Parameters
    ----------
    latents : int, optional
        D, the number of latents of a code. What is None of it, of posterior and of alphabet is chosen by the rate, as
        ``stochcl train`` does.
    rate : float, optional
        Bits that a row's code is to take in a file; without it, codes keep what helps to give the vector back.
    output : str
        What :meth:`transform` returns: ``symbols``, integers of shape (N, D); or ``vectors``, what they decode to,
        float32 of shape (N, W), which a linear model on top makes more of.
    kept : int, optional
        Latents that :meth:`transform` keeps, the first so many; all by default.
    objective : str
        ``nt-xent`` keeps what tells one row from another, for classifiers; ``reconstruct`` keeps distances.
    posterior : str, optional
        Family of the latents: bernoulli, categorical or gaussian.
    alphabet : int, optional
        Values of a latent; 2 for bernoulli.
    steps : int
        Of training.
    max_time : float, optional
        Seconds that training may take.
    entropy : str
        ``autoregressive`` fits a network that makes files small; ``independent`` is faster, where no file is written.
    random_state : int, RandomState instance or None
        Of the rows that are drawn and of training.

    Attributes
    ----------
    latents_, alphabet_ : int
        Of the code.
    model_ : bytes
        The model's file.
    rate_ : float
        Bits of a row's code, measured on rows that were held out (of few rows, on those that it was trained on).
    record_ : dict
        How it was trained.
    n_features_in_ : int
        W.
    feature_names_in_ : ndarray of str
        Where the input has column names, all of them text.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 6))
    >>> coder = EmbeddingCoder(latents=8, steps=5, random_state=0).fit(x)
    >>> coder.transform(x).max() <= 1
    np.True_
    """

    def __init__(
        self,
        latents: int | None = None,
        *,
        rate: float | None = None,
        output: str = "symbols",
        kept: int | None = None,
        objective: str = "nt-xent",
        posterior: str | None = None,
        alphabet: int | None = None,
        steps: int = 3000,
        max_time: float | None = None,
        entropy: str = "autoregressive",
        random_state: Any = None,
    ) -> None:
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
            If the codes take more or less than the rate that was asked for, by more than 5 %.
        """
        from stochcl.api.heads import code_shape, rate_warnings, to_bytes, train_head

        self._check()
        rows: NDArray[Any] = validate_data(self, X, dtype=_FLOATS, ensure_min_samples=2)
        shape = code_shape(self.latents, self.rate, self.posterior, self.alphabet)
        self.latents_, self.alphabet_ = shape["latents"], shape["alphabet"]
        self._check()
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        train, held = sample_rows(rows, seed=seed)
        encoder, self.record_ = train_head(
            train,
            held,
            latents=shape.pop("latents"),
            config=shape,
            rate=self.rate,
            objective=self.objective,
            steps=self.steps,
            max_time=self.max_time,
            entropy=self.entropy,
            seed=seed,
        )
        self.model_ = to_bytes(encoder, self.record_)
        self.rate_ = float(self.record_["latents"]["rate"])
        for missed in rate_warnings(self.record_):
            warnings.warn(missed.removeprefix("warning: "), UserWarning, stacklevel=2)
        return self

    def _check(self) -> None:
        """Refuse what training would not notice, before it."""
        if self.output not in OUTPUTS:
            raise UsageError(f"output is {' or '.join(OUTPUTS)}, not {self.output!r}.")
        most = int(getattr(self, "latents_", self.latents or 4096))
        if self.kept is not None and not 1 <= self.kept <= most:
            raise UsageError(f"kept is 1 to {most:,} latents, not {self.kept}.")

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
        """Decode what :meth:`transform` returned to vectors, float32, shape (N, W).

        Raises
        ------
        ValueError
            If it has another width, or holds numbers that are no symbols.
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
            msg = f"symbols are integers of 0 to {self.alphabet_ - 1}, as transform returns them"
            raise ValueError(msg)
        decoder = self.codec().tables.decoder
        if decoder is None:
            msg = "this model has no decoder"
            raise ValueError(msg)
        return _vectors(decoder, values)

    def _check_width(self, width: int) -> None:
        if width != self._n_features_out:
            msg = f"transform returns {self._n_features_out} columns, and this has {width}"
            raise ValueError(msg)

    def codec(self) -> Codec:
        """Return the codec of the fitted model, which writes files, as ``compress("vectors.npy", "codes.bin")``."""
        from stochcl.api.heads import codec_of

        check_is_fitted(self)
        return codec_of(self.model_)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a file, for ``stochcl compress -m``.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        from stochcl.api.heads import write_head

        check_is_fitted(self)
        write_head(self.model_, path)

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
    """Return decoded vectors that are the same in whatever order rows come, and however many there are.

    Sums in single precision depend on both, on some processors; rounding a sum in double precision hides it.
    """
    vectors: NDArray[np.float32] = decoder.decode(symbols, np.float64).astype(np.float32)
    return vectors
