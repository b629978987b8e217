"""The tensors of an encoder by configuration, and the parts of decoding tables made from them, in numpy."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.encoders.config import FOREIGN
from stochcl.encoders.graph import Network
from stochcl.entropy.autoregressive import AutoregressiveModel, array_types, logistic_levels
from stochcl.entropy.independent import DENOMINATOR, IndependentModel, nodes_per_symbol
from stochcl.entropy.tables import Tables
from stochcl.entropy.vectors import ResidualDecoder, VectorDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

    from stochcl.encoders.config import EncoderConfig

    Shape = tuple[int, ...]
    Arrays = Mapping[str, NDArray[Any]]


def first_level(alphabet: int) -> int:
    """Return the value, in steps, of symbol 0 of a Gaussian latent; 0 is always a level.

    Examples
    --------
    >>> first_level(16), first_level(5)
    (-8, -2)
    """
    return -(alphabet // 2)


def shapes_of(config: EncoderConfig, tensors: Arrays | None = None) -> dict[str, Shape]:
    """Return the shape of each tensor of a model file by name; a timm network's are taken from its tensors."""
    norm = "norm.centre" if config.columns else "norm.running_mean"
    if config.backbone.startswith(FOREIGN):
        tensors = tensors or {}
        shapes = {name: array.shape for name, array in tensors.items() if name.startswith("backbone.")}
        features = int(tensors[norm].size)
    else:
        network = None if config.columns else Network(config)
        shapes = {} if network is None else network.shapes
        features = int(config.columns or 0) if network is None else network.features
    second: tuple[str, Shape] = ("norm.scale", (1,)) if config.columns else ("norm.running_var", (features,))
    shapes |= {norm: (features,), second[0]: second[1]}
    shapes |= _latent_shapes(config, features) | _decoder_shapes(config, features)
    if config.classes:
        shapes |= _linear("classifier", features, len(config.classes))
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _latent_shapes(config: EncoderConfig, features: int) -> dict[str, Shape]:
    d, k = config.latents, config.alphabet
    shapes: dict[str, Shape] = {"ones": (d, nodes_per_symbol(k))}
    shapes["prior"] = {"categorical": (d, k), "gaussian": (d, 2)}.get(config.posterior, (d,))
    if config.posterior == "residual":
        shapes |= {"head.weight": (config.reduced, features), "head.mean": (config.reduced,)}
        shapes |= {"head.shift": (features,)} if config.transform == "sqrt" else {}
    else:
        widths = (features, *config.head, d * {"categorical": k, "gaussian": 2}.get(config.posterior, 1))
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            shapes |= _linear(f"head.{2 * i}" if config.head else "head", inputs, outputs)
    if config.entropy == "autoregressive":
        types = array_types(d, config.entropy_hidden, k, levels=len(logistic_levels()))
        shapes |= {f"entropy.{name}": shape for name, (_, shape) in types.items()}
    return shapes


