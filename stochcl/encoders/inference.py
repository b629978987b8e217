"""Running an encoder over images or vectors: codes, features, uncertainty."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.codes import Codes, symbol_dtype
from stochcl.encoders.posteriors import BIT
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder


_MOST = 4  # at a time: as many as a batch of 256 has, and each holds a network's activations

_lock = threading.Lock()
_inside, _before = 0, 1


def side_by_side(run: Callable[[range], None], starts: range, cores: int) -> None:
    """Run chunks in threads, each with its share of the cores, rather than every operation on all of them.

    An operation that is split over threads waits for the slowest, dozens of times a chunk: with one of two cores
    busy, compressing took four times as long as on one thread. Chunks wait for nothing, and their results do not
    depend on each other.
    """
    threads = max(n for n in (1, 2, _MOST) if n <= max(1, min(cores, len(starts))))
    if threads == 1:
        run(starts)
        return
    with _threads_of_operations(max(1, cores // threads)), ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [starts[i : i + 1] for i in range(len(starts))]))


@contextmanager
def _threads_of_operations(count: int) -> Iterator[None]:
    """Set PyTorch's threads per operation; the last of several contexts to leave restores the setting."""
    global _inside, _before  # noqa: PLW0603 - it is PyTorch's setting that is one for the process
    with _lock:
        if not _inside:
            _before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(_before)


TRAIN_PRECISIONS = ("auto", "bf16", "fp32")
"""Precisions of training; bf16 is autocast."""

