"""Click options: made from the fields of options dataclasses, and shared by commands."""

from __future__ import annotations

import re
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stochcl.errors import UsageError
from stochcl.files import check_exists
from stochcl.options import Options, check_value, declared, item_of, kind_of, option_of
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field

    Decorator = Callable[[Any], Any]


class InputPath(click.ParamType):  # type: ignore[type-arg]  # not generic in every version
    """A file or folder that must exist, or a URL (``s3://...``), in which a Path would drop a slash.

    A wrong path fails while the command line is parsed, not after loading a model.
    """

    name = "path"

    def __init__(self, *, check: bool = True) -> None:
        self.check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return a path, or a URL unchanged."""
        if value == "":  # which would be the current folder: a variable of the shell that is not set
            self.fail("the name is empty; '.' is the current folder.", param, ctx)
        if isinstance(value, str) and is_url(value):
            return value
        if self.check:
            check_exists(value)
        return Path(value)


class SectionedCommand(click.Command):
    """A command whose help groups options by :func:`section`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                rows.setdefault(getattr(param, "section", "Options"), []).append(record)
        if "Options" in rows:
            rows["Options"] = rows.pop("Options")  # the common ones come last
        for title, records in rows.items():
            with formatter.section(title):
                formatter.write_dl(records)


command = partial(click.command, cls=SectionedCommand)
"""The decorator of a command whose help has sections of options."""


def section(title: str, *options: Decorator) -> Decorator:
    """Return a decorator that adds options under a title of the help."""

    def decorate(function: Any) -> Any:
        before = len(getattr(function, "__click_params__", ()))
        for add in reversed(options):
            function = add(function)
        for param in function.__click_params__[before:]:
            param.section = title
        return function

    return decorate


PATH = click.Path(path_type=Path)
INPUT = InputPath()
SOURCE = InputPath(check=False)  # may also be - or an entry of a list
CODES = click.argument("codes", type=INPUT)
_TABLES_HELP = "Model or .tables file with the decoder, if neither archive nor stochcl has it."
TABLES = click.option("-m", "--model", help=_TABLES_HELP)
TABLES_OF_CODES = click.option("--tables", help=_TABLES_HELP)
FORCE = click.option("--force", is_flag=True, help="Replace an existing output.")
RESUME = click.option("--resume", is_flag=True, help="Continue an interrupted run.")
MODEL = click.option("-m", "--model", default="general", show_default=True, help="A packaged model or a model file.")
CODES_MODEL = click.option("-m", "--model", help="The model of the codes.  [default: the one that the archive names]")
DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
LABELS = click.option(
    "--labels",
    type=INPUT,
    help="CSV file name,label..., .npy array with a label a row, or .parquet or .arrow file, in place of folders.",
)
TEST_LABELS = click.option("--test-labels", type=INPUT, help="The same for --test.  [default: --labels]")
LEVEL = click.option(
    "--label-level", "level", type=int, metavar="N",
    help="Which folder of a name is its label: 1 the first, -1 the innermost.  [default: 1]",
)  # fmt: skip
COLUMN = click.option(
    "--label-column", "--column", "column", help="Column of --labels.  [default: label, or the first]"
)


def output(help: str, default: str | None = None) -> Decorator:  # noqa: A002 - as in click.option
    """Return the -o/--output option."""
    how: dict[str, Any] = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option("-o", "--output", type=PATH, help=help, **how)


def options_of(*classes: type[Options], only: str = "") -> Decorator:
    """Return a decorator that adds an option for each field with a help text, a class's own before its bases'.

    ``only`` names the wanted fields, separated by spaces.
    """
    made = [
        _click_option(one) for cls in classes for one in _own_first(cls)
        if option_of(one).help and (not only or one.name in only.split())
    ]  # fmt: skip

    def decorate(command: Any) -> Any:
        for add in reversed(made):
            command = add(command)
        return command

    return decorate


def _own_first(cls: type[Options]) -> list[Field[Any]]:
    fields = declared(cls)
    names = dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("__annotations__", {}))
    return [fields[name] for name in names if name in fields]  # skips ClassVars


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _click_option(one: Field[Any]) -> Decorator:
    made = option_of(one)
    long = f"--{one.name.replace('_', '-')}"
    flags = made.flags or ((made.short, long) if made.short else (long,))
    flag = flags[-1]
    shown = made.shown or (one.name if one.default is True else _shown(one.default))
    text = made.help + (f"  [default: {shown}]" if shown else "")
    if kind_of(one) == "bool":
        both = f"{flag}/--no-{flag[2:]}" if one.default is True else flag
        return click.option(both, one.name, is_flag=True, default=None, help=text)
    unit = made.unit or (f"[{'|'.join(made.choices)}]" if made.choices else None)
    many: dict[str, Any] = {}
    if item_of(kind_of(one)):
        many = {"multiple": True, "callback": lambda _ctx, _param, values: tuple(chain(*values)) or None}
    return click.option(
        *flags, one.name, type=OptionType(one, flag), metavar=unit, help=text, required=made.required, **many
    )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None or default is False else str(default)


class OptionType(click.ParamType):  # type: ignore[type-arg]  # not generic in every version
    """A field's type and bounds."""

    def __init__(self, one: Field[Any], flag: str) -> None:
        self.field, self.flag = one, flag
        self.name = {"int": "integer", "float": "number"}.get(kind_of(one), "text")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert and check a value."""
        kind = kind_of(self.field)
        item = item_of(kind)
        if option_of(self.field).unit == "TIME":
            value = seconds(value, self.flag)
        elif item == "Path":
            value = (Path(value),)
        elif item is not None:
            parts = tuple(_value(item, part.strip()) for part in value.split(",") if part.strip())
            value = value if item != "str" and any(isinstance(part, str) for part in parts) else parts
        else:
            value = _value(kind, value)
        check_value(self.field, value, self.flag)
        return value


def _value(kind: str, text: str) -> Any:
    """Convert a text; return it unchanged on failure, so that the check names the expected type."""
    try:
        return {"int": int, "float": float, "Path": Path}.get(kind, str)(text)
    except ValueError:
        return text


_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def seconds(text: str, flag: str = "") -> float:
    """Convert a time to seconds: a number, optionally followed by s, m, h or d.

    Examples
    --------
    >>> seconds("90m"), seconds("1.5h")
    (5400.0, 5400.0)
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|m|min|h|d)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{flag} must be a time such as 90s, 90m or 1.5h, got {text!r}.")
    return float(match[1]) * _UNITS[match[2] or ""]
