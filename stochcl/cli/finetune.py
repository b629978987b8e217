"""``stochcl finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.cli.output import JSON, Seconds, duration, progress_bar, say_skipped, show
from stochcl.data import printable

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="The model file to write.")
@click.option("--labels", type=_PATH, metavar="CSV", help="Labels as name,label, in place of the first folders.")
@click.option("--test", type=_PATH, metavar="SOURCE", help="Score the result on these images, and on their codes.")
@click.option("--test-labels", type=_PATH, metavar="CSV", help="Labels of the test images.  [default: --labels]")
@click.option(
    "--preset", metavar="NAME", help="A recipe: cifar10-finetune, imagenet-finetune, or a .toml file of options."
)
@click.option("--deterministic", is_flag=True, default=None,
              help="The twin to compare with: features straight to the classifier, no stochastic layer.")  # fmt: skip
@click.option("--from-scratch", is_flag=True, default=None, help="Begin with fresh weights, not the model's.")
@click.option("--init", type=_PATH, metavar="WEIGHTS", help="Begin with published weights: a safetensors file.")
@click.option("--hold-out", type=click.IntRange(0), default=0, metavar="N",
              help="Keep the last N images of each class from training; the live accuracy is measured on "
                   "them.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images.  [default: 30]")
@click.option("--max-time", type=Seconds(), metavar="TIME", help="Train for this long, e.g. 90m; 2h.")
@click.option("--batch-size", type=click.IntRange(2), help="Images a step.  [default: 128]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate.  [default: 0.02]")
@click.option("--decay", type=click.FloatRange(0), help="Weight decay.  [default: 0.0005]")
@click.option("--average", type=click.FloatRange(0, 1, max_open=True),
              help="Decay of the average of the weights; 0 for none.  [default: 0.999]")  # fmt: skip
@click.option("--smoothing", type=click.FloatRange(0, 1), help="Of the labels.  [default: 0.1]")
@click.option("--mixup", type=click.FloatRange(0), help="Beta's parameter; 0 for none.  [default: 0.2]")
@click.option("--cutout", type=click.FloatRange(0, 1), help="Side of the hole, of the view's.  [default: 0.25]")
@click.option("--operations", type=click.IntRange(0, 14), help="Of RandAugment, an image.  [default: 1]")
@click.option("--flip/--no-flip", default=None, help="Mirror every second image.  [default: flip]")
@click.option("--area", type=click.FloatRange(0, 1, min_open=True),
              help="Smallest part of an image that a view shows.  [default: 1]")  # fmt: skip
@click.option("--crop", type=click.IntRange(8), metavar="PIXELS", help="Side of the views.  [default: the model's]")
@click.option("--nested", type=click.FloatRange(0), help="Weight of a random prefix's loss.  [default: 0.2]")
@click.option("--entropy", type=click.Choice(["autoregressive", "independent"]),
              help="Entropy model fitted to the codes.  [default: autoregressive]")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]),
              help="Of the arithmetic; auto: bf16 where processor or GPU have instructions for it, else fp32.  "
                   "[default: auto]")  # fmt: skip
@click.option("--compile", is_flag=True, default=None, help="Let torch.compile make the backbone's kernels.")
@click.option("--device", help="cpu, cuda, ...  [default: auto]")
@click.option("--seed", type=click.IntRange(0), help="Of everything random.  [default: 0]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Threads that decode images.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep decoded training images there, mapped, rather than in memory; the next run finds them.",
)
@click.option(
    "--log", type=_PATH, help="Append figures to this file: a table if it ends in .csv, else one JSON object a line."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run.")
@click.option("--force", is_flag=True, help="Replace an existing model file or checkpoint.")
@JSON
def finetune(model: str, sources: tuple[Path, ...], output: Path, *, as_json: bool, **options: Any) -> None:
    """Train a model on labels, through its stochastic layer, and keep its classifier with it.

    MODEL is a model file or the name of a model; SOURCE is a folder, .zip or .tar of images, whose first folders
    are their classes. The result is a model file, which compresses as any other, with a linear classifier of the
    vectors that its codes decode to.

    \b
    Example:
      stochcl finetune general photos/ -o classifier.safetensors --hold-out 20
      stochcl compress photos/ -m classifier.safetensors -o codes.bin
    """
    from stochcl.api import finetuning

    with progress_bar("images", rate=False) as bar:
        report = finetuning.finetune(
            model, sources, output, report=lambda p: bar(p.fraction, 1.0, p.line()), **options
        )
    say_skipped((*report.skipped, *(report.test.skipped if report.test else ())))
    work = f"{report.images:,} images, {report.steps:,} steps, {duration(report.seconds)}"
    first = f"{printable(output)}: {report.classes:,} classes, {report.latents:,} latents; {work}"
    show(report.to_json(), [first, *report.lines()], as_json=as_json)