_NATIVE = ("avx512_bf16", "amx_bf16", "_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""Instructions for bfloat16, as PyTorch names them, and functions of PyTorch without a table of capabilities."""


def computes_in_bf16(precision: str, device_type: str) -> bool:
    """Tell whether a network on such a device of this machine computes in bfloat16.

    ``bf16`` and ``fp32`` are obeyed. ``auto`` is bf16 if the device has instructions for it: NVIDIA and AMD
    GPUs that do, other accelerators, and CPUs with AVX-512 BF16 or AMX. Other CPUs emulate it slowly: with AVX2
    alone, 33 images of 64 pixels a second went through a ResNet-10 in bf16, and 250 in fp32.

    Every stage of training asks for its own device: a network may be trained on a GPU, its latents on the CPU.

    Examples
    --------
    >>> computes_in_bf16("bf16", "cpu"), computes_in_bf16("fp32", "cuda")
    (True, False)
    """
    if precision != "auto":
        return precision == "bf16"
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(bool(found.get(name)) for name in _NATIVE)
    return any(bool(getattr(torch.cpu, name, bool)()) for name in _NATIVE)


def precision_used(precision: str, device_type: str) -> str:
    """Return what a precision comes to on such a device, bf16 or fp32, for records and checkpoints."""
    return "bf16" if computes_in_bf16(precision, device_type) else "fp32"


@contextmanager
def own_state() -> Iterator[None]:
    """Compute in float32, without autocast, on the devices that are named, whatever the caller has set."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


# The network always sees batches of one shape, the last one padded: kernels are chosen by shape, and another
# order of summation flips bits whose posterior is near one half. So codes do not depend on --batch-size, on
# which images were skipped, or on where a run was interrupted.
_CHUNK = {"cpu": 64, "cuda": 512, "mps": 128}
_ROWS = 1024  # of vectors

PRECISIONS = ("fp32", "bf16")
"""Precisions of an image's network; bf16 is autocast, latents and decoder stay fp32."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoder's output for B images or vectors.

    Codes are modes of the posterior, with its uncertainty in bits; features, float32, shape (B, V), are
    standardised.
    """

    codes: Codes
    features: NDArray[np.float32]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the way back, too: "meta" holds no numbers
    except (RuntimeError, AssertionError, ImportError) as exc:  # some devices are modules of their own
        reason = str(exc).partition("\n")[0]
        raise UsageError(f"there is no device {name!r} here ({reason}); try --device cpu.") from exc
    return device


def encode(
    encoder: Encoder, inputs: NDArray[np.uint8] | NDArray[np.floating], device: torch.device,
    precision: str = "fp32", *, uncertainty: bool = True, latents: int | None = None,
) -> Encoded:  # fmt: skip
    """Encode images or vectors, whichever the encoder takes, as codes of all latents or of the first."""
    check_inputs(encoder.config, inputs)
    chunk = _CHUNK.get(device.type, 64) if encoder.config.columns is None else _ROWS
    dtype = np.uint8 if encoder.config.columns is None else np.float32
    width = encoder.config.latents if latents is None else latents
    symbols = np.empty((len(inputs), width), symbol_dtype(encoder.config.alphabet))
    entropy = np.empty(len(inputs), np.float32)
    features = np.empty((len(inputs), encoder.feature_dim), np.float32)

    @torch.inference_mode()  # which holds for one thread, as autocast does
    def run(starts: range) -> None:
        padded = np.zeros((chunk, *inputs.shape[1:]), dtype)
        for start in starts:
            part = inputs[start : start + chunk]
            rows = slice(start, start + len(part))
            padded[: len(part)] = part
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(precision, device.type)):
                latent = encoder.features(_prepared(encoder, torch.from_numpy(padded).to(device)))
            latent = latent.float()
            posterior = encoder.posterior(latent)
            symbols[rows] = posterior.mode_of(width)[: len(part)].cpu().numpy()
            if uncertainty:
                # Less than 0 is rounding.
                doubt = posterior.tempered(encoder.config.temperature).uncertainty().clamp(min=0)
                entropy[rows] = doubt[: len(part)].float().cpu().numpy() / BIT
            features[rows] = latent[: len(part)].float().cpu().numpy()

    starts = range(0, len(inputs), chunk)
    with own_state():
        side_by_side(run, starts, torch.get_num_threads() if device.type == "cpu" and dtype == np.uint8 else 1)
    codes = Codes.from_symbols(
        symbols, alphabet=encoder.config.alphabet, uncertainty=entropy if uncertainty else None
    )
    return Encoded(codes, features)


@torch.inference_mode()
def points(encoder: Encoder, features: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Return what decoded vectors approximate: points of the space of residual words, or the features themselves."""
    if encoder.config.posterior != "residual" or encoder.config.columns:
        return features
    return _by_parts(features, device, lambda part: encoder.head(part).float())


@torch.inference_mode()
def standardised(encoder: Encoder, decoded: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Return what decoding tables decode to in the units of standardised features; of images they are so already."""
    if encoder.config.columns is None:
        return decoded
    return _by_parts(decoded, device, encoder.features)


@torch.inference_mode()
def narrowed(
    encoder: Encoder, codes: Codes, features: NDArray[np.float32], latents: int, device: torch.device
) -> Codes:
    """Return codes of the first latents; residual ones are searched for themselves, others are a prefix."""
    if encoder.config.posterior != "residual":
        return codes.prefix(latents)
    symbols = _by_parts(features, device, lambda part: encoder.posterior(part).mode_of(latents))
    return Codes.from_symbols(symbols.reshape(-1, latents), alphabet=encoder.config.alphabet)


def _by_parts(features: NDArray[np.float32], device: torch.device, give: Callable[[Tensor], Tensor]) -> NDArray[Any]:
    parts = (torch.from_numpy(features[i : i + _ROWS]).to(device) for i in range(0, len(features), _ROWS))
    found = [give(part).cpu().numpy() for part in parts]
    return np.concatenate(found) if found else np.empty(0, np.uint8)


def check_inputs(config: EncoderConfig, inputs: NDArray[np.generic]) -> None:
    """Raise UsageError where an encoder of this configuration does not take such inputs."""
    size, columns = config.size, config.columns
    found = f"{inputs.dtype} {inputs.shape}"
    if columns is None:
        if inputs.ndim != 4 or inputs.shape[1:] != (size, size, 3) or inputs.dtype != np.uint8:
            raise UsageError(f"this encoder takes uint8 images of shape (B, {size}, {size}, 3), not {found}.")
    elif inputs.ndim != 2 or inputs.shape[1] != columns or inputs.dtype.kind != "f":
        raise UsageError(f"this encoder takes float vectors of shape (B, {columns}), not {found}.")


def _prepared(encoder: Encoder, inputs: Tensor) -> Tensor:
    if encoder.config.columns is not None:
        return inputs
    pixels = inputs.permute(0, 3, 1, 2).float()
    return encoder.normalise(pixels).contiguous(memory_format=torch.channels_last)
