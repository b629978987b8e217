"""``stochcl train``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from stochcl.api.models import model_cards
from stochcl.cli.main import JSON, Seconds, duration, progress_bar, say, say_skipped, show
from stochcl.messages import escape_name


@click.command()
@click.option("-m", "--model", default="general", show_default=True, help="An embedded model or a model file.")
@JSON
def demo(*, model: str, as_json: bool) -> None:
    """Compress example images, train a classifier on the codes, and compare it with one on raw pixels.

    \b
    Example:
      stochcl demo
    """
    from stochcl.api.demo import demonstrate

    result = demonstrate(model, say=(lambda line: None) if as_json else say)
    show(result.to_json(), result.lines(), as_json=as_json)


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def models(ctx: click.Context, *, as_json: bool) -> None:
    """List the models that come with stochcl, what each was trained on, and its measured figures.

    \b
    Example:
      stochcl models
      stochcl models info general
      stochcl models info mine.safetensors --json
    """
    if ctx.invoked_subcommand:
        return
    cards, damaged = model_cards()
    for _, error in damaged:
        say(f"skipped {error}")
    reasons = [{"path": escape_name(path), "reason": str(error)} for path, error in damaged]
    result = {"schema": "stochcl.models/0", "models": [card.to_json() for card in cards], "damaged": reasons}
    lines = [line for card in cards for line in card.lines()]
    show(result, lines or ["stochcl brings no models; train one with `stochcl train`"], as_json=as_json)


@models.command()
@click.argument("model")
@JSON
def info(model: str, *, as_json: bool) -> None:
    """Say what a model is: its code, its input, its hashes, how it was trained.

    MODEL is a model file, or the name of a model.

    \b
    Example:
      stochcl models info general
    """
    from stochcl.api.model_info import model_info

    found = model_info(model)
    show(found.to_json(), found.lines(), as_json=as_json)


_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="The model file to write.")
@click.option("--labels", type=_PATH, metavar="CSV", help="Labels as name,label, in place of the first folders.")
@click.option("--test", type=_PATH, metavar="SOURCE", help="Score the result on these images, and on their codes.")
@click.option("--test-labels", type=_PATH, metavar="CSV", help="Labels of the test images.  [default: --labels]")
@click.option("--label-level", type=int, metavar="N", help="Which folder of a name is its label.  [default: 1]")
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
    from stochcl.api import finetune as finetuning

    with progress_bar("images", rate=False) as bar:
        report = finetuning.finetune(
            model, sources, output, report=lambda p: bar(p.fraction, 1.0, p.line()), **options
        )
    say_skipped((*report.skipped, *(report.test.skipped if report.test else ())))
    work = f"{report.images:,} images, {report.steps:,} steps, {duration(report.seconds)}"
    first = f"{escape_name(output)}: {report.classes:,} classes, {report.latents:,} latents; {work}"
    show(report.to_json(), [first, *report.lines()], as_json=as_json)


class Widths(click.ParamType[tuple[int, ...]]):
    """Widths of layers: whole numbers with commas between."""

    name = "widths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:  # noqa: D102
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} are not widths of layers; write 512 or 512,512.", param, ctx)


def _list_presets(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from stochcl.api.train import presets

        for name, text in presets().items():
            click.echo(f"{name}\n  {text.partition(chr(10))[0].removeprefix('# ')}")
        ctx.exit()


def _show_preset(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    if name:
        from stochcl.api.train import preset_text

        click.echo(preset_text(name), nl=False)
        ctx.exit()


def _silence(done: float, total: float, note: str = "") -> None:
    """Show nothing: another process does."""


@click.command()
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="The model file to write.")
@click.option("--preset", metavar="NAME", help="Options to begin with: a name, or a .toml file of them.")
@click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=_list_presets,
              help="List the presets and exit.")  # fmt: skip
@click.option("--show-preset", metavar="NAME", is_eager=True, expose_value=False, callback=_show_preset,
              help="Print the file of a preset and exit.")  # fmt: skip
@click.option("--max-time", type=Seconds(), metavar="TIME", help="Train for this long, e.g. 90m; 2h.")
@click.option(
    "--epochs",
    type=click.IntRange(0),
    help="Passes over the images; 0 with --init trains latents alone.  [default: 100]",
)
@click.option("--hold-out", type=click.IntRange(0), metavar="N",
              help="Keep the last N images of each class of each source from training; the live rate and "
                   "kNN accuracy are measured on them.  [default: 0]")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="BITS", help="Target, bits per image.")
@click.option("--beta", type=click.FloatRange(0), metavar="NATS",
              help="What a bit costs in the loss; with --rate, to begin with.  [default: 0.0001]")  # fmt: skip
@click.option("--objective", type=click.Choice(["nt-xent", "byol", "vicreg", "reconstruct"]),
              help="What says that two views belong together.  [default: nt-xent]")  # fmt: skip
@click.option("--deterministic", is_flag=True, default=None,
              help="The twin to compare with: no stochastic layer while the network is trained.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Of nt-xent.  [default: 0.2]")
@click.option("--posterior", type=click.Choice(["bernoulli", "categorical", "gaussian", "residual"]),
              help="Family of the latents.  [default: bernoulli; residual on a matrix]")  # fmt: skip
@click.option("--latents", type=click.IntRange(1, 4096), help="How many; bits of a bernoulli code.  [default: 1024]")
@click.option("--alphabet", type=click.IntRange(2), metavar="K", help="Values of a latent.  [default: 2]")
@click.option("--estimator", type=click.Choice(["straight-through", "relaxed"]),
              help="How gradients pass the draw.  [default: straight-through]")  # fmt: skip
@click.option("--embedding", type=click.IntRange(1), metavar="NUMBERS",
              help="What stands for a categorical symbol in the decoder.  [default: 8, or the alphabet]")  # fmt: skip
@click.option("--head", type=Widths(), metavar="WIDTHS", help="Hidden layers between features and latents.")
@click.option("--decoder", type=Widths(), metavar="WIDTHS", help="Hidden layers of the decoder.  [default: 512]")
@click.option("--backbone", metavar="NAME",
              help="resnet10, 18, 34 or 50, efficientnet-lite0 or -lite2, or timm:NAME.  "
                   "[default: resnet10]")  # fmt: skip
@click.option("--width", type=click.IntRange(4), help="Channels of a resnet's first stage.  [default: 64]")
@click.option("--stem", type=click.Choice(["imagenet", "small"]),
              help="small: for images of 32 pixels.  [default: imagenet]")  # fmt: skip
@click.option("--pooling", type=click.Choice(["mean", "stages", "moments"]),
              help="Features: the last stage's mean, all stages', or places, too.  [default: mean]")  # fmt: skip
@click.option(
    "--init",
    type=_PATH,
    metavar="WEIGHTS",
    help="Begin with the weights of a safetensors file or a model; efficientnet-lite0: published ones, if installed.",
)
@click.option("--size", type=click.IntRange(16, 1024), metavar="PIXELS",
              help="Side that images are brought to.  [default: 64; 128 for efficientnet]")  # fmt: skip
@click.option("--fit", type=click.Choice(["crop", "pad", "stretch"]),
              help="What happens to images that are not square.  [default: crop]")  # fmt: skip
@click.option("--crop", type=click.IntRange(16, 1024), metavar="PIXELS",
              help="Side of the views in training.  [default: 3/4 of the size]")  # fmt: skip
@click.option("--area", type=click.FloatRange(0, 1, min_open=True),
              help="Smallest part of an image that a view shows; 1: all of it.  [default: 0.2]")  # fmt: skip
@click.option("--flip/--no-flip", default=None, help="Mirror every second view.  [default: flip]")
@click.option("--strength", type=click.FloatRange(0), help="Of the changes of colour.  [default: 0.5]")
@click.option("--grey", type=click.FloatRange(0, 1), help="Part of the views without colour.  [default: 0.2]")
@click.option("--blur", type=click.FloatRange(0, 1), help="Part of the views that is blurred.  [default: 0]")
@click.option("--entropy", type=click.Choice(["autoregressive", "independent"]),
              help="autoregressive: fit a network that says what bits tell about later ones; files become "
                   "smaller.  [default: autoregressive]")  # fmt: skip
@click.option("--entropy-hidden", type=click.IntRange(0, 4096), metavar="UNITS",
              help="Hidden units of that network.  [default: by the number of images]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(2), help="Images a step, of all processes.  [default: 256]")
@click.option("--latent-steps", type=click.IntRange(0), metavar="STEPS",
              help="Steps of the last stage, which trains latents and decoder on finished features, to --rate; 0 "
                   "leaves it out.  [default: by the number of images; 3000 on a matrix]")  # fmt: skip
@click.option("--whitening", type=click.FloatRange(0, 0.5), metavar="POWER",
              help="Of the last stage: what errors along a direction are divided by, as a power of its variance. "
                   "0: errors as they are; 0.5: all directions alike.  [default: 0.125]")  # fmt: skip
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate.  [default: 0.002]")
@click.option("--warmup", type=click.IntRange(0), metavar="STEPS", help="Until it is reached.  [default: 200]")
@click.option("--decay", type=click.FloatRange(0), help="Weight decay.  [default: 0.01]")
@click.option("--average", type=click.FloatRange(0, 1, max_open=True),
              help="Decay of a moving average of the weights, which is then written; 0 for none.  "
                   "[default: 0]")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]),
              help="Of the arithmetic; auto: bf16 where processor or GPU have instructions for it, else fp32.  "
                   "[default: auto]")  # fmt: skip
@click.option("--compile", is_flag=True, default=None, help="Let torch.compile make the backbone's kernels.")
@click.option("--device", help="cpu, cuda, ...  [default: auto]")
@click.option("--devices", type=click.IntRange(1), metavar="N",
              help="Train on so many, a process each; torchrun says so itself.  [default: 1]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Of everything random.  [default: 0]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Threads that decode images.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep decoded images there, mapped, rather than in memory; the next run finds them.",
)
@click.option("--log", type=_PATH,
              help="Append figures to this file: a table if it ends in .csv, else one JSON object a line.  "
                   "[default: OUTPUT.csv]")  # fmt: skip
@click.option("--tensorboard", type=_PATH, metavar="DIR", help="Write figures for TensorBoard there, too.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run.")
@click.option("--force", is_flag=True, help="Replace an existing model file or checkpoint.")
@JSON
def train(sources: tuple[Path, ...], output: Path, *, as_json: bool, **options: Any) -> None:
    """Train a stochastic contrastive encoder on your own images or embeddings, without labels.

    SOURCE is a folder, .zip or .tar of images, or a .npy array of them. A checkpoint stands beside the model
    file while training runs; after an interruption the same command with --resume goes on from it. A .npy matrix
    of floats, one row a vector and of any size, makes a model of such vectors.

    \b
    Example:
      stochcl train photos/ -o photos.safetensors --max-time 2h
      stochcl compress photos/ -m photos.safetensors -o codes.bin
      stochcl train vectors.npy -o head.safetensors --latents 256 --rate 64
      stochcl train --preset digits -o digits.safetensors
      stochcl train photos/ -o latents.safetensors --init photos.safetensors --epochs 0 --rate 64
      torchrun --nproc-per-node 8 -m stochcl train photos/ -o photos.safetensors
    """
    from stochcl.api import train as training

    first = training.is_first_process()
    with progress_bar("images", rate=False) if first else nullcontext(_silence) as bar:
        report = training.train(sources, output, report=lambda p: bar(p.fraction, 1.0, p.line()), **options)
    if report is None:
        return
    say_skipped(report.skipped)
    for warning in report.warnings:
        say(warning)
    knn = "" if report.knn is None else f", kNN accuracy {report.knn:.1%}"
    unit = report.unit
    work = f"{report.images:,} {unit}s, {report.steps:,} steps, {duration(report.seconds)}"
    which = f"held-out {unit}s" if report.held_out else f"the training {unit}s"
    lines = [
        f"{escape_name(output)}: {report.latents:,} latents; {work}",
        f"  rate of {which} {report.rate:,.1f} bits per {unit}{knn}",
        *([f"  begun from {report.initialised}"] if report.initialised else []),
        f"  hash {report.sha256}",
    ]
    show(report.to_json(), lines, as_json=as_json)
