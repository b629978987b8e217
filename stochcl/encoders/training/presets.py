"""Recipes of training: plain TOML files of options."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from stochcl.data import printable
from stochcl.data.files import why
from stochcl.encoders.model import EncoderConfig
from stochcl.encoders.training.options import TrainOptions, config_names
from stochcl.errors import UsageError

_OTHERS = "-finetune"  # recipes of fine-tuning lie in the same folder
_BESIDE = {"source": "str", "hold_out": "int"}


def preset_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    names = (p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml"))
    return tuple(sorted(name for name in names if not name.endswith(_OTHERS)))


def preset_text(name: str) -> str:
    """Return a recipe as it is written, by its name or from a .toml file of one's own.

    Raises
    ------
    UsageError
        If there is none of this name, or the file cannot be read.
    """
    if name in preset_names():
        text: str = _folder().joinpath(f"{name}.toml").read_text("utf-8")
        return text
    if not name.endswith(".toml"):
        known = ", ".join(preset_names())
        raise UsageError(f"there is no preset {printable(name)!r}; there are {known}, or name a .toml file.")
    try:
        return Path(name).read_text("utf-8")
    except OSError as exc:
        raise UsageError(f"{printable(name)}: the preset cannot be read: {why(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{printable(name)}: the preset is not UTF-8 text ({exc.reason}).") from exc


def load_preset(name: str) -> dict[str, Any]:
    """Read a recipe, by its name or from a .toml file of one's own.

    Returns
    -------
    dict
        Fields of :class:`~stochcl.encoders.model.EncoderConfig` and :class:`~stochcl.encoders.training.TrainOptions`,
        ``hold_out``, and ``source`` ("digits") where none has to be given.

    Raises
    ------
    UsageError
        If there is none of this name, it is no TOML, or it has an option that training does not.
    """
    try:
        found = tomllib.loads(preset_text(name))
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{printable(name)}: this is not TOML ({exc}).") from exc
    types = {f.name: str(f.type) for f in fields(EncoderConfig) if f.name in config_names()}
    types |= {f.name: str(f.type) for f in fields(TrainOptions)} | _BESIDE
    for key, value in found.items():
        if key not in types:
            raise UsageError(f"{printable(name)}: training has no option {printable(key)!r}.")
        if not _fits(value, types[key]):
            raise UsageError(f"{printable(name)}: {key} is of the type {types[key]}, not {value!r}.")
    if found.get("source", "digits") != "digits":
        raise UsageError(f"{printable(name)}: the source of a preset can only be 'digits'; name others to train.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _fits(value: object, declared: str) -> bool:
    """Tell whether a value is of a field's type; whole numbers are numbers, truth values are not."""
    if declared.startswith("tuple"):
        item = declared.removeprefix("tuple[").partition(",")[0]
        return isinstance(value, list) and all(_fits(v, item) for v in value)
    names = {"int": (int,), "float": (int, float), "bool": (bool,)}
    allowed = names.get(declared.partition(" ")[0], (str,))
    return isinstance(value, allowed) and (isinstance(value, bool) == (declared == "bool"))


def _folder() -> Any:
    return resources.files("stochcl").joinpath("encoders", "presets")
