"""Recipes of training: plain TOML files of options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stochcl.data import printable
from stochcl.encoders.model import EncoderConfig
from stochcl.encoders.recipes import read_recipe, recipe_names, recipe_text
from stochcl.encoders.training.options import TrainOptions, config_names
from stochcl.errors import UsageError

_BESIDE = {"source": "str", "hold_out": "int"}


def preset_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    return recipe_names(finetuning=False)


def preset_text(name: str) -> str:
    """Return a recipe as it is written, by its name or from a .toml file of one's own.

    Raises
    ------
    UsageError
        If there is none of this name, or the file cannot be read.
    """
    return recipe_text(name, preset_names())


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
    types = {f.name: str(f.type) for f in fields(EncoderConfig) if f.name in config_names()}
    types |= {f.name: str(f.type) for f in fields(TrainOptions)} | _BESIDE
    found = read_recipe(name, preset_text(name), types, "training")
    if found.get("source", "digits") != "digits":
        raise UsageError(f"{printable(name)}: the source of a preset can only be 'digits'; name others to train.")
    return found
