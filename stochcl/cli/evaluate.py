"""``stochcl evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import archives
from stochcl.api.models import given_tables
from stochcl.cli.output import JSON, TABLES, show


@click.command()
@click.argument("codes", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="A CSV file name,label... in place of folder names.")
@click.option("--column", help="Which column of it.  [default: the first after the name]")
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
@click.option("--test", type=click.Path(path_type=Path), help="Score on this file of codes.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Of the cross-validation.")
@click.option(
    "--test-size", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Hold out this fraction instead."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of splits and estimators.")
@TABLES
@JSON
def evaluate(codes: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Train a classifier or regressor on codes and score it on images that it has not seen.

    Labels are the images' first folders, or come from a CSV file. Scores are of a cross-validation, of a part
    held out (--test-size), or of another file of codes (--test).

    \b
    Example:
      stochcl evaluate codes.bin
      stochcl evaluate train.bin --test test.bin --estimator svm
    """
    result, facts = archives.evaluate(codes, tables=given_tables(model), **options)
    head = f"{facts['path']}: {facts['input']} of {facts['latents']:,} latents, model {facts['model']}"
    show(facts | result.to_json(), [head, *result.lines()], as_json=as_json)
