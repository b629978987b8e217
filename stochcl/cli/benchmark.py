"""``stochcl benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.benchmarks import clock
from stochcl.benchmarks import codec as codec_benchmark
from stochcl.benchmarks import embeddings as embeddings_benchmark
from stochcl.benchmarks import rate_accuracy as rate_benchmark
from stochcl.benchmarks import retrieval as retrieval_benchmark
from stochcl.benchmarks import throughput as throughput_benchmark
from stochcl.benchmarks import training_speed as training_benchmark
from stochcl.benchmarks.pricing import CODINGS
from stochcl.benchmarks.results import make_folder, tables, write_results
from stochcl.cli.main import JSON, progress_bar, say, show, table


@click.group()
def benchmark() -> None:
    """Measure stochcl beside others, on this machine.

    Results are printed, or given as JSON with --json, and written to a folder.

    \b
    Example:
      stochcl benchmark codec -o results/
      stochcl benchmark embeddings train.npy --test test.npy -o results/
    """


@benchmark.command()
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder for codec.json and codec.csv.",
)
@click.option(
    "--latents", type=click.IntRange(1), metavar="K",
    help="Bits of a row; of a SOURCE the first K latents.  [default: 128, and the full width of CIFAR-10's codes]",
)  # fmt: skip
@click.option(
    "--rows",
    type=click.IntRange(2),
    metavar="N",
    help="Rows; of a SOURCE at most.  [default: 10,000, or all]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the built-in sets.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Runs whose median is the time.")
@click.option(
    "--only", multiple=True, type=click.Choice(codec_benchmark.SETS), help="This built-in set; may be repeated."
)
@click.option("--refit", is_flag=True, help="Fit tables to half of an archive's rows, and code the others.")
@JSON
def codec(output: Path, *, as_json: bool, **options: Any) -> None:
    """Set the codec beside general compressors and constriction's call with a parameter per symbol.

    SOURCE is a file of codes, or a .npy or .npz file of symbols (integers) or features (floats, of which OPQ
    indices are made). Without any, built-in sets are coded: skewed and correlated bits, OPQ indices of
    made-up vectors, and the default model's codes of CIFAR-10's test images, where $STOCHCL_DATA names a folder
    with cifar10-test.zip. Every method runs in a process of its own, on one core, and must give the codes back.

    \b
    Example:
      stochcl benchmark codec -o results/
      stochcl benchmark codec codes.bin -o results/ --latents 128
    """
    make_folder(output)
    request = codec_benchmark.Request(**options)
    with progress_bar("methods", rate=False) as bar:
        result = codec_benchmark.benchmark_codec(request, output, progress=bar, say=say)
    paths = write_results(result, output, "codec")
    show(result, [line for part in tables(result) for line in table(*part)], as_json=as_json)
    say(f"written to {paths[0]} and {paths[1].name}")


@benchmark.command()
@click.argument("train", metavar="TRAIN", type=click.Path(path_type=Path))
@click.option(
    "--test",
    required=True,
    metavar="TEST",
    type=click.Path(path_type=Path),
    help="The matrix that is compressed and measured on.",
)
@click.option("--labels", metavar="FILE", type=click.Path(path_type=Path), help="Of TRAIN: .npy of integers or text.")
@click.option("--test-labels", metavar="FILE", type=click.Path(path_type=Path), help="Of TEST.")
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A model file trained on TRAIN; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder for embeddings.json and embeddings.csv.",
)
@click.option(
    "--bits",
    multiple=True,
    type=click.IntRange(1),
    default=(32, 64, 128, 256),
    show_default=True,
    help="Bits of a row; may be repeated.",
)
@click.option(
    "--only",
    "methods",
    multiple=True,
    type=click.Choice(embeddings_benchmark.METHODS),
    help="This method of others; may be repeated.  [default: all]",
)
@click.option(
    "--coding",
    "codings",
    multiple=True,
    type=click.Choice(CODINGS),
    default=CODINGS[:3],
    show_default=True,
    help="How others' codes are stored; network takes long.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random.")
@JSON
def embeddings(output: Path, *, as_json: bool, **options: Any) -> None:
    """Set models for embeddings beside sign bits, ITQ, PQ, OPQ, residual and scalar quantisation, and floats.

    TRAIN and TEST are matrices, .npy, a row a vector. Everything is fitted to TRAIN; of TEST, the bits in a file are
    counted, and from the decoded vectors come the accuracy of a linear classifier (where there are labels), the
    squared error, and how many of the ten nearest rows are found, the query as it is or decoded as well.

    \b
    Example:
      stochcl benchmark embeddings train.npy --test test.npy -m head.safetensors -o results/
    """
    make_folder(output)
    options["methods"] = options["methods"] or embeddings_benchmark.METHODS
    request = embeddings_benchmark.Request(**options)
    with progress_bar("methods", rate=False) as bar:
        result = embeddings_benchmark.benchmark_embeddings(request, progress=bar, say=say)
    paths = write_results(result, output, "embeddings")
    title, columns = embeddings_benchmark.title(result), embeddings_benchmark.COLUMNS
    show(result, table(title, columns, embeddings_benchmark.lines(result)), as_json=as_json)
    say(f"written to {paths[0]} and {paths[1].name}")


@benchmark.command()
@click.argument("source", metavar="[SOURCE]", required=False, type=click.Path(path_type=Path))
@click.option("-m", "--model", help="A model's name or file.  [default: the default model]")
@click.option("--backbone", help="An untrained network in its place: resnet10, 18, 34 or 50.")
@click.option("--size", type=click.IntRange(16, 1024), metavar="PIXELS", help="Of its images.  [default: 64]")
@click.option("--images", type=click.IntRange(1), default=512, show_default=True, help="Made, or at most of SOURCE.")
@click.option("--image-size", type=click.IntRange(1, 4096), metavar="PIXELS",
              help="Side of images that are made.  [default: 1.5 times the network's]")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--compile", is_flag=True, help="Let torch.compile make the network's kernels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of images that are made.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Rounds that are measured.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="The folder for throughput.json and throughput.csv.")  # fmt: skip
@JSON
def throughput(output: Path, *, as_json: bool, **options: Any) -> None:
    """Time every stage of `stochcl compress` and the whole, beside bare decoding, forward pass and coding.

    All are measured in rounds, one after the other, with one thread of arithmetic, in processor time and on the
    clock. SOURCE is a folder or archive of images; without one, JPEG files are made. The archive's codes are checked.

    \b
    Example:
      stochcl benchmark throughput -o results/
      stochcl benchmark throughput --backbone resnet50 --size 224 --images 32 -o results/
      stochcl benchmark throughput photos.zip --images 5000 --device cuda --precision bf16 --compile -o results/
    """
    make_folder(output)
    request = throughput_benchmark.Request(**options)
    with progress_bar("rounds", rate=False) as bar:
        result = throughput_benchmark.benchmark_throughput(request, progress=bar)
    paths = write_results(result, output, "throughput")
    show(result, table(throughput_benchmark.title(result), clock.COLUMNS, clock.lines(result)), as_json=as_json)
    say(f"written to {paths[0]} and {paths[1].name}")


@benchmark.command()
@click.option("--preset", metavar="NAME", help="Options of training to begin with, as `stochcl train` has them.")
@click.option("--backbone", help="resnet10, 18, 34 or 50.  [default: the preset's, or resnet10]")
@click.option(
    "--size", type=click.IntRange(16, 1024), metavar="PIXELS", help="Of images.  [default: the preset's, or 64]"
)
@click.option(
    "--crop", type=click.IntRange(16, 1024), metavar="PIXELS", help="Of views.  [default: the preset's, or 3/4]"
)
@click.option("--batch-size", type=click.IntRange(2), help="Images a step.  [default: the preset's, or 256]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    help="As in training.  [default: the preset's, or auto]",
)
@click.option("--compile", is_flag=True, help="Let torch.compile make the network's kernels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Steps that are measured.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="The folder for training.json and training.csv.")  # fmt: skip
@JSON
def training(output: Path, *, as_json: bool, **options: Any) -> None:
    """Time a training step and its parts, beside the bare forward and backward pass on views in memory.

    Images are made: what they show makes no difference. What takes most beside the bare pass is named.

    \b
    Example:
      stochcl benchmark training -o results/
      stochcl benchmark training --preset imagenet-resnet50 --batch-size 256 --device cuda --compile -o results/
    """
    make_folder(output)
    request = training_benchmark.Request(**options)
    with progress_bar("rounds", rate=False) as bar:
        result = training_benchmark.benchmark_training(request, progress=bar)
    paths = write_results(result, output, "training")
    show(result, table(training_benchmark.title(result), clock.COLUMNS, clock.lines(result)), as_json=as_json)
    say(f"written to {paths[0]} and {paths[1].name}")


class _Listed(click.ParamType[tuple[Any, ...]]):
    """Values parted by commas."""

    def __init__(self, of: type, name: str) -> None:
        self.of, self.name = of, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.of(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers parted by commas, such as 32,64.", param, ctx)


@benchmark.command("rate-accuracy")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--test", metavar="TEST", type=click.Path(path_type=Path),
              help="More of the same, to score on.  [default: a fifth of each class of SOURCE]")  # fmt: skip
@click.option("--hold-out", type=click.IntRange(0), default=0, metavar="N",
              help="Score on the last N images of each class of each SOURCE, as training leaves them.")  # fmt: skip
@click.option("--labels", metavar="FILE", type=click.Path(path_type=Path),
              help="Of SOURCE: CSV name,label; of a matrix also .npy.  [default: first folders]")  # fmt: skip
@click.option("--test-labels", metavar="FILE", type=click.Path(path_type=Path), help="Of TEST.")
@click.option("-m", "--model", "models", multiple=True,
              help="A model's name or file; may be repeated.  [default: general]")  # fmt: skip
@click.option("--probe", type=click.Choice(rate_benchmark.PROBES), default="logistic", show_default=True)
@click.option("--ladder", type=_Listed(int, "numbers"), default=(), metavar="K,K,...",
              help="Prefixes of our codes.  [default: the model's]")  # fmt: skip
@click.option("--bits", type=_Listed(int, "numbers"), default=(16, 32, 64, 128, 256), metavar="B,B,...",
              help="That quantisers are made for.  [default: 16,32,64,128,256]")  # fmt: skip
@click.option("--baselines", type=_Listed(str, "names"), default=("all",), metavar="NAMES",
              help="all, none, or of features, quantisers, pixels and single methods.  [default: all]")  # fmt: skip
@click.option("--train-images", type=click.IntRange(2), metavar="N", help="To learn from, at most.")
@click.option("--test-images", type=click.IntRange(2), metavar="N", help="To score on, at most.")
@click.option("--fit-to", "fit", multiple=True, metavar="OTHER", type=click.Path(path_type=Path),
              help="Measure quantisers fitted to these images, too; may be repeated.")  # fmt: skip
@click.option("--fit-images", type=click.IntRange(2), default=rate_benchmark.FIT_IMAGES, show_default=True,
              metavar="N", help="Of OTHER, at most.")  # fmt: skip
@click.option("--fit-hold-out", type=click.IntRange(0), default=0, metavar="N",
              help="Not the last N images of each class of each OTHER, as training leaves them.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="The folder for results, plots, the page, and what is kept for another run.")  # fmt: skip
@JSON
def rate_accuracy(output: Path, *, as_json: bool, **options: Any) -> None:
    """Bits per image against accuracy: codes beside features, quantisers, and small images in web formats.

    SOURCE is a folder of classes (also in a .zip or .tar; several count as one), `digits`, which scikit-learn has,
    or a .npy matrix of embeddings with --labels. Every row has the same probe, split and seed. What is done is kept
    in OUTPUT/cache: the same command goes on after an interruption.

    Quantisers are fitted to the images that the probe learns from. A model that was trained on other images is held
    against its like with --fit-to OTHER, more of the same kind as SOURCE without labels: each quantiser is measured a
    second time, fitted to those, and named "fitted elsewhere".

    \b
    Example:
      stochcl benchmark rate-accuracy photos/ -o results/
      stochcl benchmark rate-accuracy train.zip --test test.zip --train-images 20000 -o results/
      stochcl benchmark rate-accuracy train.zip --test test.zip --fit-to what-the-model-saw.zip -o results/
      stochcl benchmark rate-accuracy photos/ -m mine.safetensors --baselines features,opq,jpeg -o results/
      stochcl benchmark rate-accuracy digits -m digits.safetensors --hold-out 30 -o results/
    """
    make_folder(output)
    request = rate_benchmark.Request(**options)
    with progress_bar("methods", rate=False) as bar:
        result = rate_benchmark.benchmark_rate_accuracy(request, output, progress=bar, say=say)
    paths = rate_benchmark.write_all(result, output)
    told = [*table(rate_benchmark.title(result), rate_benchmark.COLUMNS, rate_benchmark.lines(result)), ""]
    show(result, [*told, *rate_benchmark.summary(result)], as_json=as_json)
    say(f"written to {paths[0]} and beside it {', '.join(path.name for path in paths[1:])}")


@benchmark.command()
@click.argument("train", metavar="TRAIN", type=click.Path(path_type=Path))
@click.argument("test", metavar="TEST", type=click.Path(path_type=Path))
@click.option("--labels", metavar="CSV", type=click.Path(path_type=Path), help="Of TRAIN.  [default: its own]")
@click.option("--test-labels", metavar="CSV", type=click.Path(path_type=Path), help="Of TEST.  [default: its own]")
@click.option("--bits", type=_Listed(int, "numbers"), default=(16, 32, 64), metavar="B,B,...",
              help="Of a code.  [default: 16,32,64]")  # fmt: skip
@click.option("-k", "count", type=click.IntRange(1), default=1000, show_default=True, help="Returned for a query.")
@click.option("--features", metavar="NPY", type=click.Path(path_type=Path),
              help="Float features of TRAIN in its order: themselves, ITQ and sign bits beside.")  # fmt: skip
@click.option("--test-features", metavar="NPY", type=click.Path(path_type=Path), help="Of TEST.")
@click.option("--queries", type=click.IntRange(1), metavar="N", help="Of TEST, at most.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="The folder for retrieval.json and retrieval.csv.")  # fmt: skip
@JSON
def retrieval(output: Path, *, as_json: bool, **options: Any) -> None:
    """Mean average precision of the images that codes find: TEST's images look for TRAIN's of the same class.

    TRAIN and TEST are files of codes of one model, with labels. Codes of so many bits are compared by symbols (bits
    only), and by the vectors that the widest prefix of at most so many bits on disk decodes to.

    \b
    Example:
      stochcl benchmark retrieval train.bin test.bin --bits 16,32,64 -o results/
    """
    make_folder(output)
    request = retrieval_benchmark.Request(**options)
    with progress_bar("rows", rate=False) as bar:
        result = retrieval_benchmark.benchmark_retrieval(request, progress=bar)
    paths = write_results(result, output, "retrieval")
    shown = table(retrieval_benchmark.title(result), retrieval_benchmark.COLUMNS, retrieval_benchmark.lines(result))
    show(result, shown, as_json=as_json)
    say(f"written to {paths[0]} and {paths[1].name}")
