"""Drift: rows of a kind that a model was not trained on are told by what their codes cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import stochcl
from stochcl.api.append import append
from stochcl.api.evaluate import code_bits
from stochcl.api.summary import Drift
from stochcl.api.train import train
from stochcl.data import SubsetSource, open_source
from stochcl.data.builtin import DigitsSource

RNG = np.random.default_rng(6)
CENTRES = 5 * RNG.normal(size=(40, 16)).astype(np.float32)
SHARES = 0.85 ** np.arange(40)
FIRST = 8  # latents of the first word
IMAGES = 400


def rows(kinds: np.ndarray) -> np.ndarray:
    return (CENTRES[kinds] + RNG.normal(size=(len(kinds), 16))).astype(np.float32)


USUAL = rows(RNG.choice(40, 3000, p=SHARES / SHARES.sum()))
MORE = rows(RNG.choice(40, 500, p=SHARES / SHARES.sum()))
OTHER = (5 * RNG.normal(size=16) + RNG.normal(size=(500, 16))).astype(np.float32)  # a cluster that is new


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("drift")
    np.save(folder / "usual.npy", USUAL)
    train([folder / "usual.npy"], folder / "m.safetensors", rate=16, entropy="independent")
    return stochcl.load(folder / "m.safetensors", device="cpu")


def test_what_is_expected_is_what_training_rows_take(codec: Any) -> None:
    drift = Drift.of(codec, codec.latents).plus(codec.encode(USUAL))
    assert drift.bits == pytest.approx(drift.expected[0], abs=0.15)
    assert drift.bits == pytest.approx(drift.own_bits, abs=0.4)
    assert drift.finding("row") is None
    assert Drift.total([drift, drift]).rows == 2 * len(USUAL)


def test_compress_and_append_warn_of_rows_of_another_kind(codec: Any, tmp_path: Path) -> None:
    for name, given in (("usual", USUAL), ("more", np.r_[USUAL, MORE]), ("other", np.r_[USUAL, OTHER])):
        np.save(tmp_path / f"{name}.npy", given)
    np.save(tmp_path / "alone.npy", OTHER)
    for name, warned in (("usual", False), ("alone", True)):
        report = codec.compress(tmp_path / f"{name}.npy", tmp_path / f"{name}.bin")
        assert any("not trained on" in line for line in report.warnings) == warned
        found = report.to_json("compress")["drift"]
        assert (found["own_bits"] < found["bits"] / 2) == warned
    for name, warned in (("more", False), ("other", True)):
        codec.compress(tmp_path / "usual.npy", tmp_path / "a.bin", force=True)
        edit = append(tmp_path / "a.bin", tmp_path / f"{name}.npy", codec)
        assert any("not trained on" in note for note in edit.notes) == warned
        assert edit.to_json("append")["drift"]["rows"] == 500


def test_rows_that_cost_more_are_told_by_their_bits() -> None:
    """Rows of the rarest words take more than a deviation more; a few of them say nothing."""
    lengths = np.array([1.0, 2, 3, 4, 5, 6, 7, 7])
    rare, usual = np.array([0, 0, 0, 0, 0, 0, 25, 25]), np.array([64, 32, 16, 8, 4, 2, 1, 1])
    assert "take 7.0 bits, and of the model's training rows 2.0" in str(Drift(3, lengths, rare).finding("row"))
    assert Drift(3, lengths, rare // 8).finding("row") is None
    assert Drift(3, lengths, usual).finding("row") is None


def auroc(foreign: np.ndarray, known: np.ndarray) -> float:
    return float(roc_auc_score(np.repeat([1, 0], [len(foreign), len(known)]), np.r_[foreign, known]))


@pytest.mark.skipif("STOCHCL_DATA" not in os.environ, reason="needs CIFAR-10's test images in $STOCHCL_DATA")
@pytest.mark.parametrize(("model", "least"), [("general", 0.8), ("fast", 0.9)])
def test_packaged_models_tell_digits_from_photographs(model: str, least: float, tmp_path: Path) -> None:
    """The length of the first word of a code tells them apart, one by one; whole sources surely."""
    codec, found = stochcl.load(model, device="cpu"), {}
    photos = open_source(Path(os.environ["STOCHCL_DATA"], "cifar10-test.zip"))
    for name, source in (("photos", photos), ("digits", DigitsSource())):
        step = len(source) // IMAGES
        report = codec.compress(SubsetSource(source, range(0, step * IMAGES, step)), tmp_path / f"{name}.bin")
        assert any("not trained on" in line for line in report.warnings) == (name == "digits")
        with stochcl.open(tmp_path / f"{name}.bin") as archive:
            found[name] = code_bits(archive, FIRST)
    assert auroc(found["digits"], found["photos"]) >= least
