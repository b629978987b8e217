"""Recipes: plain TOML files of options, in the package or of one's own."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from stochcl.data import printable
from stochcl.data.files import why
from stochcl.errors import UsageError

_ENDING = ".toml"
_FINETUNE = "-finetune"


def recipe_names(*, finetuning: bool) -> tuple[str, ...]:
    """Return the names of the recipes that come with the package, of fine-tuning or of training."""
    names = (p.name.removesuffix(_ENDING) for p in _folder().iterdir() if p.name.endswith(_ENDING))
    return tuple(sorted(name for name in names if name.endswith(_FINETUNE) == finetuning))


def recipe_text(name: str, known: tuple[str, ...]) -> str:
    """Return a recipe as it is written, by its name among those known or from a .toml file of one's own.

    Raises
    ------
    UsageError
        If there is none of this name, or the file cannot be read.
    """
    if name in known:
        text: str = _folder().joinpath(f"{name}{_ENDING}").read_text("utf-8")
        return text
    if not name.endswith(_ENDING):
        there = ", ".join(known)
        raise UsageError(f"there is no preset {printable(name)!r}; there are {there}, or name a .toml file.")
    try:
        return Path(name).read_text("utf-8")
    except OSError as exc:
        raise UsageError(f"{printable(name)}: the preset cannot be read: {why(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{printable(name)}: the preset is not UTF-8 text ({exc.reason}).") from exc


def read_recipe(name: str, text: str, types: dict[str, str], what: str) -> dict[str, Any]:
    """Read a recipe's options.

    Parameters
    ----------
    name, text : str
        What it is called, for messages, and what it holds.
    types : dict of str to str
        The options that there are, with their types as dataclasses declare them.
    what : str
        What has these options, for messages.

    Returns
    -------
    dict
        Arrays as tuples.

    Raises
    ------
    UsageError
        If it is no TOML, has an option that there is not, or a value of another type.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{printable(name)}: this is not TOML ({exc}).") from exc
    for key, value in found.items():
        if key not in types:
            raise UsageError(f"{printable(name)}: {what} has no option {printable(key)!r}.")
        if not _fits(value, types[key]):
            raise UsageError(f"{printable(name)}: {key} is of the type {types[key]}, not {value!r}.")
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
