"""The figure that sums up two curves, what is said of it, and results that were recorded before."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.benchmarks import curves
from stochcl.benchmarks.curves import NoSavingError, mean_saving, pareto, saving

ACCURACY = np.array([0.2, 0.31, 0.4, 0.46, 0.5, 0.52])
BITS = np.array([7.0, 12, 25, 60, 110, 300])


@given(st.floats(0.05, 20))
@settings(max_examples=30, deadline=None)
def test_a_curve_that_costs_so_many_times_as_much_saves_so_much(factor):
    found, span = mean_saving(BITS, ACCURACY, factor * BITS, ACCURACY)
    assert found == pytest.approx(1 - 1 / factor)
    assert span == (0.2, 0.52)
    back, _ = mean_saving(factor * BITS, ACCURACY, BITS, ACCURACY)
    assert (1 - found) * (1 - back) == pytest.approx(1)


def test_straight_lines_have_the_mean_of_their_distance():
    # log2 bits are 3 + 10 a and 4 + 12 a, so that the distance at a is 1 + 2 a: 1.5 in the mean over 0 to 0.5.
    a = np.linspace(0, 0.5, 9)
    found, _ = mean_saving(2 ** (3 + 10 * a), a, 2 ** (4 + 12 * a), a)
    assert found == pytest.approx(1 - 2**-1.5)


def test_only_the_range_that_both_reach_counts():
    a = np.linspace(0.1, 0.5, 9)
    higher = np.linspace(0.3, 0.7, 9)
    found, span = mean_saving(2 ** (10 * a), a, 2 ** (1 + 10 * higher), higher)
    assert span == (pytest.approx(0.3), pytest.approx(0.5))
    assert found == pytest.approx(0.5)
    with pytest.raises(NoSavingError, match="no accuracy that both"):
        mean_saving(BITS, ACCURACY, BITS, ACCURACY + 0.4)


def test_points_that_a_cheaper_one_beats_do_not_count():
    assert pareto([1, 2, 3, 4], [0.1, 0.3, 0.2, 0.3]).tolist() == [0, 1]
    assert pareto([4, 1, 1], [0.5, 0.2, 0.4]).tolist() == [2, 0]
    worse = np.append(BITS, [80, 500]), np.append(ACCURACY, [0.3, 0.5])
    assert mean_saving(*worse, 2 * BITS, ACCURACY)[0] == pytest.approx(0.5)


def test_too_few_points_are_refused():
    with pytest.raises(NoSavingError, match="needs 4 points"):
        mean_saving(BITS[:3], ACCURACY[:3], BITS, ACCURACY)
    with pytest.raises(NoSavingError, match="needs 4 points"):
        mean_saving(BITS, ACCURACY, BITS, ACCURACY[::-1])
    with pytest.raises(NoSavingError, match="more than 0"):
        mean_saving([0, 1, 2, 3], ACCURACY[:4], BITS, ACCURACY)


def right_of(accuracy, n, rng):
    """Rows that a point with more accuracy gets right wherever one with less does, all but a few."""
    difficulty = rng.permutation(n) / n
    return difficulty[None, :] + rng.normal(0, 0.02, (len(accuracy), n)) < np.asarray(accuracy)[:, None]


def test_the_interval_holds_the_figure_and_narrows_with_rows(rng):
    widths = []
    for n in (400, 6400):
        a, b = (BITS, right_of(ACCURACY, n, rng)), (1.6 * BITS, right_of(ACCURACY, n, rng))
        found = saving(a, b, seed=1, draws=200)
        assert found["saving_low"] < found["saving"] < found["saving_high"]
        assert found["saving_low"] < 1 - 1 / 1.6 < found["saving_high"]
        widths.append(found["saving_high"] - found["saving_low"])
    assert widths[1] < widths[0] / 2


def test_the_same_seed_gives_the_same_interval(rng):
    a, b = (BITS, right_of(ACCURACY, 300, rng)), (2 * BITS, right_of(ACCURACY, 300, rng))
    assert saving(a, b, seed=3, draws=50) == saving(a, b, seed=3, draws=50)
    assert saving(a, b, seed=3, draws=50) != saving(a, b, seed=4, draws=50)
    with pytest.raises(NoSavingError, match="same test rows"):
        saving(a, (BITS, right_of(ACCURACY, 200, rng)))


def test_the_best_of_all_others_is_at_each_accuracy_the_cheapest(rng):
    methods = {
        "ours": BITS, "second": 0.9 * BITS, "below": np.where(ACCURACY < 0.45, 2, 5) * BITS,
        "above": np.where(ACCURACY < 0.45, 5, 2) * BITS, "RQ fitted elsewhere": BITS / 9,
    }  # fmt: skip
    rows = [
        {
            "method": name, "coding": "linear", "input": "vectors",
            "group": "ours" if name in ("ours", "second") else "quantisers",
            **dict.fromkeys(curves.BITS, bits),
        }
        for name, all_bits in methods.items() for bits in all_bits.tolist()
    ]  # fmt: skip
    values = {"accuracy": np.tile(right_of(ACCURACY, 2000, rng), (len(methods), 1))}
    found = {(entry["ours"], entry["against"]): entry for entry in curves.savings(rows, values, seed=0)}
    assert found["ours", curves.ALL[0]]["saving"] == pytest.approx(0.5)
    assert found["second", curves.ALL[0]]["saving"] == pytest.approx(0.55)
    assert found["ours", "below"]["saving"] > 0.5
    assert ("second", "below") not in found


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "rate-accuracy"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_results_are_drawn_and_said(path):
    result = json.loads(path.read_text("utf-8"))
    assert curves.draw(result, "svg").startswith(b"<?xml")
    assert len(curves.lines(result)) == len(result["rows"])
    assert {len(line) for line in curves.lines(result)} == {len(curves.columns(result))}
    assert bool(list(curves.summary(result))) == bool(result["savings"])


def entry(against, saved, *, coding="linear", bits="bits_per_image", low=0.3, high=0.6, **more):
    interval = {"saving_low": saved - 0.1, "saving_high": saved + 0.1, "accuracies": [low, high]}
    named = {"ours": "o", "against": against, "coding": coding, "bits": bits}
    return named | {"saving": saved} | interval | more


def said(*entries):
    return list(curves.summary({"savings": entries}))


def test_savings_are_said_as_factors_of_payload_and_at_a_million():
    columns = curves.BITS
    found = said(*(entry("OPQ", 1 - factor, bits=bits) for bits, factor in zip(columns, (0.8, 62, 1.2), strict=True)))
    assert found == [
        (
            "0.80 times the bits of OPQ (linear) in payload (95 % interval 0.70 to 0.90), 1.20 times at a million "
            "images (95 % interval 1.10 to 1.30); at equal accuracy, 30.0% to 60.0%"
        )
    ]  # and nothing of the 62 times that tables spread over a few images make


def test_the_best_of_all_others_is_said_of_every_model():
    pairs = [entry(curves.ALL[0], 0.5, coding=curves.ALL[1], bits=bits) for bits in curves.BITS]
    first, second = said(*pairs, *(pair | {"ours": "p"} for pair in pairs))
    assert first.startswith("0.50 times the bits of the best of all others in payload")
    assert second.startswith("p: 0.50 times")


def test_what_means_nothing_is_not_said():
    everything = [
        entry(name, 0.5, bits=bits, coding=coding, **more)
        for name, coding, more in (
            ("PQ", "packed", {}), ("PQ", "linear", {}), ("near", "linear", {"high": 0.305}),
            ("few", "linear", {"saving": None, "refused": "measure more."}),
            ("two", "linear", {"saving": None, "refused": "measure more."}),
        )
        for bits in curves.BITS
    ]  # fmt: skip
    (one, *refused) = said(*everything)
    assert "PQ (linear)" in one
    assert refused == [
        "not compared by accuracy with near (linear): they share less than a point.",
        "not compared by accuracy with few (linear), two (linear): measure more.",
    ]


def test_a_death_is_a_line_of_the_table():
    result = {"rows": [], "failed": [{"method": "OPQ", "code": "8 bits", "reason": "signal SIGABRT"}]}
    (line,) = curves.lines(result)
    assert line[:3] == ("OPQ", "8 bits", "failed: signal SIGABRT")
    assert len(line) == len(curves.columns(result))
