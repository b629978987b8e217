"""Recipes of fine-tuning: plain TOML files of options."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from stochcl.data import printable
from stochcl.data.files import why
from stochcl.encoders.finetuning.options import FinetuneOptions
from stochcl.errors import UsageError

_ENDING = "-finetune.toml"


def preset_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("stochcl").joinpath("encoders", "presets")
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(_ENDING)))


def load_preset(name: str) -> dict[str, Any]:
    """Read a recipe, by its name or from a .toml file of one's own.

    Returns
    -------
    dict
        Some of the fields of :class:`~stochcl.encoders.finetuning.options.FinetuneOptions`.

    Raises
    ------
    UsageError
        If there is none of this name, it is no TOML, or it has an option that fine-tuning does not.
    """
    if name in preset_names():
        text = resources.files("stochcl").joinpath("encoders", "presets", f"{name}.toml").read_text("utf-8")
    elif name.endswith(".toml"):
        try:
            text = Path(name).read_text("utf-8")
        except OSError as exc:
            raise UsageError(f"{printable(name)}: the preset cannot be read: {why(exc)}.") from exc
        except UnicodeDecodeError as exc:
            raise UsageError(f"{printable(name)}: the preset is not UTF-8 text ({exc.reason}).") from exc
    else:
        known = ", ".join(preset_names())
        raise UsageError(f"there is no preset {printable(name)!r}; there are {known}, or name a .toml file.")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{printable(name)}: this is not TOML ({exc}).") from exc
    types = {f.name: str(f.type) for f in fields(FinetuneOptions)}
    for key, value in found.items():
        if key not in types:
            raise UsageError(f"{printable(name)}: fine-tuning has no option {printable(key)!r}.")
        if not _fits(value, types[key]):
            raise UsageError(f"{printable(name)}: {key} is of the type {types[key]}, not {value!r}.")
    return found


def _fits(value: object, declared: str) -> bool:
    """Tell whether a value is of a field's type; whole numbers are numbers, truth values are not."""
    names = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    allowed = names[declared.partition(" ")[0]]
    return isinstance(value, allowed) and (isinstance(value, bool) == (declared == "bool"))
