"""The page that explains an archive, and the page of a search."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl import __version__
from stochcl.api.labels import check_label_options
from stochcl.compress import open_archive
from stochcl.errors import SourceError, UsageError, require
from stochcl.files import PathLike, check_output, write_file
from stochcl.lazy import cached_property
from stochcl.messages import escape_name
from stochcl.report import page
from stochcl.report.findings import Findings, ReportData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from markupsafe import Markup
    from numpy.typing import NDArray

    from stochcl.downstream import Task
    from stochcl.downstream.interpretation import Intervention
    from stochcl.entropy.tables import Where


SCHEMA = "stochcl.report/0"
SAMPLE = 20_000
"""Default number of rows in which latents are examined."""

THUMBNAIL = 64  # pixels
NAMED = 8  # latents named in a plot
COMPARED = 20  # latents in the association plot
CURVE = 200  # points of a curve
CLASS_MAPS = 12  # classes with their own map, largest first
PATCHES = 12, 8  # grid of the map, with one picture per cell


def write_report(
    path: PathLike, output: PathLike, *, images: PathLike | None = None, labels: PathLike | None = None,
    column: str | None = None, level: int | None = None, task: Task = "classification", shown: int = 12,
    sample: int = SAMPLE, seed: int = 0, tables: Where = (), force: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:  # fmt: skip
    """Write one HTML page that explains an archive.

    Latents are examined in a sample of rows, so time and memory hardly grow with the archive.
    """
    for module in ("jinja2", "matplotlib"):
        require(module, "a report", "plots")
    started = time.monotonic()
    output = Path(output)
    check_label_options(labels, [column], level)
    if sample < 1 or shown < 1:
        raise UsageError(f"--sample and --latents must be at least 1, got {sample} and {shown}.")
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        data = ReportData(
            archive, path, labels=labels, column=column, level=level, task=task, most=sample, seed=seed,
            progress=lambda done, total: progress(done, total, "reading"),
        )  # fmt: skip
        count = len(data.rows)
        found = Findings(data, shown=shown, seed=seed, tell=lambda step: progress(count, count, step))
        progress(count, count, "writing")
        view = View(data, found, images)
        text = page.render("report.html", view=view, data=data, found=found, facts=data.facts, unit=data.facts.unit,
                      seed=seed, version=__version__)  # fmt: skip
    write_file(output, text.encode(), "the page")
    size = {"output": escape_name(output), "output_bytes": len(text.encode())}
    return _to_json(view) | size | {"seconds": round(time.monotonic() - started, 3)}


class View:
    """Figures, plots and pictures for the template; a row is a sampled row unless stated otherwise."""

    def __init__(self, data: ReportData, found: Findings, images: PathLike | None) -> None:
        self.data, self.found, self.images = data, found, images
        self.kind, self.unit = data.sample.kind, data.facts.unit
        self.thumbnails, self._gone = None, ""
        try:
            self.thumbnails = None if images is None else page.Thumbnails(images, size=THUMBNAIL)
        except SourceError as exc:  # the page has no pictures then
            self._gone = f"There are no pictures here: {exc}"

    def notices(self) -> list[str]:
        """Return notices about the pictures; complete only after all were requested."""
        if self._gone:
            return [self._gone]
        if self.thumbnails is None:
            return []
        notes, where, facts = list[str](), escape_name(self.images or ""), self.data.facts
        if self.data.names is None and len(self.thumbnails.source) != facts.images:
            notes.append(
                f"The archive has no names (--no-names?), and {where} has {len(self.thumbnails.source):,} images for "
                f"its {facts.images:,}: pictures may stand for others."
            )
        lost, asked = len(self.thumbnails.missing), len(self.thumbnails.asked)
        if lost:
            found = "none was found" if lost == asked else f"{lost:,} {'is' if lost == 1 else 'are'} missing"
            notes.append(
                f"Of the {asked:,} images that this page would show, {found} in {where}: moved, renamed or "
                "unreadable. They are grey squares."
            )
        return notes

    def latent(self, column: int) -> str:
        """Return a latent's number in its model."""
        return f"{self.data.numbers[column]:,}"

    def name(self, row: int) -> str:
        """Return a row's name, with its label."""
        name = self.data.name(int(self.data.rows[row]))
        label = "" if self.data.labels is None else self.data.labels.of_row(row)
        return f"{name} ({label})" if label else name

    def image(self, row: int) -> str | None:
        """Return a row's thumbnail or None."""
        return self.archive_image(int(self.data.rows[row]))

    def archive_image(self, row: int) -> str | None:
        """Return the thumbnail of an archive row, by position if rows have no names."""
        if self.thumbnails is None:
            return None
        return self.thumbnails.of(row if self.data.names is None else self.data.name(row))

    def far(self, distance: float) -> str:
        """Format a distance: 1 - cosine of vectors as an angle, others as a number."""
        if self.data.sample.decoder is None:
            return page.number(distance)
        return f"{np.degrees(np.arccos(np.clip(1 - distance, -1, 1))):.1f}\u00b0"

    def value(self, column: int) -> str:
        """Return the share of ones of a bit, the mean of levels, or the most frequent category."""
        counts = self.found.counts[column]
        total = counts.sum()
        if self.kind == "bits":
            return page.percent(float(counts[1:].sum() / total), 1)
        if self.kind == "categories":
            return f"{int(counts.argmax())} ({page.percent(float(counts.max() / total))})"
        values = np.arange(len(counts))
        mean = float(counts @ values / total)
        return f"{mean:.1f} ({np.sqrt(float(counts @ np.square(values - mean) / total)):.1f})"

    def partner(self, column: int) -> tuple[str, str]:
        """Return the latent most associated with this one, and the association."""
        compared, associated = self.found.compared, self.found.associated
        at = int(np.searchsorted(compared, column))
        if len(compared) < 2 or at == len(compared) or compared[at] != column:
            return "", ""
        values = np.where(np.arange(len(compared)) == at, 0, associated[at])
        best = int(np.abs(values).argmax())
        return (self.latent(int(compared[best])), f"{values[best]:+.2f}") if values[best] else ("", "")

    def ranked(self) -> list[int]:
        """Return all columns, strongest first."""
        found: list[int] = np.argsort(-self.found.scores, kind="stable").tolist()
        return found

    def cost_plot(self) -> Markup:
        """Draw the cumulative bits of the first latents."""
        step = max(1, len(self.found.alone) // CURVE)
        ends = np.unique(np.r_[0 : len(self.found.alone) : step, len(self.found.alone)])
        given, alone = (np.r_[0, np.cumsum(bits)][ends] for bits in (self.data.lengths, self.found.alone))
        return page.line_plot(
            [("given those before", ends, given), ("each alone", ends, alone)],
            x_label="first latents kept", y_label=f"bits per {self.unit}",
        )  # fmt: skip

    def label_plot(self, bits: NDArray[np.float64]) -> Markup:
        """Draw each latent's information about the label against its own bits."""
        alone, shown = self.found.alone, self.found.strongest[:NAMED].tolist()
        named = [(float(alone[c]), float(bits[c]), self.latent(c)) for c in shown]
        return page.scatter_plot(
            alone, bits, named, x_label="bits of the latent alone", y_label="bits about the label"
        )

    def association_plot(self) -> Markup:
        """Draw the associations of the strongest latents."""
        compared, associated = self.found.compared, self.found.associated
        places = np.searchsorted(compared, self.found.strongest)
        ranked = np.argsort(-self.found.scores[compared], kind="stable")
        places = np.r_[places, ranked[~np.isin(ranked, places)]][:COMPARED]
        names = [self.latent(int(compared[i])) for i in places.tolist()]
        return page.association_plot(names, associated[np.ix_(places, places)])

    def pairs(self, count: int = 10) -> tuple[float, int, list[tuple[str, str, str]]]:
        """Return the median association of all pairs, the number of close pairs, and the closest pairs."""
        compared = self.found.compared
        first, second = np.triu_indices(len(compared), 1)
        values = self.found.associated[first, second]
        names = [self.latent(int(column)) for column in compared]
        order = np.argsort(-np.abs(values), kind="stable")[:count].tolist()
        closest = [(names[first[i]], names[second[i]], f"{values[i]:+.2f}") for i in order]
        return float(np.median(np.abs(values))), int((np.abs(values) >= 0.7).sum()), closest

    def certainty_plot(self, values: NDArray[np.float32]) -> Markup:
        """Draw a histogram of uncertainty."""
        counts, edges = np.histogram(values, bins=min(40, max(1, len(np.unique(values)))))
        return page.histogram(edges, counts, x_label="bits of entropy", y_label=f"{self.unit}s")

    def right_by_certainty(self) -> tuple[int, float, float] | None:
        """Return the first probe's accuracy on the most and the least certain fifth of its held-out rows."""
        probe, values = self.found.probe, self.data.uncertainty
        if probe is None or probe.right is None or values is None or len(probe.right) < 100:
            return None
        order = np.argsort(values[self.data.rows[probe.held]], kind="stable")
        fifths = np.array_split(probe.right[order], 5)
        return len(order), float(fifths[0].mean()), float(fifths[-1].mean())

    def answers(self, shares: NDArray[np.float64]) -> str:
        """Format a probe's answer for one row."""
        classes = () if self.found.probe is None else self.found.probe.classes
        if not classes:
            return f"{shares[0]:.3g}"
        order = np.argsort(-shares, kind="stable")[:3].tolist()
        order = [i for i in order if shares[i] >= 0.01] or order[:1]
        return ", ".join(f"{classes[i]} {page.percent(float(shares[i]))}" for i in order)

    def mean_change(self, flip: Intervention) -> str:
        """Format the change of a probe's mean answer from one end of a latent to the other."""
        if flip.means is None or self.found.probe is None:
            return ""
        change, classes = flip.means[1] - flip.means[0], self.found.probe.classes
        if not classes:
            return f"{change[0]:+.3g}"
        up, down = int(change.argmax()), int(change.argmin())
        return f"{classes[up]} {100 * change[up]:+.1f}, {classes[down]} {100 * change[down]:+.1f} points"

    @cached_property
    def map(self) -> dict[str, Any]:
        """The map: its plot, pictures with positions in percent, and a plot for each of the largest classes."""
        points, labels = self.found.projection[0], self.data.labels
        low, high = np.quantile(points, [0.002, 0.998], axis=0)
        inside = ((points >= low) & (points <= high)).all(axis=1)
        pad = np.maximum((0.04, 0.06) * (high - low), 1e-9)  # keeps pictures inside
        low, high = low - pad, high + pad
        drawn = self.found.mapped[inside[self.found.mapped]]
        classes, more = [], 0
        if labels is not None and labels.task == "classification":
            names, counts = np.unique(labels.y[labels.known], return_counts=True)
            for name in names[np.sort(np.argsort(-counts, kind="stable")[:CLASS_MAPS])].tolist():
                own = points[drawn[labels.y[drawn] == name]]
                classes.append((escape_name(name), page.dot_map(own, low, high, color=page.ACCENT, alpha=0.9)))
            more = len(names) - len(classes)
        return {
            "plot": page.dot_map(points[drawn], low, high), "count": len(drawn), "classes": classes, "more": more,
            "pictures": self._map_pictures(np.flatnonzero(inside), (points - low) / (high - low)),
        }  # fmt: skip

    def _map_pictures(self, rows: NDArray[np.integer], places: NDArray[np.float64]) -> list[tuple[int, float, float]]:
        """Return rows to show as pictures, the one nearest to each cell's centre, with positions in percent."""
        if self.thumbnails is None:
            return []
        at = places[rows] * PATCHES
        cells = np.floor(at)
        order = np.argsort(np.square(at - cells - 0.5).sum(axis=1), kind="stable")
        _, chosen = np.unique(cells[order], axis=0, return_index=True)
        rows = rows[order[chosen]]
        return [
            (row, 100 * x, 100 - 100 * y) for row, (x, y) in zip(rows.tolist(), places[rows].tolist(), strict=True)
        ]


def _to_json(view: View) -> dict[str, Any]:
    data, found, facts, pictures = view.data, view.found, view.data.facts, view.thumbnails
    probe, missing = found.probe, 0 if pictures is None else len(pictures.missing)
    return {
        "schema": SCHEMA,
        "path": escape_name(facts.path),
        "images": facts.images,
        "sampled": len(data.rows),
        "latents": facts.latents,
        "bits_per_image": round(facts.bits_per_image, 3),
        "bits_alone": round(float(found.alone.sum()), 3),
        "bits_given": round(float(data.lengths.sum()), 3),
        "label": None if data.labels is None else data.labels.target,
        "task": None if data.labels is None else data.labels.task,
        "label_bits": None if found.information is None else round(found.information.label_bits, 4),
        "strongest": [
            {
                "latent": int(data.numbers[flip.column]),
                "bits_alone": round(float(found.alone[flip.column]), 4),
                "bits_given": round(float(data.lengths[flip.column]), 4),
                "information": None if found.information is None else round(float(found.scores[flip.column]), 4),
                "weight": round(float(found.weights[flip.column]), 4),
                "moved": round(flip.moved, 6),
                "nearest_kept": round(flip.kept, 4),
                "answer_changes": None if flip.changed is None else round(flip.changed, 4),
            }
            for flip in found.interventions
        ],
        "probe": None if probe is None else {
            "estimator": probe.scores.estimator, "score": probe.scores.score, "baseline": probe.scores.baseline,
            "interval": probe.scores.interval,
            "n_train": probe.scores.n_train,
            "n_test": probe.scores.n_test,
        },
        "pictures": 0 if pictures is None else len(pictures.asked) - missing,
        "missing": missing,
        "notes": [*view.notices(), *found.notes],
    }  # fmt: skip


def write_search_page(
    result: dict[str, Any], output: PathLike, images: PathLike | None = None, queries: Sequence[PathLike] = ()
) -> None:
    """Write a search result as one HTML page."""
    require("jinja2", "a page", "plots")
    thumbnails = None if images is None else page.Thumbnails(images)
    files = {escape_name(path): path for path in queries if Path(path).suffix.lower() != ".npy"}

    def image(name: str | None) -> str | None:
        return None if thumbnails is None or name is None else thumbnails.of(name)

    def query_image(name: str) -> str | None:
        return page.Thumbnails(files[name]).of(0) if name in files else image(name)

    text = page.render("search.html", result=result, image=image, query_image=query_image)
    write_file(output, text.encode(), "the page")
