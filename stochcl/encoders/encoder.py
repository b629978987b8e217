"""The encoder: from images or vectors to features to a posterior over latents, and from codes back to features."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stochcl.encoders import layout
from stochcl.encoders.backbones import make_backbone
from stochcl.encoders.posteriors import POSTERIORS, Posterior
from stochcl.encoders.priors import FACTORISED, Factorised
from stochcl.entropy.autoregressive import AutoregressiveModel, array_types, logistic_levels
from stochcl.entropy.independent import IndependentModel, nodes_per_symbol
from stochcl.entropy.model import latent_lengths
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from stochcl.codes import Codes
    from stochcl.encoders.config import EncoderConfig
    from stochcl.entropy.tables import Tables
    from stochcl.entropy.vectors import ResidualDecoder, VectorDecoder


_ROWS = 8192  # vectors at a time
_LEAST_SCALE, _MOST_SCALE = 1e-4, 5e3
_FARTHEST = 200  # deviations: float16 rounds such a number to a tenth of a deviation


class Standardise(nn.Module):
    """Standardises vectors to zero mean per column and unit variance on average.

    One scale for all columns preserves distances. Buffers are float32: ``centre``, shape (W,), and ``scale``, shape
    (1,).
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(1))

    @torch.no_grad()
    def fit(self, vectors: NDArray[np.floating]) -> None:
        """Fit to vectors, finite, shape (N, W), N at least 1; the scale is 1 if all are equal."""
        centre = vectors.mean(axis=0, dtype=np.float64)
        parts = (vectors[i : i + _ROWS] - centre for i in range(0, len(vectors), _ROWS))
        power = sum(float(np.square(part).sum()) for part in parts) / vectors.size
        scale, farthest = (power**0.5 or 1.0), float(abs(centre).max())
        if not _LEAST_SCALE <= scale <= _MOST_SCALE:
            raise UsageError(
                f"the vectors' numbers have a deviation of {scale:.3g}, and a decoder holds {_LEAST_SCALE:g} to "
                f"{_MOST_SCALE:,g}; multiply the matrix by {1 / scale:.3g} first."
            )
        if farthest > _FARTHEST * scale:
            raise UsageError(
                f"a column of the vectors has a mean of {farthest:.3g}, and the columns a deviation of {scale:.3g}: "
                "the half precision of a decoder cannot tell such numbers apart; subtract the columns' means "
                "first."
            )
        self.centre.copy_(torch.from_numpy(centre))
        self.scale.fill_(scale)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return standardised vectors, float, shape (B, W)."""
        return (vectors - self.centre) / self.scale


class ReducedHead(nn.Module):
    """Parameters of the map from features to the reduced space of residual latents.

    Points are u = weight t(features + shift) - mean, shape (m,); t is a signed square root if there is a shift, and
    the identity otherwise. :class:`stochcl.encoders.latents.Residual` computes them.
    """

    def __init__(self, features: int, config: EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.reduced, features) / features**0.5)
        self.mean = nn.Parameter(torch.zeros(config.reduced))
        if config.transform == "sqrt":
            self.register_buffer("shift", torch.zeros(features))


class Words(nn.Module):
    """Parameters of residual latents: the words of all stages, and the map from their sums to vectors.

    ``books`` are the words of stages of two or more bits, shape (2**bits, m) each; ``signs``, shape (S, m), belong to
    the one-bit stages: minus a row for 0, plus it for 1. Codes of images have no map: their vectors are the points.
    """

    def __init__(self, features: int, config: EncoderConfig) -> None:
        super().__init__()
        m, named = config.reduced, [bits for bits in config.stages if bits > 1]
        self.books = nn.ParameterList(torch.randn(1 << bits, m) for bits in named)
        self.signs = nn.Parameter(torch.randn(len(config.stages) - len(named), m) / 8)
        self.log_temperature = nn.Parameter(torch.zeros(len(config.stages)))
        if config.columns:
            self.output = nn.Parameter(torch.randn(m, features) / m**0.5)
            self.centre = nn.Parameter(torch.zeros(features))


class Encoder(nn.Module):
    """q(z|x) = head(normalise(backbone(x))), and a decoder from any prefix of z to the normalised features.

    Attributes
    ----------
    prior : Parameter, float32
        Parameters of the factorised prior p(z), learned with the encoder (for Bernoulli latents the log-odds of a
        one, shape (D,)); see :attr:`factorised`.
    ones : Tensor, int32, shape (D, 2**bits - 1)
        Probability of a one at each node of each latent's tree of decisions, in units of 1/4096, among the codes of
        the training images, for the coder's table. Zero until measured.
    codebooks : Parameter, float32, shape (D, K, e), or None
        Embeddings of a categorical code's symbols in the decoder.
    classifier : Linear, from V to the number of classes, or None
        The classifier of a fine-tuned encoder, on decoded vectors or features as configured.
    """

    ones: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone, width=config.width, stem=config.stem, pooling=config.pooling)
        features = self.backbone.features
        self.norm = Standardise(features) if config.columns else nn.BatchNorm1d(features, affine=False)
        self._make_latents()
        self.classifier = nn.Linear(features, len(config.classes)) if config.classes else None
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1) * 255, persistent=False)

    def _make_latents(self) -> None:
        config, features = self.config, self.feature_dim
        self.head = _head(features, config)
        self.prior = nn.Parameter(FACTORISED[config.posterior].initial(config))
        widths = (config.decoder_inputs, *config.decoder, features)
        self.decoder: Any
        if config.posterior == "residual":
            self.decoder = Words(features, config)
        else:
            self.decoder = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.codebooks: nn.Parameter | None = None
        if config.embedding:
            self.codebooks = nn.Parameter(torch.randn(config.latents, config.alphabet, config.embedding))
        nodes = nodes_per_symbol(config.alphabet)
        self.register_buffer("ones", torch.zeros(config.latents, nodes, dtype=torch.int32))
        self.entropy: nn.Module | None = None
        if config.entropy == "autoregressive":
            types = array_types(config.latents, config.entropy_hidden, config.alphabet, levels=len(logistic_levels()))
            self.entropy = _buffers({n: torch.zeros(shape, dtype=_stored(d)) for n, (d, shape) in types.items()})

    @property
    def feature_dim(self) -> int:
        """V, the width of features and of decoded vectors, except for residual latents of images."""
        return int(self.backbone.features)

    @property
    def factorised(self) -> Factorised:
        """The factorised prior with its current parameters."""
        return FACTORISED[self.config.posterior](self.prior, self.config)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Normalise pixels of 0..255, shape (B, 3, S, S), to zero mean and unit variance over natural images.

        Vectors, shape (B, W), are returned unchanged; :meth:`features` standardises them.
        """
        return inputs if self.config.columns else (inputs - self.mean) / self.std

    def features(self, inputs: Tensor) -> Tensor:
        """Return standardised features, float32, shape (B, V), from inputs, shape (B, 3, S, S) or (B, W)."""
        features: Tensor = self.norm(self.backbone(inputs).float())
        return features

    def posterior(self, features: Tensor) -> Posterior:
        """Return q(z|x) from standardised features, shape (B, V); residual latents have a posterior only in numpy."""
        return POSTERIORS[self.config.posterior](self.head(features).float(), self.config)

    def embed(self, symbols: Tensor) -> Tensor:
        """Convert symbols, integers of shape (B, D), to the input of :meth:`decode`."""
        return POSTERIORS[self.config.posterior].embed(symbols, self.config)

    def decode(self, symbols: Tensor, latents: int | None = None) -> Tensor:
        """Decode codes to standardised features, float32, shape (B, V)."""
        x = symbols - self.factorised.mean().detach()
        x = x * self.decoder_scale if self.codebooks is None else torch.einsum("bdk,dke->bde", x, self.codebooks)
        if latents is not None and latents < self.config.latents:
            kept = torch.arange(self.config.latents, device=x.device) < latents
            x = x * kept.view(-1, *[1] * (x.ndim - 2))
        x = x.flatten(1)
        for i, layer in enumerate(self.decoder):
            x = layer(torch.relu(x) if i else x)
        return x.float()

    def classify(self, vectors: Tensor) -> Tensor:
        """Return the classifier's scores, log-odds, float32, shape (B, C), for its inputs, shape (B, V)."""
        if self.classifier is None:
            raise UsageError("this encoder has no classifier; `stochcl finetune` makes one that has.")
        scores: Tensor = self.classifier(vectors).float()
        return scores

    def set_classes(self, classes: tuple[str, ...], classifies: str = "vectors") -> None:
        """Replace the classifier by a new one that scores all classes equally."""
        self.config = replace(self.config, classes=classes, classifies=classifies)
        self.classifier = nn.Linear(self.feature_dim, len(classes)).to(self.ones.device)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @property
    def decoder_scale(self) -> float:
        """The factor that scales centred numbers in decoder form to about -1..1 or unit variance."""
        return POSTERIORS[self.config.posterior].decoder_scale(self.config)

    def set_residual(self, stages: tuple[int, ...], reduced: int, transform: str) -> None:
        """Replace the latents by fresh residual ones; the stages set their width."""
        self.config = replace(
            self.config, posterior="residual", latents=sum(stages), stages=stages, ladder=(), reduced=reduced,
            transform=transform, alphabet=2, embedding=0, entropy="independent", entropy_hidden=0, temperature=1.0,
        )  # fmt: skip
        self._make_latents()
        self.to(self.mean.device)

    def set_entropy(self, network: AutoregressiveModel | None) -> None:
        """Set or remove the entropy network, and update the configuration."""
        if network is None:
            self.entropy = None
            self.config = replace(self.config, entropy="independent", entropy_hidden=0)
            return
        self.config = replace(self.config, entropy="autoregressive", entropy_hidden=network.hidden)
        arrays = network.arrays().items()
        stored = {name: torch.from_numpy(a.astype(np.int32)).to(_stored(a.dtype)) for name, a in arrays}
        self.entropy = _buffers(stored).to(self.ones.device)

    def entropy_network(self) -> AutoregressiveModel | None:
        """Return the encoder's entropy network, or None."""
        return layout.entropy_network(self.config, self.arrays())

    def bits_by_latent(self, codes: Codes) -> NDArray[np.float64]:
        """Return the average bits of each latent of the codes under the encoder's entropy model, shape (D,)."""
        table = IndependentModel(self.ones.cpu().numpy().astype(np.uint16), self.config.alphabet)
        return latent_lengths(codes, self.entropy_network() or table)

    def tables(self) -> Tables:
        """Return the decoding tables, which depend only on the tensors."""
        return layout.tables(self.config, self.arrays())

    def vector_decoder(self) -> VectorDecoder | ResidualDecoder:
        """Return the tables' decoder from symbols to vectors in the units of the input."""
        return layout.vector_decoder(self.config, self.arrays())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the tensors, without step counters, as arrays that share memory with tensors on the CPU."""
        state = self.state_dict().items()
        return {name: t.detach().cpu().numpy() for name, t in state if not name.endswith("num_batches_tracked")}


def _head(features: int, config: EncoderConfig) -> nn.Module:
    """Return a linear layer from features to the posterior's parameters, or a perceptron that ends with one.

    ReLU outputs have a nonzero mean, with 1/pi of their power. Rows of weights that sum to zero ignore it; otherwise
    some latents would start out constant.
    """
    if config.posterior == "residual":
        return ReducedHead(features, config)
    family = POSTERIORS[config.posterior]
    *hidden, last = (nn.Linear(i, o) for i, o in pairwise((features, *config.head, family.width(config))))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    family.initialise(last, config)
    if not hidden:
        return last
    with torch.no_grad():
        for layer in (*hidden[1:], last):
            if layer.in_features > 1:
                layer.weight -= layer.weight.mean(dim=1, keepdim=True)
                layer.weight *= (1 - 1 / math.pi) ** -0.5
    return nn.Sequential(*(module for layer in hidden for module in (layer, nn.ReLU())), last)


def _stored(dtype: DTypeLike) -> torch.dtype:
    """Return the type of integers in a model file; torch supports few unsigned types."""
    return torch.int8 if dtype == np.int8 else torch.int32


def _buffers(tensors: dict[str, Tensor]) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module
