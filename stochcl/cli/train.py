"""``stochcl train``, ``adapt``, ``finetune`` and ``models``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from stochcl.api.models import model_cards
from stochcl.api.source import check_paths_exist
from stochcl.cli.main import JSON, progress_bar, say, say_skipped, show
from stochcl.cli.options import DEVICE, INPUT, MODEL, PATH, SOURCE, command, options_of, output, section
from stochcl.messages import escape_name
from stochcl.training import options as training
from stochcl.training.options import EncoderConfig, FinetuneOptions, TrainOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stochcl.api.train import TrainReport

HOLD_OUT = click.option(
    "--hold-out", type=click.IntRange(0), metavar="N",
    help="Keep the last N images of each class of each source from training, and measure on them.  [default: 0]",
)  # fmt: skip
WORKERS = click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Decoding threads.")
CACHE = click.option(
    "--cache", type=PATH, metavar="FOLDER",
    help="Keep decoded training images in this folder, not in memory; the next run reuses them.",
)  # fmt: skip
RESUME = click.option("--resume", is_flag=True, help="Continue from the checkpoint of an interrupted run.")
FORCE = click.option("--force", is_flag=True, help="Replace an existing model file or checkpoint.")
INIT = click.option(
    "--init", type=PATH, metavar="WEIGHTS",
    help="Begin with the weights of a safetensors file or a model; efficientnet-lite0: published ones, if installed.",
)  # fmt: skip
_LOG = "Append figures to this file: a table if it ends in .csv, else one JSON object a line."


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def models(ctx: click.Context, *, as_json: bool) -> None:
    """List the models that come with stochcl, with what each was trained on and its measured figures.

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
    """Show what a model is: its code, its input, its hashes, how it was trained.

    MODEL is a model file, or the name of a model.

    \b
    Example:
      stochcl models info general
    """
    from stochcl.api.models import model_info

    found = model_info(model)
    show(found.to_json(), found.lines(), as_json=as_json)


