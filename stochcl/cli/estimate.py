"""``stochcl estimate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.api.compress import CompressOptions
from stochcl.api.source import check_paths_exist
from stochcl.cli import options as opt
from stochcl.cli.main import JSON, progress_bar, show

if TYPE_CHECKING:
    from pathlib import Path


@opt.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=opt.SOURCE)
@click.option("-m", "--model", help="A packaged model or a model file.  [default: general; for embeddings a new one]")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="R",
    help="Bits per row of a new model of embeddings.  [default: 128]",
)  # fmt: skip
@opt.section("Source", opt.options_of(CompressOptions, only="column id_column label_column label_level"))
@opt.DEVICE
@JSON
def estimate(sources: tuple[Path, ...], *, as_json: bool, **options: Any) -> None:
    """Estimate bytes, time and quality of compressing a source.

    A sample is encoded, at most 2,000 images or 10,000 rows, spread evenly; nothing is written. For embeddings
    without a model, one is trained on a part of the sample. With labels, accuracy is that of a linear probe on
    held-out rows; recall@10 is the share of the ten nearest rows that a search of the codes finds.

    \b
    Example:
      stochcl estimate vectors.parquet --label-column topic
      stochcl estimate photos/
    """
    from stochcl.api.estimate import estimate

    check_paths_exist(sources)
    source: Any = sources[0] if len(sources) == 1 else sources
    with progress_bar("widths", rate=False) as bar:
        found = estimate(source, progress=bar, **opt.given(options))
    show(found.to_json(), found.lines(), as_json=as_json)
