"""Quantisers fitted to images that the probe never learns from, beside those fitted to the images that it does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stochcl.benchmarks import probes
from stochcl.benchmarks import rate_accuracy as rate
from stochcl.benchmarks.curves import curves, summary, write_all
from stochcl.benchmarks.inputs import BASELINES, RateAccuracyConfig, read_inputs
from stochcl.benchmarks.probes import price
from stochcl.benchmarks.rate_accuracy import encode_part
from stochcl.benchmarks.run import Cache, to_csv
from stochcl.data import open_source
from stochcl.errors import SourceError, UsageError
from tests.making import make_head, make_pixels

TRAINING = "training images"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """300 images of noise, of two classes."""
    folder = tmp_path_factory.mktemp("elsewhere") / "noise"
    for i in range(300):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_pixels(i, i)).save(path)
    return folder


@pytest.fixture(scope="module")
def plain(model):
    """A request without anything fitted elsewhere."""
    return RateAccuracyConfig(
        (Path("digits"),), model=(str(model),), ladder=(8,), bits=(8, 12, 16, 20), train_images=300, test_images=150,
        baselines=("float32", "int8", "itq", "pca-scalar", "jpeg"), seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(plain, other, tmp_path_factory):
    """A run without images to fit to elsewhere, one with them in the same folder, and what the second kept there."""
    folder = tmp_path_factory.mktemp("results")
    before = rate.benchmark_rate_accuracy(plain, folder)
    kept = {path.name for path in (folder / "cache").iterdir()}
    after = rate.benchmark_rate_accuracy(replace(plain, fit_to=(other,), fit_images=280), folder)
    return before, after, {path.name for path in (folder / "cache").iterdir()} - kept


def elsewhere(row):
    return row["method"].endswith(" fitted elsewhere")


def test_quantisers_are_there_twice_and_nothing_else_changes(runs):
    before, after, added = runs
    assert "fit" not in before
    assert not any("fitted_to" in row for row in before["rows"])
    assert [
        {k: v for k, v in row.items() if k != "fitted_to"} for row in after["rows"] if not elsewhere(row)
    ] == before["rows"]  # to the second: they are the kept ones
    here = [row for row in before["rows"] if row["group"] == "quantisers"]
    again = [row for row in after["rows"] if elsewhere(row)]
    assert {row["group"] for row in again} == {"quantisers"}
    told = ("code", "input", "coding")
    assert [tuple(row[key] for key in told) for row in again] == [tuple(row[key] for key in told) for row in here]
    assert len(added) == 1 + 2 * 4  # the other images' features, and two quantisers at four sizes
    assert after["n"] == before["n"]


def test_rows_say_what_they_were_fitted_to(runs):
    _, after, _ = runs
    assert after["fit"] == {"sources": ["noise"], "images": 280, "hold_out": 0}
    for row in after["rows"]:
        fitted = {"ours": None, "pixels": None, "quantisers": "noise" if elsewhere(row) else TRAINING}
        expected = fitted.get(row["group"], TRAINING if row["method"] == "int8" else None)
        assert row["fitted_to"] == expected
    assert len(to_csv(after).splitlines()) == 1 + len(after["rows"])


def test_every_curve_has_its_saving(runs):
    before, after, _ = runs
    found = {(entry["against"], entry["coding"], entry["bits"]): entry for entry in after["savings"]}
    for entry in before["savings"]:
        assert found[entry["against"], entry["coding"], entry["bits"]] == entry
    for method in ("ITQ", "PCA scalar"):
        for coding in ("packed", "linear"):
            assert (f"{method} fitted elsewhere", coding, "bits_with_side") in found
    said = list(summary(after))
    assert (
        "'fitted elsewhere' are quantisers fitted, with the tables of their codes, to 280 images of noise" in said[0]
    )
    assert "elsewhere" not in "".join(summary(before))


@pytest.mark.parametrize("name", ["itq", "pca-scalar"])
def test_quantiser_and_tables_are_fitted_to_the_other_images_and_the_probe_to_its_own(
    runs, plain, other, codec, name
):
    _, after, _ = runs
    inputs = read_inputs(replace(plain, fit_to=(other,), fit_images=280))
    cache = Cache(other.parent / "cache")
    train, test, fit = (
        encode_part(codec, part, cache, lambda done, total: None).features
        for part in (inputs.train, inputs.test, inputs.fit)
    )
    method = BASELINES[name].fit(fit, 12, 1)
    codes = method.codes(test)
    right, _ = probes.answers(
        "logistic", method.vectors(method.codes(train)), inputs.train.labels, method.vectors(codes),
        inputs.test.labels, seed=1,
    )  # fmt: skip
    size, of_model = price(method.codes(fit), codes, "linear", 1)
    rows = [row for row in after["rows"] if elsewhere(row) and row["code"] == "12 bits"]
    (row,) = (r for r in rows if r["coding"] == "linear" and r["method"].startswith(BASELINES[name].name))
    assert row["accuracy"] == right.mean()
    assert row["bytes"] == size
    assert row["side_bytes"] == method.side_bytes + of_model


def test_the_images_are_chosen_by_the_seed_and_without_those_held_out(plain, other):
    asked = replace(plain, fit_to=(other,), fit_images=200)
    fit = read_inputs(asked).fit
    assert len(fit) == len(set(fit.rows)) == 200
    assert (read_inputs(asked).fit.rows == fit.rows).all()
    assert (read_inputs(replace(asked, seed=2)).fit.rows != fit.rows).any()
    inputs = read_inputs(plain)
    assert inputs.fit is None
    assert (read_inputs(asked).train.rows == inputs.train.rows).all()
    assert (read_inputs(asked).test.rows == inputs.test.rows).all()

    from stochcl.data import held_out

    kept = read_inputs(replace(asked, fit_images=20_000, fit_hold_out=30)).fit
    assert kept.rows.tolist() == np.flatnonzero(~held_out(open_source(other).entries, 30)).tolist()
    twice = read_inputs(replace(asked, fit_to=(other, other), fit_images=20_000, fit_hold_out=30)).fit
    assert twice.rows.tolist() == [*kept.rows, *(300 + kept.rows)]


def test_other_images_are_measured_anew(plain, other, tmp_path):
    few = replace(plain, baselines=("itq",), bits=(8,), fit_to=(other,))
    for images, expected in ((100, 3 + 2 + 2), (100, 7), (120, 7 + 2)):
        rate.benchmark_rate_accuracy(replace(few, fit_images=images), tmp_path)
        assert len(list((tmp_path / "cache").iterdir())) == expected


def test_what_too_few_images_cannot_fit_is_left_out_by_its_name(plain, other, tmp_path):
    few = replace(plain, baselines=("itq", "pca-scalar"), bits=(8,), fit_to=(other,), fit_images=100)
    result = rate.benchmark_rate_accuracy(few, tmp_path)
    (line,) = result["left_out"]
    assert line.startswith("left out: PCA scalar fitted elsewhere (8 bits): ")
    assert "got 100" in line
    write_all(result, tmp_path)


def test_both_curves_of_a_method_look_alike_but_for_dashes(runs):
    before, after, _ = runs
    looks = {curve.label: curve for curve in curves(after["rows"])}
    for name in ("ITQ", "PCA scalar"):
        here, there = looks[f"{name}, linear"], looks[f"{name} fitted elsewhere, linear"]
        assert (here.marker, here.shade) == (there.marker, there.shade)
        assert (here.style, there.style) == ("-", "--")
        assert here.filled
        assert not there.filled
    alone = {curve.label: curve for curve in curves(before["rows"])}
    assert {label: (curve.marker, curve.shade) for label, curve in alone.items()} == {
        label: (curve.marker, curve.shade) for label, curve in looks.items() if "elsewhere" not in label
    }


def test_the_command(plain, other):
    assert "--fit-to" not in plain.command
    asked = replace(plain, fit_to=(other, Path("/a/b c.zip")), fit_images=500, fit_hold_out=20).command
    assert "--fit-to noise --fit-to 'b c.zip' --fit-images 500 --fit-hold-out 20" in asked
    assert "--fit-images" not in replace(plain, fit_to=(other,)).command


@pytest.fixture
def matrices(tmp_path, rng):
    """A request of a matrix, with another one to fit to."""
    x = rng.normal(size=(400, 6)).astype(np.float32)
    labels = np.arange(400) % 4
    x += labels[:, None]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", labels)
    np.save(tmp_path / "fit.npy", rng.normal(size=(300, 6)).astype(np.float32))
    np.save(tmp_path / "wide.npy", rng.normal(size=(300, 7)).astype(np.float32))
    head = make_head(tmp_path / "head.safetensors", x)
    return RateAccuracyConfig(
        (tmp_path / "x.npy",), labels=tmp_path / "y.npy", model=(str(head),), ladder=(8,), bits=(4,),
        baselines=("itq",), fit_to=(tmp_path / "fit.npy",),
    )  # fmt: skip


def test_a_matrix_without_labels_will_do(matrices, tmp_path):
    result = rate.benchmark_rate_accuracy(matrices, tmp_path / "out")
    assert {row["fitted_to"] for row in result["rows"] if row["group"] == "quantisers"} == {TRAINING, "fit.npy"}
    assert result["fit"] == {"sources": ["fit.npy"], "images": 300, "hold_out": 0}
    assert json.dumps(result)


def test_matrices_that_do_not_serve(matrices, tmp_path, other):
    for changes, kind, said in (
        (
            {"fit_to": (tmp_path / "wide.npy",)},
            SourceError,
            "wide.npy: these rows have 7 columns, and those of .*x.npy have 6",
        ),
        ({"fit_to": (other,)}, UsageError, "one a matrix"),
        (
            {"fit_to": (tmp_path / "fit.npy", tmp_path / "wide.npy")},
            UsageError,
            "give files of one kind",
        ),
        ({"fit_hold_out": 3}, UsageError, "a matrix has none"),
    ):
        with pytest.raises(kind, match=said):
            rate.benchmark_rate_accuracy(replace(matrices, **changes), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"baselines": ("features", "jpeg")},
            "fit_to .* baselines names none",
        ),
        ({"baselines": ("none",)}, "baselines names none"),
        ({"fit_to": (), "fit_images": 100}, "fit_images and fit_hold_out need fit_to"),
        ({"fit_to": (), "fit_hold_out": 1}, "fit_images and fit_hold_out need fit_to"),
        ({"fit_images": 1}, "fit_images must be at least 2"),
        ({"fit_hold_out": -1}, "fit_hold_out must be at least 0"),
        ({"fit_to": (Path("digits"),)}, "digits: this source is also measured on; give fit_to other images"),
    ],
)
def test_requests_that_make_no_sense(plain, other, tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        rate.benchmark_rate_accuracy(replace(plain, **{"fit_to": (other,)} | change), tmp_path)


def test_sources_that_hold_out_everything(plain, other, tmp_path):
    with pytest.raises(SourceError, match="noise: this leaves 0 images to fit quantisers to"):
        rate.benchmark_rate_accuracy(replace(plain, fit_to=(other,), fit_hold_out=150), tmp_path)