def _decoder_shapes(config: EncoderConfig, features: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    if config.posterior != "residual":
        for i, (inputs, outputs) in enumerate(pairwise((config.decoder_inputs, *config.decoder, features))):
            shapes |= _linear(f"decoder.{i}", inputs, outputs)
        if config.embedding:
            shapes["codebooks"] = (config.latents, config.alphabet, config.embedding)
        return shapes
    m, named = config.reduced, [bits for bits in config.stages if bits > 1]
    shapes |= {f"decoder.books.{i}": (1 << bits, m) for i, bits in enumerate(named)}
    stages = len(config.stages)
    shapes |= {"decoder.signs": (stages - len(named), m), "decoder.log_temperature": (stages,)}
    if config.columns:
        shapes |= {"decoder.output": (m, features), "decoder.centre": (features,)}
    return shapes


_SIGNED = {"hidden_weights", "direct", "output"}  # an entropy network's 8-bit weights


def stored_type(name: str, dimensions: int, dtype: DTypeLike = np.float32) -> np.dtype[Any]:
    """Return a tensor's type in a model file: weights as float16, integers as int8 and int32."""
    if name == "codebooks" or (name.endswith(".weight") and dimensions > 1):
        return np.dtype(np.float16)
    group, _, part = name.partition(".")
    if group == "entropy":
        return np.dtype(np.int8 if part in _SIGNED else np.int32)
    return np.dtype(np.int32 if name == "ones" else dtype)


def fault(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> str | None:
    """Return a sentence about a stored tensor's fault, or None."""
    if array.dtype != dtype:
        return f"{array.dtype}, not {dtype}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "numbers that are not finite"
    if name.endswith("running_var") and (array < 0).any():
        return "negative variances"
    if name == "norm.scale" and not (array > 0).all():
        return "a scale that is not positive"
    if name == "ones" and not ((array >= 0) & (array < DENOMINATOR)).all():
        return f"probabilities that are not in 0..{DENOMINATOR - 1}"
    return None


def entropy_network(config: EncoderConfig, tensors: Arrays) -> AutoregressiveModel | None:
    """Return an encoder's entropy network, or None."""
    if config.entropy != "autoregressive":
        return None
    arrays = {name.partition(".")[2]: array for name, array in tensors.items() if name.startswith("entropy.")}
    return AutoregressiveModel.from_arrays(arrays, latents=config.latents, alphabet=config.alphabet)


def tables(config: EncoderConfig, tensors: Arrays) -> Tables:
    """Return the decoding tables, which depend only on the tensors."""
    entropy = IndependentModel.nearest(tensors["ones"] / DENOMINATOR, config.alphabet)
    decoder = vector_decoder(config, tensors)
    return Tables(config.ladder, entropy, decoder, autoregressive=entropy_network(config, tensors))


def words(config: EncoderConfig, tensors: Arrays) -> list[NDArray[np.float32]]:
    """Return the words of every residual stage, shape (2**bits, m) each."""
    count = sum(bits > 1 for bits in config.stages)
    signs = tensors["decoder.signs"]
    return [tensors[f"decoder.books.{i}"] for i in range(count)] + [np.stack([-sign, sign]) for sign in signs]


def vector_decoder(config: EncoderConfig, tensors: Arrays) -> VectorDecoder | ResidualDecoder:
    """Return the tables' decoder from symbols to vectors in the units of the input."""
    arrays = {name: a.astype(np.float32) for name, a in tensors.items() if a.dtype.kind == "f"}
    scale, centre = (arrays["norm.scale"], arrays["norm.centre"]) if config.columns else (np.float32(1), 0)
    if config.posterior == "residual":
        stages = words(config, arrays)
        if "decoder.output" not in arrays:
            return ResidualDecoder.of_stages(stages)
        output, middle = arrays["decoder.output"] * scale, arrays["decoder.centre"] * scale + centre
        return ResidualDecoder.of_stages(stages, output, middle)
    layers = [(arrays[f"decoder.{i}.weight"], arrays[f"decoder.{i}.bias"]) for i in range(len(config.decoder) + 1)]
    if config.columns:
        weight, bias = layers[-1]
        layers[-1] = (weight * scale, bias * scale + centre)
    mean, inputs = prior_mean(config, arrays["prior"]), config.decoder_inputs
    if not config.embedding:
        # The tables' decoder takes symbols from 0; the encoder's takes numbers from the lowest level.
        gaussian = config.posterior == "gaussian"
        lowest, power = (first_level(config.alphabet), 8 / config.alphabet) if gaussian else (0, 2.0)
        return VectorDecoder.from_arrays(mean - lowest, np.full(inputs, power, np.float32), layers)
    books = arrays["codebooks"]
    missing = np.einsum("dk,dke->de", mean, books)
    return VectorDecoder.from_arrays(np.zeros(inputs), np.ones(inputs), layers, books - missing[:, None])


def prior_mean(config: EncoderConfig, prior: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each latent under the factorised prior, in decoder form."""
    if config.posterior == "gaussian":
        return prior[:, 0]
    exact = prior.astype(np.float64)
    if config.posterior == "categorical":
        odds = np.exp(exact - exact.max(axis=1, keepdims=True))
        found: NDArray[np.float32] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        return found
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-exact))).astype(np.float32)


def feature_dim(config: EncoderConfig, tensors: Arrays) -> int:
    """Return V, the width of the features."""
    return int(tensors["norm.centre" if config.columns else "norm.running_mean"].size)


def vector_dim(config: EncoderConfig, features: int) -> int:
    """Return the width of a decoded vector; for residual latents of images, that of the words' space."""
    return config.reduced if config.posterior == "residual" and not config.columns else features


def is_weight(name: str) -> bool:
    """Tell whether gradients train a tensor, rather than measurement."""
    measured = name.startswith(("norm.", "entropy.")) or name in ("ones", "head.shift")
    return not measured and not name.endswith(("running_mean", "running_var"))
