"""``stochcl uncertainty``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, progress_bar, show, table

_FILE = click.Path(path_type=Path)
_SHOWN = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # shares refused, of those in the JSON


@click.command()
@click.argument("codes", required=False, type=ARCHIVE)
@click.option("--train", type=ARCHIVE, help="The file of codes to train the probe on, in place of CODES.")
@click.option("--test", type=ARCHIVE, help="The file of codes whose images are answered.")
@click.option("--labels", type=_FILE, help="A CSV file name,label... in place of folder names.")
@click.option("--column", help="Which column of it.  [default: the first after the name]")
@click.option("--outside", type=ARCHIVE, multiple=True, help="A file of codes of other images; may be repeated.")
@click.option("--images", type=_FILE, help="The answered images: they are corrupted and encoded with -m.")
@click.option("--sample", type=click.IntRange(1), default=500, show_default=True, help="How many of them.")
@click.option("--estimator", default="auto", show_default=True, help="logistic, knn or boosting.")
@click.option(
    "--input",
    "given",
    type=click.Choice(["auto", "symbols", "vectors"]),
    default="auto",
    show_default=True,
    help="What the probe is given; auto takes vectors where the model has a decoder.",
)
@click.option("--latents", type=click.IntRange(1), metavar="K", help="Use the first K latents.  [default: all]")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Of the cross-validation.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of splits, samples and noise.")
@click.option("--plot", type=_FILE, help="Draw accuracy against refused images: .png, .svg or .pdf.")
@click.option("-m", "--model", help="The model of the codes, for --images or for decoding tables.")
@click.option("--device", default="auto", show_default=True, help="Where images are encoded: cpu, cuda, ...")
@JSON
def uncertainty(
    codes: Path | None, *, train: Path | None, model: str | None, device: str, as_json: bool, **options: Any
) -> None:
    """Say what uncertainty is worth: whether it finds a probe's errors, and foreign or corrupted images.

    The entropy that `stochcl compress --uncertainty` stored stands beside the code's length, the distance to the
    nearest codes, and the probe's confidence, which alone needs labels. 0.5 is chance.

    \b
    Example:
      stochcl uncertainty codes.bin --plot refusal.png
      stochcl uncertainty --train train.bin --test test.bin --outside other.bin --images test/ -m general
    """
    from stochcl.api.uncertainty import measure_uncertainty

    path = codes or train
    if path is None or (codes and train):
        raise click.UsageError("Name one file of codes to train on, as CODES or with --train.")
    if options["images"] is not None and model is not None:
        from stochcl.api.codec import Codec

        options["codec"] = Codec(model, device=device)
    else:
        options["tables"] = given_tables(model)
    with progress_bar("images") as bar:
        found = measure_uncertainty(path, progress=bar, **options)
    show(found, _lines(found), as_json=as_json)


def _lines(found: dict[str, Any]) -> list[str]:
    of = f"{found['images']:,} images, {found['input']} of {found['latents']:,} latents, model {found['model']}"
    out = [f"{found.get('test', found['path'])}: {of}"]
    out += [f"accuracy {found['accuracy']:.1%} with {found['estimator']} ({found['trained_on']:,} to train on)", ""]
    rows = []
    for name, score in found["scores"].items():
        less = score.get("minus_confidence")
        rows.append([
            name, "yes" if score["needs_labels"] else "no", _auroc(score), _interval(score["interval"]),
            "" if less is None else f"{less['value']:+.3f} {_interval(less['interval'], sign=True)}",
        ])  # fmt: skip
    title = "errors found by what is uncertain (AUROC, 95 % interval)"
    out += table(title, ["score", "needs labels", "AUROC", "interval", "less confidence"], rows)
    shares = [i for i, kept in enumerate(next(iter(found["refused"].values()))) if kept["refused"] in _SHOWN]
    rows = [
        [name, *(f"{100 * curve[i]['accuracy']:.1f}" for i in shares)] for name, curve in found["refused"].items()
    ]
    columns = [f"{100 * share:.0f} %" for share in _SHOWN]
    out += table("accuracy, in %, when the least certain are refused", ["score", *columns], rows)
    if found["outside"]:
        names = list(found["scores"])
        rows = []
        for one in found["outside"]:
            what = f"{one['what']} {one['strength']}" if "strength" in one else one["what"]
            accuracy = f"{100 * one['accuracy']:.1f}" if "accuracy" in one else ""
            told = [_auroc(one["scores"].get(name, {})) for name in names]
            rows.append([what, f"{one['images']:,}", accuracy, *told])
        title = "foreign and corrupted images told from the answered ones (AUROC)"
        out += table(title, ["what", "images", "accuracy %", *names], rows)
    if "shifted" in found:
        shifted = found["shifted"]
        title = f"errors among {shifted['images']:,} clean and corrupted images together, accuracy"
        rows = [[name, _auroc(score), _interval(score["interval"])] for name, score in shifted["scores"].items()]
        out += table(f"{title} {shifted['accuracy']:.1%} (AUROC)", ["score", "AUROC", "interval"], rows)
    if "plot" in found:
        out.append(f"plot in {found['plot']}")
    return out + [f"note: {note}" for note in found["notes"]]


def _auroc(score: dict[str, Any]) -> str:
    return "" if score.get("auroc") is None else f"{score['auroc']:.3f}"


def _interval(interval: list[float] | None, *, sign: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (f"{value:+.3f}" if sign else f"{value:.3f}" for value in interval)
    return f"[{low}, {high}]" if sign else f"{low} to {high}"
