"""What speed is measured on: a network, a device, its precision, and images where nobody named any."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks import machine
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch
    from torch import nn

_COARSE = 9  # numbers across of the noise that images are made of
_QUALITY = 90
UNTRAINED_LATENTS = 2048


def make_images(folder: Path, count: int, side: int, seed: int) -> None:
    """Write JPEG files of smooth coloured noise with grain, side x side pixels: what a photograph costs, roughly."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 6, (side, side, 1)).astype(np.float32)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.jpg", quality=_QUALITY)


def make_model(path: Path, backbone: str, size: int, seed: int) -> None:
    """Write a model file of an untrained network: as fast as a trained one, and good for nothing else."""
    import torch

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.modelfile import save_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(EncoderConfig(backbone=backbone, size=size, latents=UNTRAINED_LATENTS)).eval()
    encoder.ones.fill_(2048)  # a half, in units of 1/4096: nothing is known of its codes
    save_model(encoder, path, {"untrained": True})


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, so that core-seconds are not spent on waiting for others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, precision: str) -> Any:
    """Return a context in which networks run in this precision; auto is what training takes it for."""
    import torch

    from stochcl.encoders.inference import computes_in_bf16

    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(precision, device.type))


def compiled(network: nn.Module) -> None:
    """Let ``torch.compile`` make the network's kernels, in place, when it is first used."""
    network.compile()


def waiting_for(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done its work."""
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def check_precision(precision: str) -> None:
    """Raise UsageError where there is no such precision."""
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"there is no precision {precision!r}; there are fp32, bf16.")


def facts(device: torch.device) -> dict[str, Any]:
    """Return the machine's facts, with the GPU's name where one was used, and that it may have been shared."""
    import torch

    found = machine.hardware() | {"device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
