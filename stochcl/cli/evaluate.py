"""Commands that learn from codes: evaluate, predict, uncertainty, report, search, dedup, select."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.api.compress import CompressOptions
from stochcl.api.evaluate import EvaluateOptions, ProbeOptions, SelectOptions
from stochcl.api.models import resolve_tables
from stochcl.api.search import DedupOptions, SearchOptions
from stochcl.api.source import check_paths_exist
from stochcl.cli import options as opt
from stochcl.cli.main import JSON, progress_bar, say, say_skipped, show, table
from stochcl.messages import plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TRAIN = click.option("--train", type=opt.INPUT, help="The archive to train on, in place of CODES.")


def _training_codes(codes: Path | str | None, train: Path | str | None) -> Path | str:
    path = codes or train
    if path is None or (codes and train):
        raise click.UsageError("Name one archive to train on, as CODES or with --train.")
    return path


@opt.command()
@click.argument("codes", nargs=-1, metavar="[CODES|SOURCE...]", type=opt.SOURCE)
@opt.section(
    "Rows", TRAIN, click.option("--test", type=opt.INPUT, help="Score on this archive, or these embeddings.")
)
@opt.section(
    "Embeddings",
    click.option("--vector-column", metavar="NAME", help="Column of the table with vectors.  [default: what fits]"),
    opt.options_of(CompressOptions, only="id_column"),
)
@opt.section(
    "Labels",
    opt.LABELS,
    opt.TEST_LABELS,
    opt.LEVEL,
    click.option("--label-column", "--column", "columns", multiple=True,
                 help="Column of --labels or the table; several targets by repeating it.  [default: label or first]"),
    click.option(
        "--groups", help="Column of --labels, or a CSV file name,group: no group is both trained and scored on."
    ),
    opt.options_of(EvaluateOptions, only="task min_class"),
)  # fmt: skip
@opt.section("Probe", opt.options_of(EvaluateOptions, only="estimator output latents folds test_size seed"))
@click.option("--save", type=opt.PATH, help="Write the probe here, for `stochcl predict`.")
@click.option("-m", "--model", help="Model or .tables file with the decoder; the model that encodes embeddings.")
@JSON
def evaluate(
    codes: tuple[Path | str, ...], *, train: Path | str | None, model: str | None, as_json: bool, **options: Any
) -> None:
    """Train a classifier or regressor on codes and score it on rows that it has not seen.

    Labels are the first folders of the names (or others, --label-level), or come from a file. Scores are of a
    cross-validation, of a part held out (--test-size), or of another archive (--test). Embeddings (.npy matrices,
    .parquet or .arrow files) are encoded by the model first; images in a table by the default model without -m.

    \b
    Example:
      stochcl evaluate codes.bin
      stochcl evaluate --train train.bin --test test.bin --estimator svm
      stochcl evaluate vectors.parquet -m head.safetensors --label-column topic
    """
    from stochcl.api.probe_source import are_embeddings, evaluate_codes, evaluate_embeddings

    paths: Sequence[Path | str] = codes or ([] if train is None else [train])
    check_paths_exist(paths)
    asked = opt.given(options)
    with progress_bar("probes", rate=False) as bar:

        def trained(done: int, total: int) -> None:
            bar(done, total, f"{done:,} of {total:,} probes trained")

        if are_embeddings(paths) and not (codes and train):
            results, facts = evaluate_embeddings(paths, model=model, progress=trained, **asked)
        else:
            path = _training_codes(paths[0] if len(paths) == 1 else None, train if codes else None)
            results, facts = evaluate_codes(path, model=model, progress=trained, **asked)
    saved = [f"probe saved in {facts['saved']}"] if "saved" in facts else []
    head = [
        f"{facts['path']}: {facts['input']} of {facts['latents']:,} latents, model {facts['model']}",
        f"labels: {facts['labels_from']}",
    ]
    if len(results) == 1:
        result = next(iter(results.values()))
        show(facts | result.to_json(), [*head, *result.lines(), *saved], as_json=as_json)
        return
    lines = [line for target, result in results.items() for line in (f"{target}:", *result.lines())]
    both = {target: result.to_json() for target, result in results.items()}
    show(facts | {"targets": both}, [*head, *lines, *saved], as_json=as_json)


@opt.command()
@opt.CODES
@click.option("-m", "--model", "probe", required=True, type=opt.PATH,
              help="What `stochcl evaluate --save` or `stochcl finetune` wrote.")  # fmt: skip
@opt.output("The CSV file to write.")
@opt.TABLES_OF_CODES
@opt.DEVICE
@opt.FORCE
@JSON
def predict(
    codes: Path | str, probe: Path, output: Path, *, tables: str | None, as_json: bool, **options: Any
) -> None:  # fmt: skip
    """Apply a saved classifier or regressor to codes: classes with probabilities, or numbers, as a CSV file.

    `stochcl evaluate train.bin --save probe.skops` saves one; `stochcl finetune` writes a model with a classifier,
    for which CODES may also be a source of images.

    \b
    Example:
      stochcl predict codes.bin -m probe.skops -o predictions.csv
      stochcl predict photos/ -m classifier.safetensors -o predictions.csv
    """
    from stochcl.api.predict import predict

    with progress_bar("images"):
        found = predict(codes, probe, output, tables=resolve_tables(tables), **options)
    say_skipped([(one["name"], one["reason"]) for one in found["skipped"]])
    line = (
        f"{found['output']}: {', '.join(t['target'] for t in found['targets'])} of {plural(found['images'], 'row')}"
    )
    show(found, [line, *(f"  note: {note}" for note in found["notes"])], as_json=as_json)


@opt.command()
@click.argument("codes", required=False, type=opt.INPUT)
@opt.section("Rows", TRAIN, click.option("--test", type=opt.INPUT, help="Score on this archive."))
@opt.section("Labels", opt.LABELS, opt.TEST_LABELS, opt.COLUMN, opt.LEVEL)
@opt.section(
    "Out of distribution",
    click.option(
        "--outside", type=opt.INPUT, multiple=True, help="An archive of other rows to tell apart; may be repeated."
    ),
)
@opt.section("Probe", opt.options_of(ProbeOptions, only="estimator output latents folds seed"))
@click.option("--plot", type=opt.PATH, help="Draw accuracy against the share refused: .png, .svg or .pdf.")
@opt.TABLES
@JSON
def uncertainty(
    codes: Path | str | None, *, train: Path | str | None, model: str | None, as_json: bool, **options: Any
) -> None:
    """Test whether uncertainty flags errors and out-of-distribution rows.

    It compares the entropy that `stochcl compress --uncertainty` stored with the code's length, the distance to the
    nearest codes, and the probe's confidence. Only the last needs labels. An AUROC of 0.5 is chance.

    \b
    Example:
      stochcl uncertainty codes.bin --plot refusal.png
      stochcl uncertainty --train train.bin --test test.bin --outside other.bin
    """
    from stochcl.api.uncertainty import measure_uncertainty

    path = _training_codes(codes, train)
    found = measure_uncertainty(path, tables=resolve_tables(model, path), **opt.given(options))
    show(found, _uncertainty_lines(found), as_json=as_json)


_SHOWN = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # shares of the JSON that the table shows


def _uncertainty_lines(found: dict[str, Any]) -> list[str]:
    of = f"{found['images']:,} rows, {found['input']} of {found['latents']:,} latents, model {found['model']}"
    out = [f"{found.get('test', found['path'])}: {of}"]
    out += [f"accuracy {found['accuracy']:.1%} with {found['estimator']} ({found['trained_on']:,} to train on)", ""]
    rows = []
    for name, score in found["scores"].items():
        less = score.get("minus_confidence")
        rows.append([
            name, "yes" if score["needs_labels"] else "no", _auroc(score), _interval(score["interval"]),
            "" if less is None else f"{less['value']:+.3f} {_interval(less['interval'], sign=True)}",
        ])  # fmt: skip
    title = "errors found by each score (AUROC, 95 % interval)"
    out += table(title, ["score", "needs labels", "AUROC", "interval", "less confidence"], rows)
    shares = [i for i, kept in enumerate(next(iter(found["refused"].values()))) if kept["refused"] in _SHOWN]
    rows = [[name, *(f"{100 * kept[i]['accuracy']:.1f}" for i in shares)] for name, kept in found["refused"].items()]
    columns = [f"{100 * share:.0f} %" for share in _SHOWN]
    out += table("accuracy, in %, when the least certain are refused", ["score", *columns], rows)
    if found["outside"]:
        names = list(found["scores"])
        rows = []
        for one in found["outside"]:
            told = [_auroc(one["scores"].get(name, {})) for name in names]
            rows.append([one["what"], f"{one['images']:,}", *told])
        out += table("rows of other archives told from the answered ones (AUROC)", ["archive", "rows", *names], rows)
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


@opt.command()
@opt.CODES
@opt.output("The page to write.", default="report.html")
@click.option(
    "--images", type=opt.PATH, metavar="SOURCE", help="The images that the codes were made of, for pictures."
)
@opt.section("Labels", opt.LABELS, opt.COLUMN, opt.LEVEL, opt.options_of(EvaluateOptions, only="task"))
@opt.section(
    "Latents",
    click.option("--latents", "shown", type=click.IntRange(1), default=12, show_default=True, metavar="K",
                 help="How many of the strongest latents to look at closely."),
    click.option("--sample", type=click.IntRange(1), default=20_000, show_default=True, metavar="N",
                 help="Look at latents in at most N rows, spread evenly."),
)  # fmt: skip
@opt.options_of(EvaluateOptions, only="seed")
@opt.TABLES
@opt.FORCE
@JSON
def report(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Explain an archive on one HTML page: bytes, latents, what they say, and what flipping them does.

    The page loads nothing: it can be mailed, and opened without a network.

    \b
    Example:
      stochcl report codes.bin --images images/ -o report.html
      stochcl report codes.bin --images images.zip --labels labels.csv --column species -o species.html
    """
    from stochcl.report.report import write_report

    with progress_bar("rows", rate=False) as bar:
        told = write_report(codes, output, tables=resolve_tables(model, codes), progress=bar, **opt.given(options))
    lines = [
        f"{told['output']}: {told['output_bytes']:,} bytes, {told['pictures']:,} pictures, {told['seconds']:.1f} s"
    ]
    if told["sampled"] < told["images"]:
        lines.append(f"  latents are looked at in {told['sampled']:,} of {told['images']:,} rows")
    if told["probe"] is not None:
        probe = told["probe"]
        name, digits = ("accuracy", ".2%") if told["task"] == "classification" else ("R2", ".3f")
        lines.append(
            f"  {name} {probe['score']:{digits}} with {probe['estimator']} on {told['label']} "
            f"(guessing: {probe['baseline']:{digits}}; {probe['n_test']:,} rows, cross-validated)"
        )
    lines.append("  strongest latents: " + ", ".join(str(one["latent"]) for one in told["strongest"]))
    show(told, [*lines, *(f"  note: {note}" for note in told["notes"])], as_json=as_json)


