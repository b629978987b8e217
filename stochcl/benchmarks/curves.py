"""Savings at equal accuracy, plots, the table, sentences and files made from rows."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.inputs import ELSEWHERE
from stochcl.benchmarks.probes import METRICS
from stochcl.benchmarks.run import BenchmarkError, write_files, write_results
from stochcl.report.page import render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    Points = tuple[NDArray[np.float64], NDArray[np.generic]]

LEAST = 4
"""The least number of points of a curve."""

BITS = ("bits_per_image", "bits_with_side", "bits_with_side_of_a_million")

ALL = "the best of all others", "any", "vectors"
"""Name, coding and input of the curve of the fewest bits at which any other method reaches a score."""

NAME = "results"

_DRAWS = 1000
_LEAST_DRAWS = 0.5  # the least share of draws with a figure for which an interval is given
_NARROW = 0.01  # a saving over a narrower shared range of accuracy means nothing


class NoSavingError(BenchmarkError):
    """Two curves cannot be compared: too few points, or no accuracy that both reach."""


def pareto(bits: ArrayLike, accuracy: ArrayLike) -> NDArray[np.intp]:
    """Return the Pareto-optimal points, ordered by bits.

    Examples
    --------
    >>> pareto([8, 32, 16, 16], [0.3, 0.4, 0.5, 0.2]).tolist()
    [0, 2]
    """
    costs, scores = np.asarray(bits, float), np.asarray(accuracy, float)
    order = np.lexsort((-scores, costs))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], scores[order][:-1]]))
    return order[scores[order] > best]


def mean_saving(
    bits: ArrayLike, accuracy: ArrayLike, other_bits: ArrayLike, other_accuracy: ArrayLike
) -> tuple[float, tuple[float, float]]:
    """Return the mean saving in bits of the first curve against the second, and its range of accuracy.

    Log bits are interpolated as a function of accuracy through each curve's Pareto-optimal points by monotone cubics
    (PCHIP), and their difference averaged over the accuracies that both curves reach (Bjontegaard, VCEG-M33, with
    PCHIP in place of one polynomial, as in JVET-H0030). Nothing is extrapolated.

    Examples
    --------
    >>> accuracy = [0.2, 0.3, 0.4, 0.45, 0.5]
    >>> saving, _ = mean_saving([8, 16, 32, 64, 128], accuracy, [16, 32, 64, 128, 256], accuracy)
    >>> round(saving, 6)
    0.5
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for given in ((bits, accuracy), (other_bits, other_accuracy)):
        costs, scores = (np.asarray(values, float) for values in given)
        if not (costs > 0).all() or not np.isfinite(costs).all():
            raise NoSavingError("bits per image must be more than 0.")
        kept = pareto(costs, scores)
        if len(kept) < LEAST:
            raise NoSavingError(f"a curve needs {LEAST} points, each better than the cheaper ones.")
        curves.append((scores[kept], np.log(costs[kept])))
    low, high = max(scores[0] for scores, _ in curves), min(scores[-1] for scores, _ in curves)
    if not low < high:
        raise NoSavingError("there is no accuracy that both curves reach.")
    areas = [float(PchipInterpolator(*curve).integrate(low, high)) for curve in curves]
    return float(1 - np.exp((areas[0] - areas[1]) / (high - low))), (float(low), float(high))


