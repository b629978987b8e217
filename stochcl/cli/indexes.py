"""Commands to and from indexes of FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.api.models import resolve_tables
from stochcl.cli import options as opt
from stochcl.cli.main import JSON, progress_bar, show
from stochcl.messages import plural

if TYPE_CHECKING:
    from pathlib import Path


@opt.command()
@opt.CODES
@click.option("--faiss", type=opt.PATH, metavar="FILE", help="Write an index of FAISS.")
@click.option("--npy", type=opt.PATH, metavar="FILE", help="Write decoded vectors as a matrix, a row each.")
@opt.section(
    "Index",
    click.option("--factory", default="Flat", show_default=True, help="Kind of index: HNSW32, 'IVF1024,PQ32'..."),
    click.option("--metric", type=click.Choice(["cosine", "l2"]), default="cosine", show_default=True,
                 help="Compare by angle (vectors are brought to length 1), or by distance."),
    click.option("--binary", is_flag=True, help="Write the codes' bits, for Hamming distances, in place of vectors."),
)  # fmt: skip
@opt.TABLES
@opt.FORCE
@JSON
def export(
    codes: Path | str, *, faiss: Path | None, npy: Path | None, factory: str, metric: str, binary: bool,
    model: str | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Export decoded vectors, or bits, to an index of FAISS or a matrix.

    An index's ids are the rows' numbers. FAISS comes with: pip install 'stochcl[faiss]'.

    \b
    Example:
      stochcl export codes.bin --faiss index.faiss --factory HNSW32
      stochcl export codes.bin --npy decoded.npy
    """
    from stochcl.api import archives, indexes

    if (faiss is None) == (npy is None):
        raise click.UsageError("Give either --faiss FILE or --npy FILE.")
    tables = resolve_tables(model, codes)
    with progress_bar("rows") as bar:
        if npy is not None:
            if npy.suffix.lower() != ".npy":
                raise click.UsageError("--npy writes a .npy file; use that ending.")
            done = archives.decompress(codes, npy, tables=tables, force=force, progress=bar)
            found: dict[str, Any] = {
                "schema": "stochcl.export/0",
                "path": done.path,
                "images": done.rows,
                "bytes": done.bytes,
            }
            what = done.holds[0]
        else:
            found = indexes.export_faiss(
                codes, faiss or "", factory=factory, metric=metric, binary=binary, tables=tables, force=force,
                progress=bar,
            )  # fmt: skip
            what = found["index"]
    line = f"{found['path']}: {what} of {plural(found['images'], 'row')}, {found['bytes']:,} bytes"
    show(found, [line, *(f"  note: {note}" for note in found.get("notes", []))], as_json=as_json)


@opt.command()
@click.argument("index", type=opt.INPUT)
@opt.output("The archive to write.")
@opt.FORCE
@JSON
def import_faiss(index: Path, output: Path, *, force: bool, as_json: bool) -> None:
    """Compress the codes of a FAISS index (PQ or RQ) to an archive, which decodes to the same vectors.

    It prints what the entropy coder gains, which for a well trained quantiser is little. FAISS trusts the files that
    it reads; import your own.

    \b
    Example:
      stochcl import-faiss pq.faiss -o codes.bin
    """
    from stochcl.api import indexes

    with progress_bar("rows") as bar:
        done = indexes.import_faiss(index, output, force=force, progress=bar)
    show(done.to_json(), done.lines(), as_json=as_json)
