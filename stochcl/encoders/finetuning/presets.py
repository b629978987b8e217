"""Recipes of fine-tuning: plain TOML files of options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stochcl.encoders.finetuning.options import FinetuneOptions
from stochcl.encoders.recipes import read_recipe, recipe_names, recipe_text


def preset_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    return recipe_names(finetuning=True)


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
    types = {f.name: str(f.type) for f in fields(FinetuneOptions)}
    return read_recipe(name, recipe_text(name, preset_names()), types, "fine-tuning")