def saving(ours: Points, other: Points, *, seed: int = 0, draws: int = _DRAWS) -> dict[str, Any]:
    """Return the mean saving with a 95 % bootstrap interval over the test rows, with the same draws for all points.

    A curve is the bits per image of its P points, and their scores on every test row or query, shape (P, N).
    ``saving`` is 0.5 if ours takes half the bits, and -1 if it takes twice as many; the interval's ends,
    ``saving_low`` and ``saving_high``, are None if too few draws give a figure.
    """
    (bits, scores), (other_bits, other_scores) = ours, other
    n = scores.shape[1]
    if other_scores.shape[1] != n:
        raise NoSavingError(f"curves need the same test rows, got {n:,} and {other_scores.shape[1]:,} of them.")
    found, accuracies = mean_saving(bits, scores.mean(axis=1), other_bits, other_scores.mean(axis=1))
    rng = np.random.default_rng([seed, 23])
    a, b = scores.astype(np.float32), other_scores.astype(np.float32)
    values = []
    for _ in range(draws):
        # How often each of n draws with replacement picks each row, divided by n.
        times = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float32) / n
        with suppress(NoSavingError):
            values.append(mean_saving(bits, a @ times, other_bits, b @ times)[0])
    low = high = None
    if len(values) >= max(2, _LEAST_DRAWS * draws):
        low, high = map(float, np.quantile(values, [0.025, 0.975]))
    return {"saving": found, "saving_low": low, "saving_high": high, "accuracies": list(accuracies)}


