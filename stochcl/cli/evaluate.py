"""``stochcl evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import evaluating
from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, TABLES, show


@click.command()
@click.argument("codes", required=False, type=ARCHIVE)
@click.option("--train", type=ARCHIVE, help="The file of codes to train on, in place of CODES.")
@click.option("--labels", type=click.Path(path_type=Path), help="A CSV file name,label... in place of folder names.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    help="Which column of it; several targets by repeating it.  [default: first]",
)
@click.option("--groups", help="A column of it, or a CSV file name,group: a group is never trained and scored on.")
@click.option(
    "--task", type=click.Choice(["classification", "regression"]), default="classification", show_default=True
)
@click.option(
    "--estimator",
    default="auto",
    show_default=True,
    help="logistic, svm, knn or boosting; ridge, knn or boosting for regression; or a scikit-learn class's path.",
)
@click.option(
    "--input",
    "given",
    type=click.Choice(["auto", "symbols", "vectors"]),
    default="auto",
    show_default=True,
    help="What the estimator is given; auto takes vectors where the model has a decoder.",
)
@click.option("--latents", type=click.IntRange(1), metavar="K", help="Use the first K latents.  [default: all]")
@click.option("--test", type=ARCHIVE, help="Score on this file of codes.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Of the cross-validation.")
@click.option(
    "--test-size", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Hold out this fraction instead."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of splits and estimators.")
@click.option("--save", type=click.Path(path_type=Path), help="Write the probe here, for `stochcl predict`.")
@TABLES
@JSON
def evaluate(codes: Path | None, *, train: Path | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Train a classifier or regressor on codes and score it on images that it has not seen.

    Labels are the images' first folders, or come from a CSV file. Scores are of a cross-validation, of a part
    held out (--test-size), or of another file of codes (--test).

    \b
    Example:
      stochcl evaluate codes.bin
      stochcl evaluate --train train.bin --test test.bin --estimator svm
    """
    path = codes or train
    if path is None or (codes and train):
        raise click.UsageError("Name one file of codes to train on, as CODES or with --train.")
    results, facts = evaluating.evaluate_targets(path, tables=given_tables(model), **options)
    saved = [f"probe saved in {facts['saved']}"] if "saved" in facts else []
    head = f"{facts['path']}: {facts['input']} of {facts['latents']:,} latents, model {facts['model']}"
    if len(results) == 1:
        result = next(iter(results.values()))
        show(facts | result.to_json(), [head, *result.lines(), *saved], as_json=as_json)
        return
    lines = [line for target, result in results.items() for line in (f"{target}:", *result.lines())]
    both = {target: result.to_json() for target, result in results.items()}
    show(facts | {"targets": both}, [head, *lines, *saved], as_json=as_json)
