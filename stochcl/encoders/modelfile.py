"""The model file: safetensors with the weights, the configuration and the training record."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.encoders import layout
from stochcl.encoders.config import FOREIGN, EncoderConfig
from stochcl.encoders.packaged import (
    BASE,
    canonical,
    hash_tensors,
    is_pickle,
    read_tensors,
    with_backbone,
    without_packaged_backbone,
)
from stochcl.errors import ModelError, StochclError, require
from stochcl.files import reading, refuse_pointer, replacing, writing
from stochcl.lazy import cached_property
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from stochcl.encoders.encoder import Encoder

KIND = "stochcl-encoder-0"
"""The kind in a model file's metadata."""

_MAX_BYTES = 4 << 30
_LATER = (  # fields that the first models lack
    "alphabet", "head", "embedding", "temperature", "classes", "classifies", "pooling", "stages", "reduced",
    "transform",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """A configuration and its tensors, by their PyTorch names, in their stored types.

    ``sha256`` covers tensors and configuration, but not the training record (data, options, versions, hardware,
    time).
    """

    config: EncoderConfig
    tensors: dict[str, NDArray[Any]]
    name: str
    sha256: str
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in PyTorch, in evaluation mode, float32.

        Raises
        ------
        MissingExtraError
            If PyTorch, or timm for a network of its own, is not installed.
        """
        torch = require("torch", "a model in PyTorch", "train")

        from stochcl.encoders.encoder import Encoder
        from stochcl.encoders.inference import own_state

        with own_state():
            encoder = Encoder(self.config)
            state = {name: torch.from_numpy(array) for name, array in self.tensors.items()}
            try:
                missing, unknown = encoder.load_state_dict(state, strict=False)
            except RuntimeError as exc:
                raise ModelError(f"{escape_name(self.name)}: the weights are of another network ({exc}).") from exc
        if missing := [name for name in missing if not name.endswith("num_batches_tracked")] or unknown:
            raise ModelError(f"{escape_name(self.name)}: the weights are of another network ({missing[0]}).")
        return encoder.eval()


def _tensors(encoder: Encoder) -> dict[str, NDArray[Any]]:
    """Return the stored tensors: weights as fp16, statistics and the prior unchanged, no step counters."""
    with np.errstate(over="ignore"):  # overflow becomes infinite and is refused
        return {
            name: np.ascontiguousarray(array.astype(layout.stored_type(name, array.ndim, array.dtype)))
            for name, array in sorted(encoder.arrays().items())
        }


def model_hash(tensors: Mapping[str, ArrayLike], config: EncoderConfig) -> str:
    """Return the hex hash of tensors (names, types, shapes, bytes) and configuration, not of the file's layout."""
    return hash_tensors(tensors, canonical(stored_config(config)))


def stored_config(config: EncoderConfig) -> dict[str, Any]:
    """Return the configuration as stored and hashed.

    Later fields are left out at their default, so that older models keep the hash by which archives name them.
    """
    stored = asdict(config)
    if config.entropy == "independent":
        del stored["entropy"], stored["entropy_hidden"]
    defaults = {f.name: f.default for f in fields(config) if f.name in _LATER}
    return {name: value for name, value in stored.items() if name not in _LATER or value != defaults[name]}


def save_model(encoder: Encoder, path: Path, record: dict[str, Any], *, share_backbone: bool = False) -> str:
    """Write a model file atomically, and return the model's hash.

    With ``share_backbone``, the file omits a backbone that a packaged model has; the hash is the same.
    """
    tensors = _tensors(encoder)
    for name, tensor in tensors.items():
        if wrong := layout.fault(name, tensor, tensor.dtype):
            raise ModelError(f"{escape_name(path)}: {name} holds {wrong}; the model is not written.")
    metadata = {
        "kind": KIND,
        "config": json.dumps(stored_config(encoder.config), sort_keys=True),
        "record": json.dumps(record, sort_keys=True),
    }
    stored = tensors
    if share_backbone:
        stored, base = without_packaged_backbone(tensors)
        metadata |= {BASE: base} if base else {}
    from safetensors.numpy import save

    with writing(path, "the model"), replacing(path) as file:
        file.write(save(stored, metadata))
    return model_hash(tensors, encoder.config)


def load_model(path: Path) -> ModelFile:
    """Read a model file; nothing in it is executed."""
    shown = escape_name(path)
    with reading(path, "the model", ModelError), path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(32)
    refuse_pointer(path, head, "a model", ModelError)
    if is_pickle(head):
        raise ModelError(
            f"{shown}: this is a pickle (a PyTorch checkpoint?), which could run any program when it is loaded; "
            "stochcl reads safetensors model files, as `stochcl train` writes them."
        )
    if not 8 < size <= _MAX_BYTES:
        raise ModelError(f"{shown}: this is not a stochcl model: it has {size:,} bytes.")
    try:
        kind = read_tensors(path, None)[1].get("kind")
        if kind != KIND:
            raise ModelError(
                f"{shown}: this is a safetensors file but not a stochcl model of a kind that this version knows "
                f"(it says {kind!r}, not {KIND!r})."
            )
        tensors, metadata = read_tensors(path)
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"{shown}: this is not a stochcl model, or it is damaged ({exc}); fetch or train it again."
        ) from exc
    return _assemble(path, with_backbone(shown, tensors, metadata), metadata)


def _assemble(path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> ModelFile:
    shown = escape_name(path)
    try:
        config = _config(shown, json.loads(metadata["config"]))
        # NaN is neither JSON nor a figure.
        record = dict(json.loads(metadata.get("record", "{}"), parse_constant=lambda name: None))
        if layout.shapes_of(config, tensors) != {name: array.shape for name, array in tensors.items()}:
            raise ModelError(f"{shown}: the model's tensors are not those that its configuration asks for.")
        foreign = config.backbone.startswith(FOREIGN)
        for name, array in tensors.items():
            other = array.dtype if foreign and name.startswith("backbone.") else np.float32
            if wrong := layout.fault(name, array, layout.stored_type(name, array.ndim, other)):
                raise ModelError(f"{shown}: {name} holds {wrong}; the model is damaged.")
        layout.entropy_network(config, tensors)  # refuses arrays that no coder accepts
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError, StochclError) as exc:
        raise ModelError(f"{shown}: the model's configuration makes no sense ({exc}); it is damaged.") from exc
    return ModelFile(config, tensors, path.stem, model_hash(tensors, config), record)


def _config(shown: str, stored: dict[str, Any]) -> EncoderConfig:
    known = {f.name for f in fields(EncoderConfig)}
    stored = dict(stored)
    if unknown := sorted(set(stored) - known):
        names = escape_name(", ".join(unknown))
        msg = f"{shown}: this version of stochcl does not know {names}, which the model's configuration has"
        raise ModelError(f"{msg}; a later version made it: update stochcl.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return EncoderConfig(**values)
