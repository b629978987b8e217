"""Bits against accuracy on digits: every kind of row, what is kept for another run, and what is refused."""

import csv
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stochcl import Codec
from stochcl.benchmarks import curves
from stochcl.benchmarks import rate_accuracy as rate
from stochcl.benchmarks.baselines import Itq
from stochcl.benchmarks.inputs import (
    BASELINES,
    FORMATS,
    PixelCode,
    RateAccuracyConfig,
    bare_bytes,
    read_inputs,
)
from stochcl.errors import ModelError, SourceError, UsageError
from tests.making import make_head

SOME = ("features", "itq", "pca-scalar", "jpeg")
KEYS = {
    "method", "group", "code", "input", "coding", "bytes", "side_bytes", "bits_per_image", "bits_with_side",
    "bits_with_side_of_a_million", "accuracy", "accuracy_low", "accuracy_high", "chosen", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """650 digits as folders of classes."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for i, (image, label) in enumerate(zip(data.images[:650], data.target[:650], strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        pixels = Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16))
        pixels.convert("RGB").save(folder / str(label) / f"{i:04}.png")
    return folder


@pytest.fixture(scope="module")
def request_of(digits, model):
    return RateAccuracyConfig((digits,), model=(str(model),), bits=(8, 16, 24, 32), beam=(4,), baselines=SOME, seed=1)


@pytest.fixture(scope="module")
def run(request_of, tmp_path_factory):
    """One run of everything: its result, and its folder."""
    folder = tmp_path_factory.mktemp("results")
    said = []
    result = rate.benchmark_rate_accuracy(request_of, folder, say=said.append)
    curves.write_all(result, folder)
    assert result["left_out"] == said
    return result, folder


def test_every_kind_of_row_is_there(run):
    result, _ = run
    assert result["schema"] == "stochcl.benchmark.rate-accuracy/0"
    assert result["n"] == {"train": 520, "test": 130, "queries": 130}
    assert all(set(row) == KEYS for row in result["rows"])
    groups = {group: {row["method"] for row in result["rows"] if row["group"] == group} for group in
              ("ours", "features", "quantisers", "pixels")}  # fmt: skip
    assert groups["ours"] == {"tiny"}
    assert groups["features"] == {"float32", "float16", "int8", "RaBitQ", "binary"}
    assert groups["quantisers"] == {"ITQ", "PCA scalar"}
    assert groups["pixels"] == {"JPEG pixels"}
    for row in result["rows"]:
        assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
        side = row["side_bytes"] * 8
        assert row["bits_per_image"] == pytest.approx(row["bytes"] * 8 / 130, abs=1e-3)
        assert row["bits_with_side"] == pytest.approx(row["bits_per_image"] + side / 650, abs=2e-3)
        assert row["bits_with_side_of_a_million"] == pytest.approx(row["bits_per_image"] + side / 1e6, abs=2e-3)


def test_features_cost_what_numbers_cost_and_lose_little(run):
    features = (row for row in run[0]["rows"] if row["group"] == "features")
    rows = {row["method"]: row for row in features if row["coding"] == "packed"}
    width = run[0]["features"]
    assert [rows[name]["bits_per_image"] for name in ("float32", "float16", "int8")] == [
        32 * width,
        16 * width,
        8 * width,
    ]
    assert rows["float16"]["accuracy"] == pytest.approx(rows["float32"]["accuracy"], abs=0.03)
    assert rows["float32"]["accuracy"] > 0.3  # ten classes, an untrained network


def test_ours_are_the_sizes_of_real_files_at_every_rung(run, codec):
    ours = [row for row in run[0]["rows"] if row["group"] == "ours"]
    ladder = codec.tables.ladder
    assert [row["code"] for row in ours] == [*(f"{k} latents" for k in ladder), f"{ladder[-1]} latents"]
    assert [row["input"] for row in ours] == ["vectors"] * len(ladder) + ["symbols"]
    assert all(row["side_bytes"] == len(codec.tables.data) for row in ours)
    assert all(a["bytes"] < b["bytes"] for a, b in pairwise(ours[:-1]))


def test_another_run_measures_nothing_again(run, request_of, monkeypatch):
    result, folder = run

    def never(*args, **kwargs):
        for code in (each for each in args if isinstance(each, PixelCode)):
            code.need()  # a row without its library is asked for again, and left out again
        raise AssertionError("this was measured before")

    for name in ("of_codes", "of_baseline", "of_pixels"):
        monkeypatch.setattr(rate, name, never)
    again = rate.benchmark_rate_accuracy(request_of, folder)
    assert again["rows"] == result["rows"]
    assert again["savings"] == result["savings"]


def test_a_row_that_depends_on_something_else_is_measured_again(run, request_of):
    _, folder = run
    before = {path.name for path in (folder / "cache").iterdir()}
    other = replace(request_of, baselines=("none",), ladder=(8,), probe="knn")
    rate.benchmark_rate_accuracy(other, folder)
    added = {path.name for path in (folder / "cache").iterdir()} - before
    assert len(added) == 2  # vectors and symbols; the encoded images are the same


def test_an_interrupted_run_keeps_what_it_has_done(request_of, tmp_path):
    small = replace(request_of, baselines=("float32", "float16"), ladder=(8,))

    def stop(done, total, note):
        if note.startswith("float16"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rate.benchmark_rate_accuracy(small, tmp_path, progress=stop)
    kept = len(list((tmp_path / "cache").iterdir()))
    assert kept == 2 + 3  # two parts, three rows
    result = rate.benchmark_rate_accuracy(small, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == kept + 1
    assert [row["method"] for row in result["rows"]] == ["tiny", "tiny", "float32", "float16"]


def test_the_files(run):
    result, folder = run
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(result))
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["rows"])
    assert {"bits_per_image", "accuracy", "seed", "command", "hardware"} <= set(rows[0])
    assert Image.open(io.BytesIO((folder / "plot.png").read_bytes())).size[0] > 800
    ET.parse(folder / "plot.svg")
    page = (folder / "results.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is loaded
    for row in result["rows"]:
        assert row["method"] in page


def test_savings_are_given_or_refused_with_a_reason(run):
    found = run[0]["savings"]
    there = {curves.curve_of(row) for row in run[0]["rows"]}
    assert {(entry["against"], entry["coding"]) for entry in found} <= {(m, c) for m, c, _ in [*there, curves.ALL]}
    for entry in found:
        assert ("refused" in entry) == (entry["saving"] is None)
    assert {entry["bits"] for entry in found} == set(curves.BITS)


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_pixel_code_gives_back_an_image_and_counts_its_bytes(kind):
    code = PixelCode(kind, 8)
    try:
        code.need()
    except Exception as exc:
        pytest.skip(str(exc))
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = (200, 60, 30)
    back, size, bare = code.code(pixels)
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels)[:, [4, 28]].mean() < 40
    assert 0 < bare <= size
    flat = code.code(np.full_like(pixels, 90))
    assert flat[2] <= bare


def test_bytes_that_are_no_headers():
    jpeg = b"\xff\xd8" + b"\xff\xdb\x00\x04ab" + b"\xff\xda\x00\x04cd" + b"scan!" + b"\xff\xd9"
    assert bare_bytes("jpeg", jpeg) == 5
    assert bare_bytes("webp", b"x" * 50) == 20
    box = (12).to_bytes(4, "big") + b"ftyp" + b"1234"
    media = (0).to_bytes(4, "big") + b"mdat" + b"payload"
    assert bare_bytes("avif", box + media) == 7


def test_a_split_has_every_class_and_no_image_twice(request_of):
    inputs = read_inputs(request_of)
    assert not set(inputs.train.rows) & set(inputs.test.rows)
    assert set(inputs.test.labels) == set(inputs.train.labels)
    assert (read_inputs(request_of).test.rows == inputs.test.rows).all()
    assert (read_inputs(replace(request_of, seed=2)).test.rows != inputs.test.rows).any()
    fewer = read_inputs(replace(request_of, train_images=100, test_images=50))
    assert (len(fewer.train), len(fewer.test)) == (100, 50)


def test_the_held_out_split_is_that_of_training(request_of, digits):
    from stochcl.data import held_out, open_source

    entries = open_source(digits).entries
    inputs = read_inputs(replace(request_of, sources=(digits, digits), hold_out=5))
    mask = held_out(entries, 5)
    expected = np.concatenate([np.flatnonzero(mask), len(entries) + np.flatnonzero(mask)])
    assert inputs.test.rows.tolist() == expected.tolist()
    assert len(inputs.train) == 2 * (len(entries) - 50)
    own = read_inputs(replace(request_of, sources=(Path("digits"),), hold_out=30))
    assert (len(own.train), len(own.test)) == (1497, 300)


def test_a_matrix_and_its_labels(tmp_path, rng):
    from stochcl.api.train import train

    centres = rng.normal(size=(4, 6))
    labels = np.arange(400) % 4
    np.save(tmp_path / "x.npy", (centres[labels] + 0.3 * rng.normal(size=(400, 6))).astype(np.float32))
    np.save(tmp_path / "y.npy", labels)
    head = tmp_path / "head.safetensors"
    train([tmp_path / "x.npy"], head, latents=16, latent_steps=20, entropy="independent", device="cpu")
    request = RateAccuracyConfig(
        (tmp_path / "x.npy",), labels=tmp_path / "y.npy", model=(str(head),), bits=(4,), baselines=("float32", "itq")
    )
    result = rate.benchmark_rate_accuracy(request, tmp_path / "out")
    assert {row["method"] for row in result["rows"]} == {"head", "float32", "ITQ"}
    assert max(row["accuracy"] for row in result["rows"] if row["method"] == "float32") > 0.9
    with pytest.raises(UsageError, match=r"takes a model that was trained on such rows"):
        rate.benchmark_rate_accuracy(replace(request, model=()), tmp_path / "out")
    with pytest.raises(UsageError, match=r"no labels of its own; give them with labels"):
        rate.benchmark_rate_accuracy(replace(request, labels=None), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe": "forest"}, "probe must be .* got 'forest'"),
        ({"baselines": ("gif",)}, "baselines must be .* got 'gif'"),
        ({"baselines": ("all", "opq")}, "stand alone"),
        ({"ladder": (0,)}, "ladder must be at least 1"),
        ({"hold_out": 3, "test": Path("x")}, "both name what to score on"),
        ({"sources": ()}, "name a source"),
        ({"ladder": (99,)}, "has 32 latents, not 99"),
        ({"train_images": 1}, "train_images must be at least 2"),
    ],
)
def test_requests_that_make_no_sense(request_of, tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        rate.benchmark_rate_accuracy(replace(request_of, **change), tmp_path)


def test_sources_that_do_not_serve(request_of, tmp_path, digits):
    one = tmp_path / "one"
    (one / "a").mkdir(parents=True)
    for i, path in enumerate(sorted((digits / "0").iterdir())[:4]):
        (one / "a" / f"{i}.png").write_bytes(path.read_bytes())
    with pytest.raises(SourceError, match="a classifier needs two classes"):
        rate.benchmark_rate_accuracy(replace(request_of, sources=(one,)), tmp_path / "out")
    with pytest.raises((UsageError, ModelError)):
        rate.benchmark_rate_accuracy(replace(request_of, model=("nothing.safetensors",)), tmp_path / "out")


class Dying(Itq):
    """A native baseline that crashes."""

    name = "OPQ"
    native = True

    @classmethod
    def fit(cls, train, bits, seed):
        os.abort()


def test_a_baseline_that_dies_is_a_row_and_takes_nothing_down(request_of, tmp_path, monkeypatch):
    monkeypatch.setitem(BASELINES, "opq", Dying)
    said = []
    asked = replace(request_of, baselines=("float32", "opq"), ladder=(8,), bits=(8,))
    result = rate.benchmark_rate_accuracy(asked, tmp_path, say=said.append)
    assert [row["method"] for row in result["rows"]] == ["tiny", "tiny", "float32"]
    (died,) = result["failed"]
    assert (died["method"], died["code"]) == ("OPQ", "8 bits")
    assert "SIGABRT" in died["reason"]
    assert "SIGABRT" in said[0]
    curves.write_all(result, tmp_path)
    assert "SIGABRT" in (tmp_path / "results.html").read_text()
    assert "SIGABRT" in (tmp_path / "results.csv").read_text()


def test_recall_and_map_have_their_rows_curves_and_plots(request_of, tmp_path):
    asked = replace(request_of, baselines=("float32", "itq"), metric=("recall@10", "map@1000"), queries=50)
    result = rate.benchmark_rate_accuracy(asked, tmp_path)
    assert result["n"]["queries"] == 50
    for row in result["rows"]:
        for key in ("recall", "map"):
            assert 0 <= row[f"{key}_low"] <= row[key] <= row[f"{key}_high"] <= 1
        assert "accuracy" not in row
    exact = next(row for row in result["rows"] if row["method"] == "float32")
    assert (exact["recall"], exact["relative_error"]) == (1, 0)
    assert {entry["metric"] for entry in result["savings"]} == {"recall", "map"}
    names = {path.name for path in curves.write_all(result, tmp_path)}
    assert {"plot-recall.svg", "plot-map.png"} <= names
    assert {len(line) for line in curves.lines(result)} == {len(curves.columns(result))}


def test_vectors_of_ours_are_judged_in_the_units_of_the_others(tmp_path, rng):
    """Queries are standardised rows, so decoded vectors must be so, too, whatever the matrix is measured in."""
    x = (rng.normal(size=(300, 6)) * np.array([3, 2, 1, 1, 1, 1]) / 50 + 0.5).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    head = make_head(tmp_path / "head.safetensors", x)
    asked = RateAccuracyConfig((tmp_path / "x.npy",), model=(str(head),), bits=(8,), baselines=("itq",),
                               metric=("recall@10",), ladder=(16,))  # fmt: skip
    ours = next(r for r in rate.benchmark_rate_accuracy(asked, tmp_path / "out")["rows"] if r["group"] == "ours")
    inputs, codec = read_inputs(asked), Codec(str(head))
    rows = inputs.test.source[inputs.test.rows]
    decoded = codec.decode(codec.encode(rows, latents=16))
    mean = inputs.train.source[inputs.train.rows].mean(axis=0)
    lost = np.square(rows - decoded).sum() / np.square(rows - mean).sum()
    assert ours["relative_error"] == pytest.approx(lost, rel=1e-3)


def test_recall_of_a_matrix_needs_no_labels(tmp_path, rng):
    x = rng.normal(size=(80, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x[:, :5])
    np.save(tmp_path / "few.npy", x[:10])
    head = make_head(tmp_path / "head.safetensors", x)
    asked = RateAccuracyConfig((tmp_path / "x.npy",), model=(str(head),), bits=(4,), baselines=("float32", "itq"),
                               metric=("recall@10",), ladder=(8,))  # fmt: skip
    result = rate.benchmark_rate_accuracy(asked, tmp_path / "out")
    assert {row["method"] for row in result["rows"]} == {"head", "float32", "ITQ"}
    for test, said in (("y.npy", "5 columns"), ("few.npy", "more than 10")):
        with pytest.raises(SourceError, match=said):
            rate.benchmark_rate_accuracy(replace(asked, test=tmp_path / test), tmp_path / "out")
    np.save(tmp_path / "images.npy", np.zeros((20, 4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="one a matrix"):
        rate.benchmark_rate_accuracy(replace(asked, test=tmp_path / "images.npy"), tmp_path / "out")
