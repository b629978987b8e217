"""What a model file holds: configuration, code, preprocessing, hashes, and how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from stochcl.api.codec import Codec
from stochcl.api.models import DEFAULT, find_model
from stochcl.codes import bits_per_symbol
from stochcl.encoders.layout import feature_dim, is_weight, vector_dim
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from stochcl.encoders.config import EncoderConfig

_CLASSES_SHOWN = 10
_RUN = 3  # equal values of a list that are written out


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself, all of it read and checked.

    Parameters
    ----------
    name : str
    path : Path
    bytes : int
        Of the file.
    sha256 : str
        The model's hash, by which archives name it.
    tables_sha256 : str
        The hash of its decoding tables.
    tables_bytes : int
    packaged_tables : bool
        Whether the package brings these tables along.
    parameters : int
        Numbers in its weights.
    feature_dim : int
        V, the width of features and of decoded vectors.
    config : EncoderConfig
    record : dict
        How it was trained.
    """

    name: str
    path: Path
    bytes: int
    sha256: str
    tables_sha256: str
    tables_bytes: int
    packaged_tables: bool
    parameters: int
    feature_dim: int
    config: EncoderConfig
    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON types."""
        from stochcl.encoders.modelfile import stored_config

        config = self.config
        images = {"size": config.size, "fit": config.fit, "mean": list(config.mean), "std": list(config.std)}
        return {
            "schema": "stochcl.model-info/0",
            "name": printable(self.name),
            "path": printable(self.path),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "tables": {"sha256": self.tables_sha256, "bytes": self.tables_bytes, "packaged": self.packaged_tables},
            "parameters": self.parameters,
            "config": stored_config(config),
            "code": {
                "posterior": config.posterior,
                "latents": config.latents,
                "alphabet": config.alphabet,
                "bits": config.latents * bits_per_symbol(config.alphabet),
                "ladder": list(config.ladder),
                "vector": self.feature_dim,
            },
            "preprocess": {"columns": config.columns} if config.columns else images,
            "classes": [printable(name) for name in config.classes],
            "record": self.record,
        }

    def lines(self) -> list[str]:
        """Return the facts for people."""
        config = self.config
        layers = " + ".join(f"{width:,}" for width in config.decoder)
        through = f"through layers of {layers}" if layers else "by one linear layer"
        if config.posterior == "residual":
            through = f"as sums of {len(config.stages)} words"
        packaged = "they come with the package" if self.packaged_tables else "archives bring them along"
        out = [
            f"{printable(self.name)}: {self._network()}, {self.parameters:,} parameters, {self.bytes:,} bytes",
            f"  file: {printable(self.path)}",
            f"  hash: {self.sha256}",
            f"  tables: {self.tables_sha256} ({self.tables_bytes:,} bytes; {packaged})",
            f"  code: {self._code()}",
            f"  prefixes: the first {', '.join(f'{rung:,}' for rung in config.ladder)} latents",
            f"  decoder: to vectors of {self.feature_dim:,} numbers {through}",
            f"  entropy: {self._entropy()}",
            f"  input: {self._input()}",
        ]
        if config.classes:
            out.append(f"  classifier: {self._classes()}, read from {config.classifies}")
        return out + [f"  {line}" for line in _told(self.record)]

    def _network(self) -> str:
        config = self.config
        if config.columns or config.backbone.startswith("timm:"):
            return config.backbone
        pooled = {"stages": ", all stages pooled", "moments": ", moments of stages"}.get(config.pooling, "")
        if config.backbone.startswith("efficientnet"):
            return f"{config.backbone}{pooled}"
        return f"{config.backbone} of width {config.width}, {config.stem} stem{pooled}"

    def _code(self) -> str:
        config = self.config
        bits = config.latents * bits_per_symbol(config.alphabet)
        values = f"{config.latents:,} {config.posterior} latents of {config.alphabet:,} values"
        return f"{values}, {bits:,} bits before entropy coding"

    def _entropy(self) -> str:
        if self.config.entropy == "independent":
            return "independent symbols"
        hidden = self.config.entropy_hidden
        return f"autoregressive network, {f'{hidden:,} hidden units' if hidden else 'linear'}"

    def _input(self) -> str:
        config = self.config
        if config.columns:
            return f"vectors of {config.columns:,} numbers"
        mean, std = (", ".join(f"{value:g}" for value in colours) for colours in (config.mean, config.std))
        return f"images, {config.fit} to {config.size} x {config.size} pixels, mean {mean}, deviation {std}"

    def _classes(self) -> str:
        names = self.config.classes
        shown = ", ".join(printable(name) for name in names[:_CLASSES_SHOWN])
        more = ", ..." if len(names) > _CLASSES_SHOWN else ""
        return f"{len(names):,} classes ({shown}{more})"


def _told(record: dict[str, Any], indent: str = "") -> list[str]:
    """Write a training record as lines: one an entry, those of a group below its name."""
    if not record:
        return ["training record: none"]
    lines = [] if indent else ["training record:"]
    inner = indent + "  "
    for name, value in record.items():
        if isinstance(value, dict) and value and not indent:
            lines += [f"{inner}{printable(str(name))}:", *_told(value, inner)]
        elif value not in (None, {}, [], ""):
            lines.append(f"{inner}{printable(str(name))}: {_text(value)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, dict):
        items = list(value.items())
        if all(str(key).isdecimal() for key in value):
            items.sort(key=lambda item: int(item[0]))
        return ", ".join(f"{printable(str(k))} {_text(v)}" for k, v in items if v is not None)
    if isinstance(value, list):
        runs = [(text, len(list(same))) for text, same in groupby(map(_text, value))]
        return ", ".join(f"{count:,} x {text}" if count > _RUN else ", ".join([text] * count) for text, count in runs)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else printable(str(value))


def model_info(model: str | os.PathLike[str] = DEFAULT) -> ModelInfo:
    """Read a model file, check it, and say what it is.

    Parameters
    ----------
    model : str or path-like
        The name of a model or a model file.

    Raises
    ------
    UsageError
        If there is no such model.
    ModelError
        If the file is damaged, foreign, a pickle, or of a kind that this version does not know.

    Examples
    --------
    >>> model_info("general").tables_sha256[:16]
    '8ecd1e8e899b323c'
    """
    path = find_model(model)
    codec = Codec(path, device="cpu")
    return ModelInfo(
        name=codec.model.name,
        path=path,
        bytes=path.stat().st_size,
        sha256=codec.model.sha256,
        tables_sha256=codec.tables.sha256,
        tables_bytes=len(codec.tables.data),
        packaged_tables=codec.has_packaged_tables,
        parameters=sum(array.size for name, array in codec.model.tensors.items() if is_weight(name)),
        feature_dim=vector_dim(codec.config, feature_dim(codec.config, codec.model.tensors)),
        config=codec.config,
        record=codec.model.record,
    )