def curve_of(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return the key of a row's curve: method, coding, and the probe's input."""
    return row["method"], row["coding"], row["input"]


def savings(rows: list[dict[str, Any]], values: dict[str, NDArray[np.generic]], *, seed: int) -> list[dict[str, Any]]:
    """Compare our curves of vectors with others.

    The first model is compared with every other curve of two or more points; every model is compared with
    :data:`ALL`, the fewest bits of any method fitted to the same rows at each score. Returns ``saving`` with its
    interval, or ``refused`` with the reason, for each metric, pair of curves and column of bits.
    """
    places: dict[tuple[str, str, str], list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(curve_of(row), []).append(i)
    ours = [curve for curve, at in places.items() if rows[at[0]]["group"] == "ours" and curve[2] == "vectors"]
    theirs = [i for i, row in enumerate(rows) if row["group"] != "ours" and not row["method"].endswith(ELSEWHERE)]
    pairs = [(curve, ALL, theirs) for curve in ours if theirs]
    pairs += [(ours[0], curve, at) for curve, at in places.items() if ours and curve != ours[0] and len(at) > 1]
    found = []
    for metric, scores in values.items():
        for mine, other, at in pairs:
            for column in BITS:
                points = ((np.array([rows[i][column] for i in p]), scores[p]) for p in (places[mine], at))
                entry = {"metric": metric, "ours": mine[0], "against": other[0], "coding": other[1], "bits": column}
                try:
                    found.append(entry | saving(*points, seed=seed))
                except NoSavingError as exc:
                    found.append(entry | {"saving": None, "refused": str(exc)})
    return found


_MARKERS = "osD^v<>PX*hp"
_STYLES = ("-", "--", "-.", ":")
_SHADES = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5a97", "#c77700", "#4d4d4d", "#00868b", "#a0522d")
_LEFT_OUT = ("packed", "files")  # hidden if another coding takes fewer bits
_NOT_SAID = ("packed", "files without fixed headers")  # not in the sentences
_DPI = 150
_PLOTS = {"bits_per_image": "plot", "bits_with_side": "plot-with-side"}


def draw(result: dict[str, Any], kind: str, column: str = "bits_per_image", metric: str = "accuracy") -> bytes:
    """Return a plot of a metric over a column of bits as the bytes of a ``png`` or ``svg`` file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A fixed salt and no date, so that the same result gives the same file.
    with rc_context({"svg.hashsalt": "stochcl", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves(result["rows"]):
            _draw_curve(axes, curve, column, METRICS[metric])
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"bits per image ({_LABELS[column]})")
        axes.set_ylabel(f"accuracy of a {result['probe']} probe, %" if metric == "accuracy" else f"{metric}, %")
        axes.set_title(f"{result['n']['test']:,} test images, {result['classes']:,} classes", loc="left")
        axes.grid(visible=True, alpha=0.3, linewidth=0.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else {"Software": None}
        )
    return buffer.getvalue()


_LABELS = {
    "bits_per_image": "payload",
    "bits_with_side": "with side information over these images",
    "bits_with_side_of_a_million": "with side information over a million images",
}


@dataclass(frozen=True)
class Curve:
    """Joined points and their look."""

    label: str
    rows: list[dict[str, Any]]
    marker: str
    style: str
    shade: str
    filled: bool
    ours: bool


def curves(rows: list[dict[str, Any]]) -> list[Curve]:
    """Return the curves to draw.

    A quantiser fitted to other sources has the marker and colour of the one that is not, hollow and dashed; then no
    other curve is dashed.
    """
    points: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        points.setdefault(curve_of(row), []).append(row)
    codings: dict[str, set[str]] = {}
    for method, coding, _ in points:
        codings.setdefault(method, set()).add(coding)
    two = any(method.endswith(ELSEWHERE) for method in codings)
    free = zip(cycle(_MARKERS), cycle(_STYLES), cycle(_SHADES), strict=False)
    looks: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    found = []
    for (method, coding, given), part in points.items():
        if coding in _LEFT_OUT and len(codings[method]) > 1:
            continue
        base = method.removesuffix(ELSEWHERE), coding, given
        if base not in looks:
            looks[base] = next(free)
        marker, style, shade = looks[base]
        elsewhere, ours = method.endswith(ELSEWHERE), part[0]["group"] == "ours"
        label = f"{method}, {given}" if ours else f"{method}, {coding}" if coding != "packed" else method
        if two:
            style = "--" if elsewhere else "-"
        found.append(Curve(label, part, marker, style, shade, not elsewhere, ours))
    return found


def _draw_curve(axes: Axes, curve: Curve, column: str, key: str) -> None:
    ordered = sorted(curve.rows, key=lambda row: row[column])
    x = [row[column] for row in ordered]
    y = [100 * row[key] for row in ordered]
    low, high = ([100 * abs(row[key] - row[f"{key}_{end}"]) for row in ordered] for end in ("low", "high"))
    look: dict[str, Any] = {"linewidth": 1.1, "markersize": 4.5, "color": curve.shade}
    if curve.ours:
        look = {"linewidth": 2.4, "markersize": 6, "color": "black", "zorder": 5}
    if not curve.filled:
        look["markerfacecolor"] = "white"
    axes.errorbar(
        x, y, yerr=[low, high], label=curve.label, marker=curve.marker,
        linestyle=curve.style if len(ordered) > 1 else "none", elinewidth=0.7, capsize=1.5, **look,
    )  # fmt: skip


COLUMNS = ("method", "code", "stored as", "bits", "+ side", "at a million")
"""Bits per image: payload; with side information over the images here; and over a million."""


def metrics_of(result: dict[str, Any]) -> list[str]:
    """Return the metrics of a result; old results measured only accuracy and have no such field."""
    return list(result.get("metrics", ["accuracy"]))


def columns(result: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of the table."""
    more = {"recall@10": ("symmetric", "error")}
    named = ((metric, "95 % interval", *more.get(metric, ())) for metric in metrics_of(result))
    return (*COLUMNS, *(name for part in named for name in part))


def title(result: dict[str, Any]) -> str:
    """Return the table's title."""
    n = result["n"]
    return (
        f"{n['test']:,} test images of {result['classes']:,} classes, after {n['train']:,} to learn from; "
        f"{result['probe']} probe, bits per image"
    )


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's lines; methods whose process died come last."""
    found = []
    for row in result["rows"]:
        code = row["code"] + (", symbols" if row["input"] == "symbols" else "")
        line = [row["method"], code, row["coding"], *(f"{row[column]:,.1f}" for column in BITS)]
        for key in (METRICS[metric] for metric in metrics_of(result)):
            line += [f"{row[key]:.2%}", f"{row[f'{key}_low']:.1%} to {row[f'{key}_high']:.1%}"]
            if key == "recall":
                error = row["relative_error"]
                line += [f"{row['recall_symmetric']:.1%}", "-" if error is None else f"{error:.4f}"]
        found.append(tuple(line))
    empty = ("",) * (len(columns(result)) - 3)
    return [*found, *((row["method"], row["code"], f"failed: {row['reason']}", *empty)
                      for row in result.get("failed", []))]  # fmt: skip


def summary(result: dict[str, Any]) -> Iterator[str]:
    """Yield sentences: the quantisers' fitting images, and our bits relative to others at equal accuracy."""
    if (fit := result.get("fit")) is not None:
        yield (
            f"'fitted elsewhere' are quantisers fitted, with the tables of their codes, to {fit['images']:,} images "
            f"of {', '.join(fit['sources'])}; the probe learns from the same images as in all other rows"
        )
    yield from _comparisons(result)


def _comparisons(result: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each curve compared with ours, and one for each reason why a curve is not."""
    found: dict[tuple[str, str, str, str], dict[str, dict[str, Any]]] = {}
    codings: dict[str, set[str]] = {}
    for entry in result["savings"]:
        named = entry.get("metric", "accuracy"), entry["ours"], entry["against"], entry["coding"]
        found.setdefault(named, {})[entry["bits"]] = entry
        codings.setdefault(entry["against"], set()).add(entry["coding"])
    refused: dict[tuple[str, str], list[str]] = {}
    for (metric, ours, against, coding), entries in found.items():
        if coding in _NOT_SAID and len(codings[against]) > 1:
            continue
        payload, million = entries[BITS[0]], entries[BITS[2]]
        name = f"{against} ({coding})" if coding not in ("packed", ALL[1]) else against
        if payload["saving"] is None or million["saving"] is None:
            reason = payload.get("refused") or million["refused"]
            refused.setdefault((metric, reason), []).append(name)
            continue
        low, high = payload["accuracies"]
        if high - low < _NARROW:
            refused.setdefault((metric, "they share less than a point."), []).append(name)
            continue
        at = f"at equal {metric}, {low:.1%} to {high:.1%}"
        few = _factor(payload, f"times the bits of {name} in payload")
        of = f"{ours}: " if ours != result["savings"][0]["ours"] else ""
        yield f"{of}{few}, {_factor(million, 'times at a million images')}; {at}"
    for (metric, reason), names in refused.items():
        yield f"not compared by {metric} with {', '.join(names)}: {reason}"


def _factor(entry: dict[str, Any], of: str) -> str:
    """Return our bits as a multiple of another's, with the interval."""
    factor = f"{1 - entry['saving']:.2f} {of}"
    if entry["saving_low"] is None:
        return factor
    return f"{factor} (95 % interval {1 - entry['saving_high']:.2f} to {1 - entry['saving_low']:.2f})"


def write_all(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``results.json``, ``results.csv``, plots and ``results.html``; return their paths."""
    paths = write_results(result, folder, NAME)
    plots, shown = {}, []
    for metric in metrics_of(result):
        for column, name in _PLOTS.items():
            path = folder / (name if metric == "accuracy" else f"{name}-{METRICS[metric]}")
            plots[path.with_suffix(".svg")] = draw(result, "svg", column, metric)
            plots[path.with_suffix(".png")] = draw(result, "png", column, metric)
            shown.append(plots[path.with_suffix(".svg")].decode())
    plots[folder / f"{NAME}.html"] = html(result, shown).encode()
    return [*paths, *write_files(plots)]


def html(result: dict[str, Any], plots: list[str]) -> str:
    """Return the page: plots, sentences, the table, and the facts of the measurement."""
    from markupsafe import Markup

    facts = [
        ("command", result["command"]),
        ("commit", result["commit"] or "not a checkout"),
        ("seed", result["seed"]),
        ("precision", result["precision"]),
        *result["hardware"].items(),
        *result["versions"].items(),
    ]
    return render(
        "results.html", heading="Bits per image against accuracy", title=title(result),
        plots=[Markup(plot[plot.index("<svg") :]) for plot in plots], summary=summary(result),
        columns=columns(result), rows=lines(result), notes=result["left_out"], facts=facts,
    )  # fmt: skip
