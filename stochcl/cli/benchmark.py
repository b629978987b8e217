"""``stochcl benchmark``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.benchmarks import curves, rate_accuracy
from stochcl.benchmarks.inputs import RateAccuracyConfig
from stochcl.benchmarks.run import Config, write_results
from stochcl.cli.main import JSON, progress_bar, say, show, table
from stochcl.cli.options import PATH, SectionedCommand, given, options_of, section
from stochcl.cli.options import output as output_option
from stochcl.errors import StochclError, command_line
from stochcl.files import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


class Script(click.Command):
    """A command that is not below ``stochcl``: it prints its own errors."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run; an error that stochcl raises becomes one sentence and its exit code."""
        with command_line():
            try:
                return super().main(*args, **options)
            except StochclError as exc:
                say(f"{self.name}: {exc}")
                raise SystemExit(exc.exit_code) from exc


def command_of(
    config: type[Config],
    name: str,
    argument: Callable[[Any], Any],
    measure: Callable[..., dict[str, Any]],
    tables: Callable[[dict[str, Any]], list[Table]],
    *,
    help: str,  # noqa: A002 - as click calls it
    unit: str,
    write: Callable[[dict[str, Any], Path], list[Path]] | None = None,
    after: Callable[[dict[str, Any]], list[str]] = lambda result: [],
    sections: dict[str, str] | None = None,
    script: bool = False,
) -> click.Command:
    """Return the command of a benchmark that measures, writes and prints; ``argument`` adds what it is given.

    ``measure`` takes the Config, the folder of results, ``progress`` and ``say``. ``sections`` are titles of the help
    with the names of the fields below them, in place of one list of all.
    """

    def run(output: Path, *, as_json: bool, **options: Any) -> None:
        asked = config(**given(options))
        make_folder(output)
        with progress_bar(unit, rate=False) as bar:
            result = measure(asked, output, progress=bar, say=say)
        paths = write(result, output) if write else write_results(result, output, name)
        lines = [line for part in tables(result) for line in table(*part)]
        show(result, [*lines, *after(result)], as_json=as_json)
        say(f"written to {paths[0]} and beside it {', '.join(path.name for path in paths[1:])}")

    command = output_option("The folder for results.")(JSON(run))
    if sections is None:
        command = options_of(config)(command)
    for title, names in reversed((sections or {}).items()):
        command = section(title, options_of(config, only=names))(command)
    return click.command(name, Script if script else SectionedCommand, help=help)(argument(command))


@click.group()
def benchmark() -> None:
    """Compare codes with other compressors.

    Results are printed, or given as JSON with --json, and written to a folder.

    \b
    Example:
      stochcl benchmark rate-accuracy photos/ -o results/
    """


_RATE_ACCURACY = """Measure bits per image against accuracy: codes, features, quantisers, and small images.

SOURCE is a folder of classes (also in a .zip or .tar; several count as one), `digits`, which scikit-learn has,
or a .npy matrix of embeddings with --labels. All methods get the same probe, split and seed. Finished parts are kept
in OUTPUT/cache: after an interruption the same command continues.

--metric recall@10 measures how many of the ten nearest rows are found (no labels needed), --metric map@1000 how well
an image finds its class.

Quantisers are fitted to the images that the probe learns from, which a model trained elsewhere has not seen. For a
fair comparison give other images of the same kind with --fit-to: each quantiser is measured a second time, fitted to
those, and named "fitted elsewhere".

\b
Example:
  stochcl benchmark rate-accuracy photos/ -o results/
  stochcl benchmark rate-accuracy train.zip --test test.zip --train-images 20000 -o results/
  stochcl benchmark rate-accuracy train.zip --test test.zip --fit-to what-the-model-saw.zip -o results/
  stochcl benchmark rate-accuracy photos/ -m mine.safetensors --baselines features,opq -o results/
  stochcl benchmark rate-accuracy x.npy --test y.npy -m head.safetensors --metric recall@10 -o results/
"""

benchmark.add_command(
    command_of(
        RateAccuracyConfig,
        "rate-accuracy",
        click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=PATH),
        rate_accuracy.benchmark_rate_accuracy,
        lambda result: [(curves.title(result), curves.columns(result), curves.lines(result))],
        help=_RATE_ACCURACY,
        unit="methods",
        write=curves.write_all,
        after=lambda result: list(curves.summary(result)),
        sections={
            "Rows": "test hold_out labels test_labels train_images test_images",
            "Measure": "metric probe queries",
            "Codes": "model ladder",
            "Baselines": "baselines bits coding beam trials fit_to fit_images fit_hold_out",
            "Running": "precision device seed",
        },
    )
)
