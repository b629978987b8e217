"""Finding models: by name in the package, by path, or in ``$STOCHCL_MODELS``."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.encoders.packaged import ENDING, embedded_models
from stochcl.errors import ModelError, ModelNotFound, UsageError, error_of
from stochcl.files import is_file
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stochcl.compress import Header

DEFAULT = "general"
"""The model that is used where none is named."""


@dataclass(frozen=True)
class ModelCard:
    """What can be said of a model without loading it.

    Parameters
    ----------
    name : str
    path : Path
    bytes : int
        Of the model file.
    config, record : dict
        What it is, and how it was trained.
    """

    name: str
    path: Path
    bytes: int
    config: dict[str, Any]
    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON types."""
        return {
            "name": escape_name(self.name),
            "path": escape_name(self.path),
            "bytes": self.bytes,
            "config": self.config,
            "record": self.record,
        }

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
    width = "" if backbone.startswith(("timm:", "efficientnet")) else f" of width {config.get('width')}"
    return f"{backbone}{width}, {config.get('size')} pixels"


def _natural(item: tuple[str, str]) -> list[tuple[int, str]]:
    """Key by which numbers in texts sort as numbers: 8 latents before 16."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", item[0].replace(",", ""))
    ]


def _folders() -> Iterator[Path]:
    for folder in os.environ.get("STOCHCL_MODELS", "").split(os.pathsep):
        if folder:
            yield Path(folder)


def find_model(model: str | os.PathLike[str]) -> Path:
    """Return the file of a model, given its name or its path.

    Raises
    ------
    UsageError
        If there is neither.
    """
    bare = isinstance(model, str) and os.sep not in model
    embedded = {p.stem: p for p in embedded_models()}
    if bare and model in embedded:  # whatever lies in the current folder; ./general is that
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
        f"{escape_name(model)}: there is no model of this name and no such file; embedded models: {names}."
    )


def model_of(header: Header, beside: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of the model that made an archive, by its hash.

    It is looked for in the package, in ``$STOCHCL_MODELS``, beside the archive and in the current folder.

    Raises
    ------
    ModelNotFound
    """
    from stochcl.encoders.modelfile import load_model

    folders = [*_folders(), *([] if beside is None else [Path(beside).parent]), Path()]
    paths = [*embedded_models(), *(path for folder in folders for path in sorted(folder.glob(f"*{ENDING}")))]
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


def portable_name(model: str | os.PathLike[str]) -> str:
    """Return what names a model also in another folder: the name of an embedded one, else an absolute path."""
    path, embedded = Path(model), {path.stem for path in embedded_models()}
    return str(path.absolute()) if str(model) not in embedded and is_file(path) else str(model)


def initial_weights(init: str | os.PathLike[str]) -> Path:
    """Return the file that a backbone begins with: an embedded model's, an installed package's, or the one named.

    Raises
    ------
    UsageError
        If these are published weights whose package is not installed.
    """
    from stochcl.encoders.pretrained import find_weights

    embedded = {path.stem: path for path in embedded_models()}
    return embedded.get(str(init)) or find_weights(str(init)) or Path(init)


def model_cards() -> tuple[list[ModelCard], list[tuple[Path, ModelError]]]:
    """Describe the embedded models and those of ``$STOCHCL_MODELS``, without loading their weights.

    Returns
    -------
    list of ModelCard
    list of (Path, ModelError)
        Files that are damaged, or something else, with what is wrong with each.
    """
    paths = [*embedded_models(), *(p for folder in _folders() for p in sorted(folder.glob(f"*{ENDING}")))]
    cards, damaged = [], []
    for path in paths:
        try:
            cards.append(_card(path))
        except ModelError as exc:
            damaged.append((path, exc))
    return cards, damaged


def _card(path: Path) -> ModelCard:
    """Read the JSON at the beginning of a safetensors file; numpy and torch are not needed for it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(length, 1 << 24)))["__metadata__"]
        card = ModelCard(
            path.stem, path, path.stat().st_size, json.loads(metadata["config"]),
            json.loads(metadata["record"], parse_constant=lambda name: None),  # NaN is no JSON, and no figure
        )  # fmt: skip
        card.lines()  # whatever is not of its type shows now
    except OSError as exc:
        raise error_of(ModelError, exc, f"{escape_name(path)}: the model cannot be read: {os_reason(exc)}.") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        msg = f"{escape_name(path)}: this is not a stochcl model, or it is damaged; fetch or train it again."
        raise ModelError(msg) from exc
    return card
