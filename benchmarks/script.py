"""Shared by the scripts here: a command that measures, writes a result, and prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.benchmarks.run import Config, write_results
from stochcl.cli.main import JSON, progress_bar, say, show, table
from stochcl.cli.options import given, options_of, output
from stochcl.errors import StochclError, command_line
from stochcl.files import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


class Script(click.Command):
    """A command outside ``stochcl`` that prints its own errors."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run; print an error of stochcl as one sentence and exit with its code."""
        with command_line():
            try:
                return super().main(*args, **options)
            except StochclError as exc:
                say(f"{self.name}: {exc}")
                raise SystemExit(exc.exit_code) from exc


def command_of(
    config: type[Config], name: str, argument: Callable[[Any], Any], measure: Callable[..., dict[str, Any]],
    tables: Callable[[dict[str, Any]], list[Table]], *, help: str, unit: str,  # noqa: A002 - as click calls it
) -> click.Command:  # fmt: skip
    """Return the command of a script; ``argument`` decorates it with its arguments.

    ``measure`` takes the Config, the results folder, ``progress`` and ``say``.
    """

    def run(output: Path, *, as_json: bool, **options: Any) -> None:
        asked = config(**given(options))
        make_folder(output)
        with progress_bar(unit, rate=False) as bar:
            result = measure(asked, output, progress=bar, say=say)
        paths = write_results(result, output, name)
        show(result, [line for part in tables(result) for line in table(*part)], as_json=as_json)
        say(f"written to {paths[0]} and beside it {', '.join(path.name for path in paths[1:])}")

    command = options_of(config)(output("The folder for results.")(JSON(run)))
    return click.command(name, Script, help=help)(argument(command))
