"""A sentence-transformers model whose ``encode`` returns codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.codec import Codec
from stochcl.errors import UsageError, require
from stochcl.messages import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.files import PathLike

__all__ = ["Coder"]


class Coder:
    """Encodes sentences: a sentence-transformers model, and a codec trained on its embeddings.

    Parameters
    ----------
    model : SentenceTransformer, or str
        Any object whose ``encode(sentences)`` returns an array; or a model's name or folder, to be loaded.
    codec : Codec, or path-like
        From ``stochcl train embeddings.npy``, for vectors as wide as the model's.

    Examples
    --------
    >>> coder = Coder("all-MiniLM-L6-v2", "head.safetensors")  # doctest: +SKIP
    >>> codes = coder.encode(["A cat sat.", "A dog ran."])    # doctest: +SKIP
    >>> coder.decode(codes).shape                             # doctest: +SKIP
    (2, 384)
    """

    def __init__(self, model: Any, codec: Codec | PathLike) -> None:
        if isinstance(model, str):
            what = "loading a model by its name"
            model = require("sentence_transformers", what, "sentence-transformers").SentenceTransformer(model)
        self.model, self.codec = model, codec if isinstance(codec, Codec) else Codec(codec, device="cpu")
        if self.codec.columns is None:
            raise UsageError(
                "this codec takes images; a Coder needs one of vectors: train it on embeddings with `stochcl train`."
            )

    def encode(self, sentences: str | Sequence[str], *, latents: int | None = None, **options: Any) -> Codes:
        """Return the codes of sentences, one row each; one row for a single sentence.

        ``options`` go to the model's own ``encode``: ``batch_size``, ``prompt``, ``normalize_embeddings``...
        """
        given = [sentences] if isinstance(sentences, str) else list(sentences)
        vectors = np.asarray(self.model.encode(given, **options | {"convert_to_numpy": True}), np.float32)
        if len(vectors) != len(given):
            raise UsageError(
                f"the model returned {plural(len(vectors), 'vector')} for {plural(len(given), 'sentence')}; a Coder "
                "needs one of each."
            )
        return self.codec.encode(vectors, latents=latents, uncertainty=False)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """Return the decoded embeddings of codes, shape (N, V)."""
        return self.codec.decode(codes)
