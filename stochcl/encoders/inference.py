"""Encoders in PyTorch: devices, precisions, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from stochcl.encoders import engine
from stochcl.encoders.latents import Latents
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.engine import Encoded, Network


_MOST = 4  # parallel chunks, each with a network's activations; a batch of 256 has four chunks

_lock = threading.Lock()
_inside, _before = 0, 1


def side_by_side(run: Callable[[range], None], starts: range, cores: int) -> None:
    """Run chunks in parallel threads with a share of the cores each, instead of each operation on all cores.

    An operation split over threads waits for the slowest, dozens of times per chunk: with one of two cores busy,
    compressing took four times as long as on one thread. Chunks do not wait for each other.
    """
    threads = max(n for n in (1, 2, _MOST) if n <= max(1, min(cores, len(starts))))
    if threads == 1:
        run(starts)
        return
    with _threads_of_operations(max(1, cores // threads)), ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [starts[i : i + 1] for i in range(len(starts))]))


@contextmanager
def _threads_of_operations(count: int) -> Iterator[None]:
    """Set PyTorch's threads per operation; the last context to leave restores the setting."""
    global _inside, _before  # noqa: PLW0603 - PyTorch's setting is global
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


_NATIVE = ("avx512_bf16", "amx_bf16", "_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""bfloat16 instructions as PyTorch names them, and the functions of versions without a table of capabilities."""


def computes_in_bf16(precision: str, device_type: str) -> bool:
    """Tell whether a network computes in bfloat16 on this machine's device of this type.

    ``bf16`` and ``fp32`` are obeyed. ``auto`` is bf16 if the device has instructions for it: NVIDIA and AMD GPUs that
    do, other accelerators, and CPUs with AVX-512 BF16 or AMX. Other CPUs emulate it slowly: with only AVX2, a
    ResNet-10 ran at 33 images of 64 pixels a second in bf16, and at 250 in fp32.

    Each training stage asks for its own device: a network may be trained on a GPU, its latents on the CPU.

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
    """Return the precision used on such a device, bf16 or fp32, for records and checkpoints."""
    return "bf16" if computes_in_bf16(precision, device_type) else "fp32"


@contextmanager
def own_state() -> Iterator[None]:
    """Compute in float32 without autocast or a default device, regardless of the caller's settings."""
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


_CHUNK = {"cpu": 64, "cuda": 512, "mps": 128}  # images
_ROWS = 1024  # vectors


class TorchNetwork:
    """A network of images in PyTorch, on any device, in fp32 or bf16."""

    def __init__(self, encoder: Encoder, device: torch.device, precision: str = "fp32") -> None:
        self.encoder, self.device = encoder, device
        self.chunk = _CHUNK.get(device.type, 64) if encoder.config.columns is None else _ROWS
        self._bf16 = computes_in_bf16(precision, device.type)

    @torch.inference_mode()  # inference mode is per thread, like autocast
    def features(self, inputs: NDArray[Any], rows: int) -> NDArray[np.float32]:
        """Return standardised features of images or vectors."""
        encoder, given = self.encoder, torch.from_numpy(inputs).to(self.device)
        if encoder.config.columns is None:
            pixels = given.permute(0, 3, 1, 2).float()
            given = encoder.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            found = encoder.features(given)
        features: NDArray[np.float32] = found.float().cpu().numpy()
        return features

    def side_by_side(self, run: Callable[[range], None], starts: range) -> None:
        """Run chunks in parallel threads on a CPU, one after the other elsewhere."""
        splits = self.device.type == "cpu" and self.encoder.config.columns is None
        with own_state():
            side_by_side(run, starts, torch.get_num_threads() if splits else 1)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" prefers a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # also copies back, because "meta" holds no numbers
    except (RuntimeError, AssertionError, ImportError) as exc:  # some devices are separate modules
        reason = str(exc).partition("\n")[0]
        raise UsageError(f"there is no device {name!r} here ({reason}); try --device cpu.") from exc
    return device


def network_of(encoder: Encoder, device: torch.device, precision: str = "fp32") -> Network:
    """Return the network that computes an encoder's features: ONNX Runtime's in int8, PyTorch's otherwise."""
    if precision == "int8":
        return engine.OnnxNetwork(encoder.config, encoder.arrays(), precision)
    return TorchNetwork(encoder, device, precision)


def encode(
    encoder: Encoder, inputs: NDArray[np.uint8] | NDArray[np.floating], device: torch.device,
    precision: str = "fp32", *, uncertainty: bool = True, latents: int | None = None,
) -> Encoded:  # fmt: skip
    """Encode the encoder's inputs, images or vectors, as codes of all or the first latents."""
    found = Latents.of(encoder.config, encoder.arrays())
    return engine.encode(
        network_of(encoder, device, precision), found, inputs, uncertainty=uncertainty, width=latents
    )
