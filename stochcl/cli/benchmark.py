"""``stochcl benchmark``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stochcl.benchmarks import curves, rate_accuracy, throughput
from stochcl.benchmarks.inputs import RateAccuracyConfig
from stochcl.benchmarks.run import make_folder, write_results
from stochcl.benchmarks.throughput import ThroughputConfig
from stochcl.cli.main import JSON, progress_bar, say, show, table
from stochcl.errors import StochclError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.benchmarks.run import Config

    Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


class _Listed(click.ParamType):  # type: ignore[type-arg]  # which is not generic in every version
    """Values parted by commas."""

    name = "list"

    def __init__(self, of: type) -> None:
        self.of = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.of(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers parted by commas, such as 32,64.", param, ctx)


def _parameter(config: type[Config], one: Any) -> Callable[[Any], Any]:
    """Return the click argument or option of a field of a Config."""
    known, many = one.metadata, isinstance(one.default, tuple)
    kind: Any = click.Path(path_type=Path) if known["type"] is Path else known["type"]
    if known["argument"]:
        more: dict[str, Any] = (
            {"nargs": -1, "required": not known["metavar"].startswith("[")} if many else {"required": False}
        )
        return click.argument(one.name, metavar=known["metavar"], type=kind, **more)
    flags = (*(known["flags"] or (config.flag(one),)), one.name)
    if kind is bool:
        return click.option(*flags, is_flag=True, help=known["help"])
    if known["split"]:
        kind = _Listed(known["type"])
    elif known["choices"]:
        kind = click.Choice(known["choices"])
    elif known["least"] is not None:
        kind = click.IntRange(known["least"])
    help, shown = known["help"], ",".join(map(str, one.default)) if many else one.default  # noqa: A001
    if shown not in (None, "", 0) and "[default" not in help:
        help += f"  [default: {shown}]"  # noqa: A001
    multiple = many and not known["split"]
    more = {"default": one.default, "multiple": multiple, "metavar": known["metavar"]}
    return click.option(*flags, type=kind, help=help, **more)


def command_of(
    config: type[Config],
    name: str,
    measure: Callable[..., dict[str, Any]],
    tables: Callable[[dict[str, Any]], list[Table]],
    *,
    help: str,  # noqa: A002 - as click calls it
    unit: str,
    write: Callable[[dict[str, Any], Path], list[Path]] | None = None,
    after: Callable[[dict[str, Any]], list[str]] = lambda result: [],
    script: bool = False,
) -> click.Command:
    """Return the command of a benchmark: its options, and one that measures, writes and prints.

    ``measure`` takes the Config, the folder of results, ``progress`` and ``say``; a ``script`` prints its own errors.
    """

    def run(output: Path, *, as_json: bool, **options: Any) -> None:
        asked = config(**options)
        make_folder(output)
        with progress_bar(unit, rate=False) as bar:
            result = measure(asked, output, progress=bar, say=say)
        paths = write(result, output) if write else write_results(result, output, name)
        lines = [line for part in tables(result) for line in table(*part)]
        show(result, [*lines, *after(result)], as_json=as_json)
        say(f"written to {paths[0]} and beside it {', '.join(path.name for path in paths[1:])}")

    def run_script(**given: Any) -> None:
        try:
            run(**given)
        except StochclError as exc:
            say(f"{name}: {exc}")
            raise SystemExit(exc.exit_code) from exc

    found: Any = JSON(run_script if script else run)
    found = click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
                         help="The folder for results.")(found)  # fmt: skip
    own = [one for one in fields(config) if one.name != "seed"] + [
        one for one in fields(config) if one.name == "seed"
    ]
    for one in reversed(own):
        found = _parameter(config, one)(found)
    return click.command(name, help=help)(found)


@click.group()
def benchmark() -> None:
    """Compare codes with other compressors, or time each stage, on this machine.

    Results are printed, or given as JSON with --json, and written to a folder.

    \b
    Example:
      stochcl benchmark rate-accuracy photos/ -o results/
      stochcl benchmark throughput -o results/
    """


_RATE_ACCURACY = """Measure bits per image against accuracy: codes, features, quantisers, and small images.

SOURCE is a folder of classes (also in a .zip or .tar; several count as one), `digits`, which scikit-learn has,
or a .npy matrix of embeddings with --labels. Every row has the same probe, split and seed. What is done is kept
in OUTPUT/cache: after an interruption the same command continues.

In place of accuracy, --metric recall@10 asks how many of the ten nearest rows are found (labels are not needed), and
--metric map@1000 how well an image finds its class.

Quantisers are fitted to the images that the probe learns from. A model that was trained on other images is held
against its like with --fit-to OTHER, more of the same kind as SOURCE without labels: each quantiser is measured a
second time, fitted to those, and named "fitted elsewhere".

\b
Example:
  stochcl benchmark rate-accuracy photos/ -o results/
  stochcl benchmark rate-accuracy train.zip --test test.zip --train-images 20000 -o results/
  stochcl benchmark rate-accuracy train.zip --test test.zip --fit-to what-the-model-saw.zip -o results/
  stochcl benchmark rate-accuracy photos/ -m mine.safetensors --baselines features,opq,jpeg -o results/
  stochcl benchmark rate-accuracy x.npy --test y.npy -m head.safetensors --metric recall@10 -o results/
"""

_THROUGHPUT = """Profile each stage of `stochcl compress` against its lower bound.

All are measured in rounds, one after the other, with one thread of arithmetic, in processor time and on the
clock. SOURCE is a folder or archive of images; without one, JPEG files are made. The archive's codes are checked.

\b
Example:
  stochcl benchmark throughput -o results/
  stochcl benchmark throughput --backbone resnet50 --size 224 --images 32 -o results/
  stochcl benchmark throughput photos.zip --images 5000 --device cuda --precision bf16 --compile -o results/
"""

benchmark.add_command(
    command_of(
        RateAccuracyConfig,
        "rate-accuracy",
        rate_accuracy.benchmark_rate_accuracy,
        lambda result: [(curves.title(result), curves.columns(result), curves.lines(result))],
        help=_RATE_ACCURACY,
        unit="methods",
        write=curves.write_all,
        after=lambda result: list(curves.summary(result)),
    )
)
benchmark.add_command(
    command_of(
        ThroughputConfig,
        "throughput",
        lambda config, folder, *, progress, say: throughput.benchmark_throughput(config, progress=progress),
        lambda result: [(throughput.title(result), throughput.COLUMNS, throughput.lines(result))],
        help=_THROUGHPUT,
        unit="rounds",
    )
)
