"""Pickles: recognised, never loaded, and how their owner can convert one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d.get('model', d)); "
    "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def is_pickle(head: bytes) -> bool:
    """Tell whether a file that begins with these bytes is a pickle, bare or in PyTorch's zip."""
    return head.startswith(_BEGINNINGS)


def convert_command(path: str | os.PathLike[str]) -> str:
    """Return the shell command that makes a safetensors file of a PyTorch checkpoint of weights.

    It loads tensors only (``weights_only=True``), and clones them, as safetensors refuses those that share memory.
    """
    converted = Path(path).with_suffix(".safetensors")
    return f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(converted))}'
