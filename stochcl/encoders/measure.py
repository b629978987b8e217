"""What training reports about the encoder it has so far, on images that it does not train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.encoders.health import code_health
from stochcl.encoders.inference import encode_images
from stochcl.encoders.tree import DENOMINATOR, node_counts, quantised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.encoders.model import Encoder

__all__ = ["DENOMINATOR", "Monitor", "hard_rate", "knn_accuracy", "measure_features", "measure_ones"]

_MEASURED = 20_000  # images that the features' mean and variance are taken from


def measure_ones(codes: Codes) -> NDArray[np.int32]:
    """Return the probability of a one at every node of every latent's tree, in units of 1/4096, of 1..4095.

    The shape is (D, 2**bits - 1); of nodes that no code visits it is 1/2.
    """
    ones, visits = node_counts(codes)
    return quantised((ones + 0.5) / (visits + 1))


def hard_rate(codes: Codes, ones: NDArray[np.int32]) -> float:
    """Return -log2 p of codes under the quantised prior: bits per image in a file, before its overhead.

    Parameters
    ----------
    codes : Codes
    ones : ndarray of int32, shape (D, 2**bits - 1)
        As :func:`measure_ones` gives them, of the same or of other codes.
    """
    p = ones / DENOMINATOR
    taken, visits = node_counts(codes)
    return float(-(taken * np.log2(p) + (visits - taken) * np.log2(1 - p)).sum() / len(codes))


def knn_accuracy(
    bank: NDArray[np.float32], bank_labels: NDArray[np.str_], query: NDArray[np.float32],
    query_labels: NDArray[np.str_], neighbours: int = 20,
) -> float:  # fmt: skip
    """Return the accuracy of a vote of the nearest features by cosine, weighted by their similarity.

    The live measure of Wu et al. (arXiv 1805.01978, section 3.4), with its temperature of 0.07.
    """
    classes, ids = np.unique(bank_labels, return_inverse=True)

    def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return scaled

    similarity = unit(query) @ unit(bank).T
    k = min(neighbours, len(bank))
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    votes = np.zeros((len(query), len(classes)))
    np.add.at(votes, (np.arange(len(query))[:, None], ids[nearest]), weight)
    return float((classes[votes.argmax(axis=1)] == query_labels).mean())


def measure_features(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, precision: str = "fp32"
) -> None:
    """Bring the features of a network that is not trained any more to zero mean and unit variance, in place.

    Training keeps both as it goes. Published weights come without, and so do features that are pooled otherwise than
    those the network was trained with.

    Parameters
    ----------
    encoder : Encoder
        Of images, in evaluation mode, on ``device``.
    images : ndarray of uint8, shape (N, S, S, 3)
        Of which 20,000 to 40,000 are taken, evenly spread, where there are more.
    device : torch.device
    precision : str
        Of the network's arithmetic.
    """
    width, norm = encoder.feature_dim, encoder.norm

    def standardise(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
        found = {"running_mean": torch.from_numpy(mean), "running_var": torch.from_numpy(variance)}
        norm.load_state_dict(norm.state_dict() | found)

    standardise(np.zeros(width), np.ones(width))
    found = encode_images(encoder, images[:: max(1, len(images) // _MEASURED)], device, precision).features
    standardise(found.mean(axis=0, dtype=np.float64), found.var(axis=0, dtype=np.float64))


class Monitor:
    """Measures rate and kNN accuracy on fixed, seeded subsets.

    Parameters
    ----------
    train, held : ndarray of uint8, shape (N, S, S, 3)
        ``held`` may be empty: then the training images stand in for both, and no accuracy is measured.
    train_labels, held_labels : sequence of str
    seed : int
        Which images are taken.
    bank, queries : int
        How many at most.
    """

    def __init__(
        self, train: NDArray[np.uint8], held: NDArray[np.uint8], train_labels: tuple[str, ...],
        held_labels: tuple[str, ...], *, seed: int, bank: int = 4000, queries: int = 2000,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self._bank_rows = np.sort(rng.permutation(len(train))[:bank])
        self._query_rows = np.sort(rng.permutation(len(held))[:queries])
        self._bank, self._queries = train[self._bank_rows], held[self._query_rows]
        self._bank_labels = np.array([train_labels[i] for i in self._bank_rows])
        self._query_labels = np.array([held_labels[i] for i in self._query_rows])

    def health(self, encoder: Encoder, device: torch.device) -> dict[str, Any]:
        """Return :func:`~stochcl.encoders.health.code_health` of the held-out images' codes."""
        images = self._queries if len(self._queries) else self._bank
        return code_health(encode_images(encoder, images, device).codes, encoder.config.posterior)

    def __call__(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Return ``rate`` (bits an image, of held-out hard codes) and, with labels, ``knn`` (a fraction)."""
        was_training = encoder.training
        encoder.eval()
        bank = encode_images(encoder, self._bank, device)
        ones = measure_ones(bank.codes)
        if not len(self._queries):
            encoder.train(was_training)
            return {"rate": hard_rate(bank.codes, ones)}
        queries = encode_images(encoder, self._queries, device)
        encoder.train(was_training)
        result = {"rate": hard_rate(queries.codes, ones)}
        if len(set(self._query_labels.tolist())) > 1:
            result["knn"] = knn_accuracy(bank.features, self._bank_labels, queries.features, self._query_labels)
        return result
