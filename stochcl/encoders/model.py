"""The encoder: image to features to a posterior over latents, and the decoder from a code to features."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from stochcl.data.preprocess import FITS, MAX_SIZE
from stochcl.encoders.backbones import STEMS, check_backbone, make_backbone
from stochcl.encoders.entropy import MAX_HIDDEN, EntropyNetwork, array_shapes
from stochcl.encoders.posterior import POSTERIORS, Posterior
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.data.preprocess import Fit

    DecoderArrays = tuple[
        NDArray[np.float32], NDArray[np.float32], list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    ]

MAX_LATENTS = 4096
"""Most latents of a Bernoulli encoder: the most binary decisions that a row of an archive may have."""


def default_ladder(latents: int) -> tuple[int, ...]:
    """Return the prefixes that a nested code is trained at: powers of two from 8, and the full width.

    Examples
    --------
    >>> default_ladder(48)
    (8, 16, 32, 48)
    """
    ladder = []
    k = 8
    while k < latents:
        ladder.append(k)
        k *= 2
    return (*ladder, latents)


ENTROPY = ("independent", "autoregressive")
"""Kinds of entropy model that an encoder can bring along."""

_NAMED = {"stem": STEMS, "posterior": POSTERIORS, "fit": FITS, "entropy": ENTROPY}


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is, apart from its weights.

    Parameters
    ----------
    backbone, width, stem
        The network, see :func:`~stochcl.encoders.backbones.make_backbone`.
    posterior : str
        Family of the latents.
    latents : int
        D, the full width of a code.
    ladder : tuple of int
        Prefixes that are codes in themselves, ascending, the last of them ``latents``.
    decoder : tuple of int
        Widths of the vector decoder's hidden layers.
    size : int
        Side of the square that images are brought to, in pixels.
    fit : str
        What happens to an image that is not square: crop, pad or stretch.
    mean, std : tuple of float
        Of each colour channel over natural images, of values in 0..1 (those of ImageNet).
    entropy : str
        Kind of the entropy model: independent symbols, or autoregressive (an entropy network beside them).
    entropy_hidden : int
        Hidden units of the entropy network; 0 where it is linear, or where there is none.
    """

    backbone: str = "resnet10"
    width: int = 64
    stem: str = "imagenet"
    posterior: str = "bernoulli"
    latents: int = 1024
    ladder: tuple[int, ...] = ()
    decoder: tuple[int, ...] = (512,)
    size: int = 64
    fit: Fit = "crop"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    entropy: str = "independent"
    entropy_hidden: int = 0

    def __post_init__(self) -> None:
        if not self.ladder:
            object.__setattr__(self, "ladder", default_ladder(self.latents))
        if not 1 <= self.latents <= MAX_LATENTS:
            raise UsageError(f"an encoder has 1 to {MAX_LATENTS} latents, not {self.latents}.")
        ascends = list(self.ladder) == sorted(set(self.ladder))
        if not ascends or self.ladder[0] < 1 or self.ladder[-1] != self.latents:
            raise UsageError(f"the ladder {self.ladder} must ascend to the full width, {self.latents}.")
        check_backbone(self.backbone)
        for name, known in _NAMED.items():
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"there is no {name} {value!r}; there are {', '.join(known)}.")
        if not isinstance(self.size, int) or not 1 <= self.size <= MAX_SIZE:
            raise UsageError(f"images are brought to 1 to {MAX_SIZE} pixels a side, not {self.size}.")
        if min((self.width, *self.decoder)) < 1:
            raise UsageError(f"the layers of an encoder cannot have widths of {self.width} and {self.decoder}.")
        most = MAX_HIDDEN if self.entropy == "autoregressive" else 0
        if not isinstance(self.entropy_hidden, int) or not 0 <= self.entropy_hidden <= most:
            msg = f"an entropy model of {self.entropy} symbols has 0 to {most} hidden units"
            raise UsageError(f"{msg}, not {self.entropy_hidden}.")
        colours = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, colours)) or min(self.std) <= 0:
            raise UsageError(f"colours cannot have a mean of {self.mean} and a deviation of {self.std}.")


