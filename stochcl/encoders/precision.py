"""What networks compute in while they are trained: bfloat16 where that is faster, single precision elsewhere."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "bf16", "fp32")
"""What training may be asked for; bf16 is autocast."""

_NATIVE = ("avx512_bf16", "amx_bf16")
_ASKED_OF_OLDER = (
    "_is_avx512_bf16_supported",
    "_is_amx_tile_supported",
)  # of PyTorch without a table of capabilities


def computes_in_bf16(precision: str, device_type: str) -> bool:
    """Tell whether a network on such a device of this machine computes in bfloat16.

    ``bf16`` and ``fp32`` are obeyed. ``auto`` is bf16 where the device has instructions for it: a GPU of NVIDIA's or
    AMD's that does, other accelerators, and a processor with AVX-512 BF16 or AMX, where bf16 is faster than fp32. A
    processor without them emulates bf16 slowly: on one with AVX2 alone 33 images of 64 pixels a second went through
    a ResNet-10 in bf16, and 250 in fp32.

    Training asks where it computes, not once: a network may be trained on a GPU, and its latents on the processor.

    Parameters
    ----------
    precision : str
        One of :data:`PRECISIONS`.
    device_type : str
        cpu, cuda, mps...

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
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(bool(found.get(name)) for name in _NATIVE)
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in _ASKED_OF_OLDER)


def precision_used(precision: str, device_type: str) -> str:
    """Return what a precision comes to on such a device, bf16 or fp32, for records and checkpoints."""
    return "bf16" if computes_in_bf16(precision, device_type) else "fp32"
