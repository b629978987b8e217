"""``stochcl benchmark``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.benchmarks import curves
from stochcl.benchmarks.inputs import RateAccuracyConfig
from stochcl.benchmarks.rate_accuracy import benchmark_rate_accuracy
from stochcl.cli import options as opt
from stochcl.cli.main import JSON, progress_bar, say, show, table
from stochcl.files import make_folder

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def benchmark() -> None:
    """Compare codes with other compressors.

    Results are printed, or given as JSON with --json, and written to a folder.

    \b
    Example:
      stochcl benchmark rate-accuracy photos/ -o results/
    """


@benchmark.command("rate-accuracy", cls=opt.SectionedCommand)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=opt.PATH)
@opt.section(
    "Rows", opt.options_of(RateAccuracyConfig, only="test hold_out labels test_labels train_images test_images")
)
@opt.section("Measure", opt.options_of(RateAccuracyConfig, only="metric probe queries"))
@opt.section("Codes", opt.options_of(RateAccuracyConfig, only="model ladder"))
@opt.section(
    "Baselines",
    opt.options_of(RateAccuracyConfig, only="baselines bits coding beam trials fit_to fit_images fit_hold_out"),
)
@opt.section("Running", opt.options_of(RateAccuracyConfig, only="precision device seed"))
@opt.output("The folder for results.")
@JSON
def rate_accuracy(output: Path, *, as_json: bool, **options: Any) -> None:
    """Measure bits per image against accuracy: codes, features, quantisers, and small images.

    SOURCE is a folder of classes (also in a .zip or .tar; several count as one), `digits`, which scikit-learn has,
    or a .npy matrix of embeddings with --labels. All methods get the same probe, split and seed. Finished parts are
    kept in OUTPUT/cache: after an interruption the same command continues.

    --metric recall@10 measures how many of the ten nearest rows are found (no labels needed), --metric map@1000 how
    well an image finds its class.

    Quantisers are fitted to the images that the probe learns from, which a model trained elsewhere has not seen. For
    a fair comparison give other images of the same kind with --fit-to: each quantiser is measured a second time,
    fitted to those, and named "fitted elsewhere".

    \b
    Example:
      stochcl benchmark rate-accuracy photos/ -o results/
      stochcl benchmark rate-accuracy train.zip --test test.zip --train-images 20000 -o results/
      stochcl benchmark rate-accuracy train.zip --test test.zip --fit-to what-the-model-saw.zip -o results/
      stochcl benchmark rate-accuracy photos/ -m mine.safetensors --baselines features,opq -o results/
      stochcl benchmark rate-accuracy x.npy --test y.npy -m head.safetensors --metric recall@10 -o results/
    """
    asked = RateAccuracyConfig(**opt.given(options))
    make_folder(output)
    with progress_bar("methods", rate=False) as bar:
        result = benchmark_rate_accuracy(asked, output, progress=bar, say=say)
    paths = curves.write_all(result, output)
    lines = table(curves.title(result), curves.columns(result), curves.lines(result))
    show(result, [*lines, *curves.summary(result)], as_json=as_json)
    say(f"written to {paths[0]} and beside it {', '.join(path.name for path in paths[1:])}")