class Encoder(nn.Module):
    """q(z|x) = head(normalise(backbone(x))), and a decoder from any prefix of z to the normalised features.

    Attributes
    ----------
    prior : Parameter, float32, shape (D,)
        Log-odds of a one, learned with the encoder: the factorised prior p(z).
    ones : Tensor, int32, shape (D, 1)
        Probability of a one, in units of 1/4096, among the codes of the training images: what the coder's
        table is made of. Zero until :func:`stochcl.encoders.train.train` has measured it.
    """

    ones: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone, width=config.width, stem=config.stem)
        features = self.backbone.features
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.head = nn.Linear(features, config.latents)
        # Standardised features give log-odds of deviation 3: bits that are mostly decided from the first step
        # on. With the usual initialisation they are coin tosses (52 of 1,024 bits), and nothing is learned
        # through them.
        nn.init.normal_(self.head.weight, std=3 / features**0.5)
        nn.init.zeros_(self.head.bias)
        self.prior = nn.Parameter(torch.zeros(config.latents))
        widths = (config.latents, *config.decoder, features)
        self.decoder = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.register_buffer("ones", torch.zeros(config.latents, 1, dtype=torch.int32))
        self.entropy: nn.Module | None = None
        if config.entropy == "autoregressive":
            shapes = array_shapes(config.latents, config.entropy_hidden)
            self.entropy = _buffers({n: torch.zeros(shape, dtype=d) for n, (d, shape) in shapes.items()})
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def feature_dim(self) -> int:
        """V, the width of the features and of a decoded vector."""
        return self.backbone.features

    def normalise(self, images: Tensor) -> Tensor:
        """Bring pixels of 0..255, shape (B, 3, S, S), to zero mean and unit variance over natural images."""
        return (images - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Return standardised features, float32, shape (B, V), of normalised images, shape (B, 3, S, S)."""
        features: Tensor = self.norm(self.backbone(images).float())
        return features

    def posterior(self, features: Tensor) -> Posterior:
        """Return q(z|x) from standardised features, shape (B, V)."""
        return POSTERIORS[self.config.posterior](self.head(features).float())

    def decode(self, symbols: Tensor, latents: int | None = None) -> Tensor:
        """Decode codes to standardised features, float32, shape (B, V).

        Parameters
        ----------
        symbols : Tensor of float, shape (B, D)
        latents : int, optional
            Use this prefix only; the prior's mean stands for what is missing.
        """
        centre = torch.sigmoid(self.prior).detach()
        x = (symbols - centre) * self.decoder_scale
        if latents is not None and latents < self.config.latents:
            x = x * (torch.arange(self.config.latents, device=x.device) < latents)
        for i, layer in enumerate(self.decoder):
            x = layer(torch.relu(x) if i else x)
        return x.float()

    @property
    def decoder_scale(self) -> float:
        """Factor that brings a centred bit to the range -1..1."""
        return 2.0

    def set_entropy(self, network: EntropyNetwork | None) -> None:
        """Take an entropy network along, or none; the configuration says so from then on."""
        if network is None:
            self.entropy = None
            self.config = replace(self.config, entropy="independent", entropy_hidden=0)
            return
        self.config = replace(self.config, entropy="autoregressive", entropy_hidden=network.hidden)
        shapes = array_shapes(self.config.latents, network.hidden)
        arrays = {n: torch.from_numpy(a.astype(np.int64)).to(shapes[n][0]) for n, a in network.arrays().items()}
        self.entropy = _buffers(arrays).to(self.ones.device)

    def entropy_network(self) -> EntropyNetwork | None:
        """Return the entropy network that the encoder holds, if it does."""
        if self.entropy is None:
            return None
        arrays = {name: buffer.cpu().numpy() for name, buffer in self.entropy.named_buffers()}
        return EntropyNetwork.from_arrays(arrays, latents=self.config.latents, alphabet=2)

    def decoder_arrays(self) -> DecoderArrays:
        """Return the decoder as numpy arrays: centre (D,), scale (D,), and (weight, bias) of each layer."""
        centre = torch.sigmoid(self.prior).detach().float().cpu().numpy()
        scale = torch.full((self.config.latents,), self.decoder_scale).numpy()
        layers = []
        for layer in self.decoder:
            weight, bias = (tensor.float().cpu().numpy() for tensor in layer.state_dict().values())
            layers.append((weight, bias))
        return centre, scale, layers


def _buffers(tensors: dict[str, Tensor]) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module