def _list_presets(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        for name in training.preset_names():
            click.echo(f"{name}\n  {training.preset_text(name).partition(chr(10))[0].removeprefix('# ')}")
        ctx.exit()


def _show_preset(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    if name:
        click.echo(training.preset_text(name), nl=False)
        ctx.exit()


@command()
@click.argument("model")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=SOURCE)
@output("The model file to write.")
@section(
    "Labels and test",
    click.option("--labels", type=INPUT, metavar="CSV", help="Labels as name,label, in place of the first folders."),
    click.option("--label-level", type=int, metavar="N", help="Which folder of a name is its label.  [default: 1]"),
    click.option("--test", type=INPUT, metavar="SOURCE", help="Score the result on these images and their codes."),
    click.option("--test-labels", type=INPUT, metavar="CSV", help="Labels of the test images.  [default: --labels]"),
    HOLD_OUT,
)
@section(
    "Start",
    click.option(
        "--preset", metavar="NAME",
        help="Options to begin with: cifar10-finetune, cifar10-lite0-finetune, imagenet-finetune, or a .toml file.",
    ),
    INIT,
    options_of(FinetuneOptions, only="from_scratch posterior latents alphabet"),
)  # fmt: skip
@section(
    "Schedule",
    options_of(
        FinetuneOptions, only="epochs max_time batch_size optimizer lr backbone_lr frozen momentum decay warmup"
    ),
)
@section(
    "Augmentation", options_of(FinetuneOptions, only="mixup size crop padding area flip operations strength cutout")
)
@section(
    "Loss and code",
    options_of(FinetuneOptions, only="smoothing average nested beta deterministic entropy entropy_hidden"),
)
@section("Running", options_of(FinetuneOptions, only="seed precision device compile"), WORKERS, CACHE)
@click.option("--log", type=PATH, help=_LOG)
@RESUME
@FORCE
@JSON
def finetune(
    model: str, sources: tuple[Path, ...], output: Path, *, hold_out: int | None, as_json: bool, **options: Any
) -> None:
    """Train a model and a classifier on labels.

    MODEL is a model file or the name of a model; SOURCE is a folder, .zip or .tar of images, whose first folders
    are their classes. The result is a model file, which compresses as any other, with a linear classifier of the
    vectors that its codes decode to.

    \b
    Example:
      stochcl finetune fast photos/ -o classifier.safetensors --hold-out 20
      stochcl compress photos/ -m classifier.safetensors -o codes.bin
    """
    from stochcl.api.finetune import finetune

    check_paths_exist(sources)
    with progress_bar("images", rate=False) as bar:
        report = finetune(
            model, sources, output, hold_out=hold_out or 0, report=lambda p: bar(p.fraction, 1.0, p.line()), **options
        )
    say_skipped((*report.skipped, *(report.test.skipped if report.test else ())))
    show(report.to_json(), report.lines(), as_json=as_json)


@command()
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, type=SOURCE)
@output("The model file to write.")
@section(
    "Start",
    click.option("--preset", metavar="NAME", help="Options to begin with: a name, or a .toml file of them."),
    click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=_list_presets,
                 help="List the presets and exit."),
    click.option("--show-preset", metavar="NAME", is_eager=True, expose_value=False, callback=_show_preset,
                 help="Print the file of a preset and exit."),
    INIT,
    HOLD_OUT,
    click.option("--column", metavar="NAME", help="Column of a .parquet or .arrow file with the vectors."),
    click.option("--embedder", metavar="NAME[@REVISION]",
                 help="Name of the model that made the embeddings, to store.  [default: the table's metadata]"),
)  # fmt: skip
@section("Schedule", options_of(TrainOptions, only="epochs max_time batch_size lr decay warmup average"))
@section(
    "Code",
    options_of(TrainOptions, only="rate"),
    options_of(EncoderConfig, only="posterior latents alphabet embedding reduced transform head decoder"),
    options_of(TrainOptions, only="latent_steps whitening entropy entropy_hidden"),
)
@section("Network", options_of(EncoderConfig, only="backbone width stem pooling size fit"))
@section("Loss", options_of(TrainOptions, only="objective temperature estimator beta deterministic"))
@section("Augmentation", options_of(TrainOptions, only="crop area flip strength grey blur"))
@section(
    "Running",
    options_of(TrainOptions, only="seed precision device devices compile"),
    WORKERS,
    CACHE,
    click.option("--tensorboard", type=PATH, metavar="DIR", help="Also write TensorBoard logs to this folder."),
)
@click.option("--log", type=PATH, help=f"{_LOG}  [default: OUTPUT.csv]")
@RESUME
@FORCE
@JSON
def train(sources: Sequence[Path], output: Path, *, as_json: bool, **options: Any) -> None:
    """Train a stochastic contrastive encoder on your own images or embeddings, without labels.

    SOURCE is a folder, .zip or .tar of images, or a .npy array of them. A checkpoint stands beside the model
    file while training runs; after an interruption the same command with --resume continues. Embeddings of any
    size (.npy matrices of floats, one row a vector, or .parquet or .arrow files) give a model of such vectors.

    \b
    Example:
      stochcl train photos/ -o photos.safetensors --max-time 2h
      stochcl compress photos/ -m photos.safetensors -o codes.bin
      stochcl train vectors.npy -o head.safetensors --rate 64 --embedder sentence-transformers/all-MiniLM-L6-v2
      stochcl train --preset digits -o digits.safetensors
      stochcl train photos/ -o latents.safetensors --init photos.safetensors --epochs 0 --rate 64
      torchrun --nproc-per-node 8 -m stochcl train photos/ -o photos.safetensors
    """
    from stochcl.api.train import is_first_process, train

    check_paths_exist(sources)
    silent: Any = nullcontext(lambda *given: None)  # only the first process shows progress
    with progress_bar("images", rate=False) if is_first_process() else silent as bar:
        report = train(sources, output, report=lambda p: bar(p.fraction, 1.0, p.line()), **options)
    if report is not None:
        _show_trained(report, as_json=as_json)


@command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=SOURCE)
@output("The model file to write.")
@MODEL
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="BITS", help="Bits per image.  [default: 256]"
)
@HOLD_OUT
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed.")
@DEVICE
@click.option("--force", is_flag=True, help="Replace an existing model file.")
@JSON
def adapt(sources: Sequence[Path], output: Path, *, hold_out: int | None, as_json: bool, **options: Any) -> None:
    """Fit a model's code to your own images, without labels, in minutes.

    SOURCE is a folder, .zip or .tar of images, or a .npy array of them; at most 5,000 images are used. The network
    does not change. If it is that of a packaged model, the model file leaves it out.

    \b
    Example:
      stochcl adapt photos/ -o mine.safetensors
      stochcl compress photos/ -m mine.safetensors -o codes.bin --latents 64
    """
    from stochcl.api.train import adapt

    check_paths_exist(sources)
    with progress_bar("images", rate=False) as bar:
        report = adapt(
            sources, output, hold_out=hold_out or 0, report=lambda p: bar(p.fraction, 1.0, p.line()), **options
        )
    _show_trained(report, as_json=as_json)


def _show_trained(report: TrainReport, *, as_json: bool) -> None:
    say_skipped(report.skipped)
    for warning in report.warnings:
        say(warning)
    show(report.to_json(), report.lines(), as_json=as_json)
