"""``stochcl train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.cli.output import JSON, Seconds, duration, progress_bar, say_skipped, show
from stochcl.data import printable


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The model file to write.")
@click.option("--max-time", type=Seconds(), metavar="TIME", help="Train for this long, e.g. 90m; 2h.")
@click.option("--epochs", type=click.IntRange(0), default=100, show_default=True, help="Passes over the images.")
@click.option("--hold-out", type=click.IntRange(0), default=0, metavar="N",
              help="Keep the last N images of each class of each source from training; the live rate and "
                   "kNN accuracy are measured on them.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="BITS", help="Target, bits per image.")
@click.option("--backbone", default="resnet10", show_default=True, help="resnet10, 18, 34 or 50.")
@click.option("--width", type=click.IntRange(4), default=64, show_default=True, help="Channels of its first stage.")
@click.option("--stem", type=click.Choice(["imagenet", "small"]), default="imagenet", show_default=True,
              help="small: for images of 32 pixels.")  # fmt: skip
@click.option("--size", type=click.IntRange(16, 1024), default=64, show_default=True, metavar="PIXELS",
              help="Side that images are brought to.")  # fmt: skip
@click.option("--crop", type=click.IntRange(16, 1024), metavar="PIXELS",
              help="Side of the views in training.  [default: 3/4 of the size]")  # fmt: skip
@click.option("--fit", type=click.Choice(["crop", "pad", "stretch"]), default="crop", show_default=True,
              help="What happens to images that are not square.")  # fmt: skip
@click.option("--latents", type=click.IntRange(1, 4096), default=1024, show_default=True, help="Bits of a code.")
@click.option("--entropy", type=click.Choice(["autoregressive", "independent"]), default="autoregressive",
              show_default=True, help="autoregressive: fit a network that says what bits tell about later ones; "
                                      "files become smaller.")  # fmt: skip
@click.option("--entropy-hidden", type=click.IntRange(0, 4096), metavar="UNITS",
              help="Hidden units of that network.  [default: by the number of images]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(2), default=256, show_default=True, help="Images a step.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=2e-3, show_default=True,
              help="Peak learning rate.")  # fmt: skip
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True,
              help="Of the arithmetic.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Threads that decode images.")
@click.option("--log", type=click.Path(path_type=Path), help="Append figures to this file, one JSON object a line.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run.")
@click.option("--force", is_flag=True, help="Replace an existing model file or checkpoint.")
@JSON
def train(sources: tuple[Path, ...], output: Path, *, as_json: bool, **options: Any) -> None:
    """Train a stochastic contrastive encoder on your own images, without labels.

    SOURCE is a folder, .zip or .tar of images, or a .npy array of them. A checkpoint stands beside the model
    file while training runs; after an interruption the same command with --resume goes on from it.

    \b
    Example:
      stochcl train photos/ -o photos.safetensors --max-time 2h
      stochcl compress photos/ -m photos.safetensors -o codes.bin
    """
    from stochcl.api import training

    with progress_bar("images", rate=False) as bar:
        report = training.train(sources, output, report=lambda p: bar(p.fraction, 1.0, p.line()), **options)
    say_skipped(report.skipped)
    knn = "" if report.knn is None else f", kNN accuracy {report.knn:.1%}"
    work = f"{report.images:,} images, {report.steps:,} steps, {duration(report.seconds)}"
    which = "held-out images" if report.held_out else "the training images"
    lines = [
        f"{printable(output)}: {report.latents:,} latents; {work}",
        f"  rate of {which} {report.rate:,.1f} bits per image{knn}",
        f"  hash {report.sha256}",
    ]
    show(report.to_json(), lines, as_json=as_json)
