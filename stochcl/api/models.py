"""Find models and decoders by name, path or hash, and describe them."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.codes import bits_per_symbol
from stochcl.compress import Header, open_archive
from stochcl.encoders import layout
from stochcl.encoders.config import FOREIGN
from stochcl.encoders.modelfile import load_model, stored_config
from stochcl.encoders.packaged import ENDING, embedded_models, read_tensors
from stochcl.entropy.tables import Tables, is_packaged
from stochcl.errors import ModelError, ModelMismatch, ModelNotFound, StochclError, UsageError, error_of
from stochcl.files import PathLike, is_file
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterable


DEFAULT = "general"
"""The default model."""


@dataclass(frozen=True)
class ModelCard:
    """Facts about a model, read without loading it: its configuration and how it was trained."""

    name: str
    path: Path
    bytes: int
    config: dict[str, Any]
    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON types."""
        return {
            "name": escape_name(self.name), "path": escape_name(self.path), "bytes": self.bytes,
            "config": self.config, "record": self.record,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return the card for people."""
        config, record = self.config, self.record
        rungs = ", ".join(str(rung) for rung in config.get("ladder", ()))
        seen = f"{record.get('images', 0):,} images, {record.get('images_seen', 0):,} seen"
        where = f"{record.get('seconds', 0) / 60:,.0f} minutes on {record.get('hardware')}"
        out = [
            f"{escape_name(self.name)}: {config.get('latents'):,} latents, {self.bytes:,} bytes",
            f"  network: {_network(config)}",
            f"  codes: the first {rungs} latents",
            f"  trained on: {', '.join(record.get('sources', ()))}; {seen}, {where}",
        ]
        if classes := config.get("classes"):
            out.insert(3, f"  classifier: {len(classes):,} classes")
        for name, value in sorted(record.get("figures", {}).items(), key=_natural):
            out.append(f"  {name}: {value}")
        return out


def _network(config: dict[str, Any]) -> str:
    backbone = str(config.get("backbone"))
    if backbone.startswith("features:"):
        return f"for vectors of {backbone.removeprefix('features:')} numbers"
    width = "" if backbone.startswith((*FOREIGN, "efficientnet")) else f" of width {config.get('width')}"
    return f"{backbone}{width}, {config.get('size')} pixels"


def _natural(item: tuple[str, str]) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers in text by value: 8 latents before 16."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", item[0].replace(",", ""))
    ]


def _folders() -> list[Path]:
    return [Path(folder) for folder in os.environ.get("STOCHCL_MODELS", "").split(os.pathsep) if folder]


def _in_folders(folders: Iterable[Path]) -> list[Path]:
    """Return the packaged models, and those in folders."""
    return [*embedded_models(), *(path for folder in folders for path in sorted(folder.glob(f"*{ENDING}")))]


def find_model(model: PathLike) -> Path:
    """Return the file of a model, by name or path.

    Raises
    ------
    UsageError
        If there is neither.
    """
    if model == "":
        raise UsageError("the name of the model is empty.")
    bare = isinstance(model, str) and os.sep not in model
    embedded = {p.stem: p for p in embedded_models()}
    if bare and model in embedded:  # also if the current folder has such a file, which is ./general
        return embedded[str(model)]
    candidates = [Path(model)]
    if bare:
        candidates += [folder / f"{str(model).removesuffix(ENDING)}{ENDING}" for folder in _folders()]
    with suppress(OSError):  # a name too long for any file
        for path in candidates:
            if path.is_file():
                return path
        if candidates[0].is_dir():
            raise UsageError(f"{escape_name(model)}: this is a folder; name the model file in it.")
    names = ", ".join(embedded) or "none"
    raise ModelNotFound(
        f"{escape_name(model)}: there is no model of this name and no such file; packaged models: {names}."
    )


def model_of(header: Header, beside: PathLike | None = None) -> Path:
    """Return the file of the model that made an archive, by its hash.

    Searched are the package, ``$STOCHCL_MODELS``, the archive's folder and the current folder.

    Raises
    ------
    ModelNotFound
    """
    paths = _in_folders([*_folders(), *([] if beside is None else [Path(beside).parent]), Path()])
    for path in sorted(dict.fromkeys(path.resolve() for path in paths), key=lambda path: path.stem != header.model):
        with suppress(ModelError):
            config = _card(path).config
            sizes = config.get("latents"), config.get("alphabet", header.alphabet)
            if sizes == (header.model_latents, header.alphabet) and load_model(path).sha256 == header.model_sha256:
                return path
    raise ModelNotFound(
        f"the model {escape_name(header.model)} ({header.model_sha256[:12]}), which made the archive, is neither in "
        "the package nor beside the archive, in this folder or in $STOCHCL_MODELS; give it with -m."
    )


def portable_name(model: PathLike) -> str:
    """Return a name of a model that is valid in any folder: an embedded model's, else an absolute path."""
    path, embedded = Path(model), {path.stem for path in embedded_models()}
    return str(path.absolute()) if str(model) not in embedded and is_file(path) else str(model)


def initial_weights(init: PathLike) -> Path:
    """Return the file of a backbone's initial weights: an embedded model, an installed package's, or a path.

    Raises
    ------
    UsageError
        If these are published weights whose package is not installed.
    """
    from stochcl.encoders.pretrained import find_weights

    embedded = {path.stem: path for path in embedded_models()}
    return embedded.get(str(init)) or find_weights(str(init)) or Path(init)


def model_cards() -> tuple[list[ModelCard], list[tuple[Path, ModelError]]]:
    """Describe the embedded models and those in ``$STOCHCL_MODELS``, without loading weights.

    Returns
    -------
    list of ModelCard
    list of (Path, ModelError)
        Damaged or foreign files, with the error for each.
    """
    cards, damaged = [], []
    for path in _in_folders(_folders()):
        try:
            cards.append(_card(path))
        except ModelError as exc:
            damaged.append((path, exc))
    return cards, damaged


def _card(path: Path) -> ModelCard:
    """Read the metadata of a model file, without its weights."""
    try:
        _, metadata = read_tensors(path, None)
        card = ModelCard(
            path.stem, path, path.stat().st_size, json.loads(metadata["config"]),
            json.loads(metadata["record"], parse_constant=lambda name: None),  # NaN is not JSON
        )  # fmt: skip
        card.lines()  # raises now if a value has a wrong type
    except OSError as exc:
        raise error_of(ModelError, exc, f"{escape_name(path)}: the model cannot be read: {os_reason(exc)}.") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelError(
            f"{escape_name(path)}: this is not a stochcl model, or it is damaged; fetch or train it again."
        ) from exc
    return card


_CLASSES_SHOWN = 10
_RUN = 3  # longest run of equal values in a list to write out


class ModelInfo:
    """Facts about a model file, which is read whole and checked."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, load_model(path)
        config, tensors = self.model.config, self.model.tensors
        self.config, self.bytes, self.tables = config, path.stat().st_size, layout.tables(config, tensors)
        self.parameters = sum(array.size for name, array in tensors.items() if layout.is_weight(name))
        self.vector = layout.vector_dim(config, layout.feature_dim(config, tensors))
        self.packaged = is_packaged(self.tables.sha256)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON types."""
        config, tables = self.config, self.tables
        images = {"size": config.size, "fit": config.fit, "mean": list(config.mean), "std": list(config.std)}
        return {
            "schema": "stochcl.model-info/0", "name": escape_name(self.model.name), "path": escape_name(self.path),
            "bytes": self.bytes, "sha256": self.model.sha256,
            "tables": {"sha256": tables.sha256, "bytes": len(tables.data), "packaged": self.packaged},
            "parameters": self.parameters, "config": stored_config(config),
            "code": {
                "posterior": config.posterior, "latents": config.latents, "alphabet": config.alphabet,
                "bits": self.bits, "ladder": list(config.ladder), "vector": self.vector,
            },
            "preprocess": {"columns": config.columns} if config.columns else images,
            "classes": [escape_name(name) for name in config.classes], "record": self.model.record,
        }  # fmt: skip

    @property
    def bits(self) -> int:
        """Bits of a code before entropy coding."""
        return self.config.latents * bits_per_symbol(self.config.alphabet)

    def lines(self) -> list[str]:
        """Return the facts for people."""
        config, names = self.config, self.config.classes
        through = "by one linear layer"
        if config.posterior == "residual":
            through = f"as sums of {len(config.stages)} words"
        elif config.decoder:
            through = f"through layers of {' + '.join(f'{width:,}' for width in config.decoder)}"
        hidden = f"{config.entropy_hidden:,} hidden units" if config.entropy_hidden else "linear"
        mean, std = (", ".join(f"{value:g}" for value in colours) for colours in (config.mean, config.std))
        images = f"images, {config.fit} to {config.size} x {config.size} pixels, mean {mean}, deviation {std}"
        packaged = "they come with the package" if self.packaged else "archives bring them along"
        values = f"{config.latents:,} {config.posterior} latents of {config.alphabet:,} values"
        facts = {
            "file": escape_name(self.path),
            "hash": self.model.sha256,
            "tables": f"{self.tables.sha256} ({len(self.tables.data):,} bytes; {packaged})",
            "code": f"{values}, {self.bits:,} bits before entropy coding",
            "prefixes": f"the first {', '.join(f'{rung:,}' for rung in config.ladder)} latents",
            "decoder": f"to vectors of {self.vector:,} numbers {through}",
            "entropy": "independent symbols"
            if config.entropy == "independent"
            else f"autoregressive network, {hidden}",
            "input": f"vectors of {config.columns:,} numbers" if config.columns else images,
        }
        if names:
            shown = ", ".join(
                [*map(escape_name, names[:_CLASSES_SHOWN]), *(["..."] if names[_CLASSES_SHOWN:] else [])]
            )
            facts["classifier"] = f"{len(names):,} classes ({shown}), read from {config.classifies}"
        size = f"{self.parameters:,} parameters, {self.bytes:,} bytes"
        head = f"{escape_name(self.model.name)}: {self._network()}, {size}"
        said = [f"  {name}: {value}" for name, value in facts.items()]
        return [head, *said, *(f"  {line}" for line in _told(self.model.record))]

    def _network(self) -> str:
        config = self.config
        if config.columns or config.backbone.startswith(FOREIGN):
            return config.backbone
        pooled = {"stages": ", all stages pooled", "moments": ", moments of stages"}.get(config.pooling, "")
        if config.backbone.startswith("efficientnet"):
            return f"{config.backbone}{pooled}"
        return f"{config.backbone} of width {config.width}, {config.stem} stem{pooled}"


def _told(record: dict[str, Any], indent: str = "") -> list[str]:
    """Return a training record as lines, one per entry, with groups indented."""
    if not record:
        return ["training record: none"]
    lines = [] if indent else ["training record:"]
    inner = indent + "  "
    for name, value in record.items():
        if isinstance(value, dict) and value and not indent:
            lines += [f"{inner}{escape_name(str(name))}:", *_told(value, inner)]
        elif value not in (None, {}, [], ""):
            lines.append(f"{inner}{escape_name(str(name))}: {_text(value)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, dict):
        items = list(value.items())
        if all(str(key).isdecimal() for key in value):
            items.sort(key=lambda item: int(item[0]))
        return ", ".join(f"{escape_name(str(k))} {_text(v)}" for k, v in items if v is not None)
    if isinstance(value, list):
        runs = [(text, len(list(same))) for text, same in groupby(map(_text, value))]
        return ", ".join(f"{count:,} x {text}" if count > _RUN else ", ".join([text] * count) for text, count in runs)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else escape_name(str(value))


def model_info(model: PathLike = DEFAULT) -> ModelInfo:
    """Read and check a model file, and describe it.

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
    >>> model_info("general").tables.sha256[:16]
    '63375e81e1724e37'
    """
    return ModelInfo(find_model(model))


def resolve_tables(model: PathLike | None, path: PathLike | None = None) -> tuple[Tables | Path, ...]:
    """Return where to look for a decoder: a .tables file, a model by name or file, or the archive's own model.

    If an archive's decoder is found nowhere, it is taken from the archive's model, found by its hash.

    Raises
    ------
    ModelNotFound
        If there is no such file or model.
    ModelError
        If the model is damaged.
    """
    if model is None:
        return () if path is None else _by_hash(path)
    if Path(model).suffix != ".tables":
        return (_tables_of(find_model(model)),)
    if not is_file(model):
        raise ModelNotFound(f"{escape_name(model)}: there is no such file.")
    return (Path(model),)


def _by_hash(path: PathLike) -> tuple[Tables, ...]:
    try:
        with open_archive(path) as archive:
            try:
                _ = archive.tables
            except ModelMismatch:
                return (_tables_of(model_of(archive.header, path)),)
    except StochclError:  # the caller's own attempt to open it reports this
        pass
    return ()


def _tables_of(path: Path) -> Tables:
    model = load_model(path)
    return layout.tables(model.config, model.tensors)
