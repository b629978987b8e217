"""From an archive to its page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.api.explaining import certainty, flipping, headline, latents, mapping, switching
from stochcl.api.explaining.findings import find
from stochcl.api.explaining.look import SCRIPT, STYLE
from stochcl.api.explaining.material import read_material
from stochcl.api.explaining.view import View, number
from stochcl.api.pictures import Pictures
from stochcl.compress import open_archive
from stochcl.downstream import pages
from stochcl.errors import SourceError, UsageError
from stochcl.files import check_output
from stochcl.messages import escape_name as printable
from stochcl.messages import plural as counted

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from stochcl.downstream import Task
    from stochcl.entropy.tables import Tables

    PathLike = str | os.PathLike[str]

SCHEMA = "stochcl.report/0"

SAMPLE = 20_000
"""Rows that latents are looked at in, unless somebody asks for more."""

_THUMBNAIL = 64  # pixels


def write_report(
    path: PathLike,
    output: PathLike,
    *,
    images: PathLike | None = None,
    labels: PathLike | None = None,
    column: str | None = None,
    task: Task = "classification",
    shown: int = 12,
    sample: int = SAMPLE,
    seed: int = 0,
    tables: Iterable[Tables | PathLike] = (),
    force: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Write a page of one file that explains an archive.

    Time and memory do not grow with the archive beyond its names: latents are looked at in a sample of rows.

    Parameters
    ----------
    path, output : path-like
    images : path-like, optional
        The source that the archive was made of. Images that are not there any more are grey squares, and counted.
    labels : path-like, optional
        A CSV file ``name,label...``; by default the first folder of each name, where these differ.
    column : str, optional
        Which column of it.
    task : str
        classification, or regression where labels are numbers.
    shown : int
        How many of the strongest latents are looked at closely.
    sample : int
        Rows at most that latents are looked at in.
    seed : int
        Of whatever is drawn.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archive.
    force : bool
        Replace an existing output.
    progress : callable
        Told how many rows of how many have been read, and what is being done.

    Returns
    -------
    dict
        JSON values under :data:`SCHEMA`.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, OutputError
    """
    started = time.monotonic()
    output = Path(output)
    if column is not None and labels is None:
        raise UsageError("--column says which column of a CSV file; give that file with --labels.")
    if sample < 1 or shown < 1:
        raise UsageError(f"a report looks at 1 row and 1 latent or more, not at {sample} and {shown}.")
    check_output(output, Path(path), force=force)
    pictures, notes = _pictures(images)
    with open_archive(path, tables=tables) as archive:
        material = read_material(
            archive, path, labels=labels, column=column, task=task, most=sample, seed=seed,
            progress=lambda done, total: progress(done, total, "reading"),
        )  # fmt: skip
        count = len(material.rows)
        found = find(material, shown=shown, seed=seed, tell=lambda what: progress(count, count, what))
        progress(count, count, "writing")
        view = View(material, found, pictures)
        body = _body(view, seed)
        if pictures is not None and material.names is None and len(pictures.source) != len(archive):
            notes.append(
                f"The archive has no names (--no-names?), and {printable(images or '')} has "
                f"{len(pictures.source):,} images for its {len(archive):,}: pictures may stand for others."
            )
    notes += _missing(pictures, images)
    text = _page(view, body, notes)
    pages.write_page(output, text)
    return _told(view, output, notes, len(text.encode("utf-8"))) | {"seconds": round(time.monotonic() - started, 3)}


def _pictures(images: PathLike | None) -> tuple[Pictures | None, list[str]]:
    """Open where images are; if that is not there any more, the page says so, and goes without."""
    if images is None:
        return None, []
    try:
        return Pictures(images, size=_THUMBNAIL), []
    except SourceError as exc:
        return None, [f"There are no pictures here: {exc}"]


def _missing(pictures: Pictures | None, images: PathLike | None) -> list[str]:
    if pictures is None or images is None or not pictures.missing:
        return []
    lost, asked = len(pictures.missing), len(pictures.asked)
    which = "none" if lost == asked else f"{lost:,}"
    verb = "was found" if lost == asked else ("is missing" if lost == 1 else "are missing")
    said = f"Of the {asked:,} images that this page would show, {which} {verb} in {printable(images)}"
    return [f"{said}: moved, renamed or unreadable. They are grey squares."]


def _body(view: View, seed: int) -> list[str]:
    sections = [
        headline.where_bytes_go(view),
        latents.what_latents_cost(view),
        latents.what_latents_say(view),
        switching.what_switches_them(view),
        flipping.what_flipping_does(view),
        latents.how_latents_go_together(view),
        mapping.the_map(view),
        certainty.who_is_certain(view),
        headline.how_it_was_made(view, seed=seed, version=__version__),
    ]
    return [part for part in sections if part is not None]


_LINKS = {
    "bytes": "Bytes", "latents": "Latents", "labels": "Labels", "switches": "What switches them",
    "flips": "Flips", "together": "Together", "map": "Map", "certain": "Certainty", "made": "How it was made",
}  # fmt: skip


def _page(view: View, body: list[str], notes: list[str]) -> str:
    facts = view.material.facts
    links = "".join(
        f'<a href="#{key}">{name}</a>'
        for key, name in _LINKS.items()
        if any(f'<section id="{key}"' in b for b in body)
    )
    notices = "".join(f'<p class="notice" role="note">{pages.escape(note)}</p>' for note in notes)
    name = Path(printable(facts.path)).name
    title = f"{name}: {counted(facts.images, facts.unit)} in {number(facts.bits_per_image)} bits each"
    top = [*headline.headline(view), notices, f'<nav aria-label="Sections">{links}</nav>']
    return pages.page(title, [*top, *body], style=STYLE, script=SCRIPT)


def _told(view: View, output: Path, notes: list[str], size: int) -> dict[str, Any]:
    material, found = view.material, view.findings
    facts, probe = material.facts, found.probe
    pictures = view.pictures
    return {
        "schema": SCHEMA,
        "path": printable(facts.path),
        "output": printable(output),
        "output_bytes": size,
        "images": facts.images,
        "sampled": len(material.rows),
        "latents": facts.latents,
        "bits_per_image": round(facts.bits_per_image, 3),
        "bits_alone": round(float(found.alone.sum()), 3),
        "bits_given": round(float(material.lengths.sum()), 3),
        "label": None if material.labels is None else material.labels.target,
        "label_bits": None if found.information is None else round(found.information.label_bits, 4),
        "strongest": [_latent(view, column) for column in found.strongest.tolist()],
        "probe": None if probe is None else {
            "estimator": probe.estimator, "score": round(probe.score, 4), "baseline": round(probe.baseline, 4),
            "interval": [round(value, 4) for value in probe.interval], "n_train": probe.trained,
            "n_test": len(probe.held),
        },
        "pictures": 0 if pictures is None else len(pictures.asked) - len(pictures.missing),
        "missing": 0 if pictures is None else len(pictures.missing),
        "notes": [*notes, *found.notes],
    }  # fmt: skip


def _latent(view: View, column: int) -> dict[str, Any]:
    found = view.findings
    flip = next(one for one in found.interventions if one.column == column)
    return {
        "latent": int(view.material.numbers[column]),
        "bits_alone": round(float(found.alone[column]), 4),
        "bits_given": round(float(view.material.lengths[column]), 4),
        "information": None if found.information is None else round(float(found.information.bits[column]), 4),
        "weight": round(float(found.weights[column]), 4),
        "moved": round(flip.moved, 6),
        "nearest_kept": round(flip.kept, 4),
        "answer_changes": None if flip.changed is None else round(flip.changed, 4),
    }
