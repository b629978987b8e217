"""Options: dataclass fields that carry their bounds, choices, unit, help and default, once.

Command-line options, TOML keys and their errors are made from these fields. ``Options`` checks values when an
instance is made.

>>> @dataclass(frozen=True)
... class Decoding(Options):
...     beam: int = option(8, "Hypotheses that are kept.", at_least=1, at_most=64)
>>> Decoding(beam=0)
Traceback (most recent call last):
    ...
stochcl.errors.UsageError: beam must be between 1 and 64, got 0.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from dataclasses import Field

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "Path": "a path"}
_KEY = "option"


@dataclass(frozen=True)
class Option:
    """Facts about a field of an ``Options`` dataclass beyond its name, type and default."""

    help: str = ""
    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    choices: Collection[str] = ()
    unit: str = ""  # placeholder for the value in the help
    shown: str = ""  # the help's text for a default of None or False
    short: str = ""  # a short flag
    flags: tuple[str, ...] = ()  # command-line flags, if not --NAME
    required: bool = False

    def allows(self, value: float) -> bool:
        """Return whether a number is finite and within the bounds."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )

    def range(self) -> str:
        """Return the bounds in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least:,} and {self.at_most:,}"
        words = {
            "at least": self.at_least, "more than": self.more_than, "at most": self.at_most,
            "less than": self.less_than,
        }  # fmt: skip
        return " and ".join(f"{word} {bound:,}" for word, bound in words.items() if bound is not None) or "finite"


def option(default: Any, help: str = "", **facts: Any) -> Any:  # noqa: A002 - as in click.option
    """Return a dataclass field for an option; ``facts`` are other fields of :class:`Option`."""
    return field(default=default, metadata={_KEY: Option(help, **facts)})


def declared(cls: type[Options]) -> dict[str, Field[Any]]:
    """Return the fields of an ``Options`` dataclass by name."""
    return {one.name: one for one in fields(cls)}  # type: ignore[arg-type]


def option_of(one: Field[Any]) -> Option:
    """Return a field's Option."""
    return one.metadata.get(_KEY, Option())


def kind_of(one: Field[Any]) -> str:
    """Return the type of a field's values: int, float, bool, str, Path or tuple[int, ...]; None is also allowed."""
    text = one.type.__name__ if one.type in (int, float, bool, str) else str(one.type)  # with postponed annotations
    kind = text.partition(" |")[0]
    return kind if kind in _KINDS or kind.startswith("tuple[") else "str"


def item_of(kind: str) -> str | None:
    """Return the type of a tuple's items, None if the kind is not a tuple."""
    return kind.removeprefix("tuple[").partition(",")[0] if kind.startswith("tuple[") else None


def check_value(one: Field[Any], value: Any, name: str | None = None) -> None:
    """Raise UsageError if a value is not of a field's type or is out of bounds."""
    if value is None and one.default is None and not option_of(one).required:
        return
    made, kind, shown = option_of(one), kind_of(one), name or one.name
    item = item_of(kind)
    if item is not None and not isinstance(value, tuple | list):
        raise UsageError(f"{shown} must be {_said(kind)}, got {value!r}.")
    for each in (value,) if item is None else value:
        if made.choices:
            if each not in made.choices:
                raise UsageError(f"{shown} must be {_either(made.choices)}, got {each!r}.")
        elif not _is_a(each, item or kind):
            raise UsageError(f"{shown} must be {_said(kind)}, got {value!r}.")
        elif (item or kind) in ("int", "float") and not made.allows(each):
            raise UsageError(f"{shown} must be {made.range()}, got {each}.")


class Options:
    """Base of dataclasses with fields from :func:`option`; checks the values of new instances."""

    def __post_init__(self) -> None:
        for one in declared(type(self)).values():
            check_value(one, getattr(self, one.name))


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise UsageError for the first unknown name, with the closest known one."""
    names = list(known)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"{what} has no option {name!r}{hint}")


def _either(choices: Collection[str]) -> str:
    *others, last = choices
    return " or ".join(filter(None, [", ".join(others), last]))


def _said(kind: str) -> str:
    if (item := item_of(kind)) is None:
        return _KINDS[kind]
    return {"int": "whole numbers such as 512,512", "float": "numbers such as 512,512"}.get(item, f"{item} values")


def _is_a(value: object, kind: str) -> bool:
    """Return whether a value is of a field's type; integers are numbers, booleans are not."""
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    types: dict[str, Any] = {"int": Integral, "float": Real, "str": str, "Path": (str, os.PathLike)}
    return isinstance(value, types[kind])
