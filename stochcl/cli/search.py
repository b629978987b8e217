"""``stochcl search``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import searching
from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, progress_bar, say, show, table

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.argument("query", nargs=-1, type=_FILE)
@click.option("--name", "names", multiple=True, help="Look for this image of the file itself; may be repeated.")
@click.option("--row", "rows", multiple=True, type=int, help="Look for this row of it; may be repeated.")
@click.option("-k", "count", type=click.IntRange(1), default=10, show_default=True, help="How many to find.")
@click.option(
    "--by",
    type=click.Choice(searching.BY),
    default="auto",
    show_default=True,
    help="Compare decoded vectors, or the symbols themselves.",
)
@click.option("-m", "--model", help="The model that the codes were made by.  [default: the one that the file names]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
@click.option("--tables", help="A model or .tables file that has the decoding tables, if nothing else does.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page with what was found, too.")
@click.option(
    "--images", type=_FILE, metavar="SOURCE", help="What the codes were made of, for the page's thumbnails."
)
@JSON
def search(
    codes: Path | str, query: tuple[Path, ...], *, tables: str | None, html: Path | None, images: Path | None,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Find the images in a file of codes that are nearest to QUERY images, or to some of its own.

    A query image is encoded by the file's model. By vectors, its features are held against what the codes decode to;
    by symbols, bits that differ are counted. Of codes of embeddings a QUERY is a .npy matrix, each of whose rows is
    looked for.

    \b
    Example:
      stochcl search codes.bin photo.jpg -k 5
      stochcl search codes.bin --name cats/01.png --html found.html --images images/
    """
    if images is not None and html is None:
        raise click.UsageError("--images are shown on a page; name it with --html.")
    with progress_bar("rows") as bar:
        found = searching.search(codes, query, tables=given_tables(tables), progress=bar, **options)
    if html is not None:
        searching.write_search_page(found, html, images, query)
        say(f"written to {html}")
    lines = [line for part in found["queries"] for line in table(part["query"], _COLUMNS, _lines(part))]
    note = f"{found['images']:,} images by {found['by']}; distance: {found['unit']}"
    show(found, [*lines, note], as_json=as_json)


_COLUMNS = ("image", "rank", "label", "row", "distance")


def _lines(part: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            hit["name"] or "-",
            str(rank),
            "-" if hit["label"] is None else hit["label"],
            f"{hit['row']:,}",
            f"{hit['distance']:.4g}",
        )
        for rank, hit in enumerate(part["neighbours"], 1)
    ]