@opt.command()
@opt.CODES
@click.argument("query", nargs=-1, type=opt.INPUT)
@opt.section(
    "Search",
    click.option("--name", "names", multiple=True, help="Search for the row of this name; may be repeated."),
    click.option(
        "--row", "rows", multiple=True, type=int, help="Search for the row of this number; may be repeated."
    ),
    opt.options_of(SearchOptions),
)
@opt.section("Embeddings as queries", opt.options_of(CompressOptions, only="column id_column embedder"))
@opt.section(
    "Page",
    click.option("--html", type=opt.PATH, metavar="FILE", help="Also write a page of what was found."),
    click.option(
        "--images", type=opt.INPUT, metavar="SOURCE", help="The images that the codes were made of, for thumbnails."
    ),
)
@opt.CODES_MODEL
@opt.DEVICE
@opt.TABLES_OF_CODES
@JSON
def search(
    codes: Path | str, query: tuple[Path, ...], *, tables: str | None, html: Path | None, images: Path | None,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Find the rows of an archive that are nearest to QUERY images or embeddings, or to some of its own.

    A query image is encoded by the archive's model. By vectors, its features are compared with what the codes decode
    to; by symbols, bits that differ are counted. In an archive of embeddings, QUERY is a .npy matrix, or a .parquet
    or .arrow file: every row is searched for.

    \b
    Example:
      stochcl search codes.bin photo.jpg -k 5
      stochcl search vectors.bin queries.parquet --id-column uid
      stochcl search codes.bin --name cats/01.png --html found.html --images images/
    """
    from stochcl.api.search import search

    if images is not None and html is None:
        raise click.UsageError("--images are shown on a page; name it with --html.")
    with progress_bar("rows") as bar:
        found = search(codes, query, tables=resolve_tables(tables, codes), progress=bar, **opt.given(options))
    if html is not None:
        from stochcl.report.report import write_search_page

        write_search_page(found, html, images, query)
        say(f"written to {html}")
    lines = [line for part in found["queries"] for line in table(part["query"], _COLUMNS, _match_lines(part))]
    note = f"{found['images']:,} rows by {found['by']}; distance: {found['unit']}"
    show(found, [*lines, note], as_json=as_json)


@opt.command()
@opt.CODES
@opt.output("The .csv or .parquet file of pairs to write.")
@opt.options_of(DedupOptions)
@opt.TABLES
@opt.FORCE
@JSON
def dedup(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Find rows that are nearly the same, by their codes alone.

    Each pair is a line: the names of two rows, and the cosine of the vectors that their codes decode to. Rows with
    equal codes are each paired with the first of them.

    \b
    Example:
      stochcl dedup codes.bin -o pairs.csv
      stochcl dedup codes.bin --threshold 1 -o equal.parquet
    """
    from stochcl.api.search import dedup

    with progress_bar("cells", rate=False) as bar:
        found = dedup(codes, output, tables=resolve_tables(model, codes), progress=bar, **opt.given(options))
    line = (
        f"{found['output']}: {plural(found['pairs'], 'pair')}, {found['equal']:,} of them of equal codes; "
        f"{found['duplicates']:,} of {plural(found['images'], 'row')} repeat earlier ones"
    )
    show(found, [line], as_json=as_json)


_COLUMNS = ("name", "rank", "label", "row", "distance")


def _match_lines(part: dict[str, Any]) -> list[tuple[str, ...]]:
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


@opt.command()
@opt.CODES
@opt.output("The JSON file to write.")
@opt.options_of(SelectOptions)
@opt.section("Labels", opt.LABELS, opt.COLUMN, opt.LEVEL)
@opt.TABLES
@opt.FORCE
@JSON
def select(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Choose the latents that a task needs, one by one, each for what it adds.

    \b
    Example:
      stochcl select codes.bin --labels labels.csv --latents 64 -o latents.json
      stochcl transcode codes.bin --select latents.json -o small.bin
    """
    from stochcl.api.evaluate import select

    with progress_bar("rows"):
        found = select(codes, output, tables=resolve_tables(model, codes), **opt.given(options))
    line = f"{output}: {len(found['latents']):,} latents, chosen by the labels of {found['images']:,} rows"
    show(found, [line, f"  the best first: {', '.join(map(str, found['order'][:10]))}"], as_json=as_json)
