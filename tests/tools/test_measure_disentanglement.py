"""Scores of latents on sprites, of models that were made for the test."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_disentanglement")


def test_one_model_thrice_has_the_same_latents_for_the_same_factors(tool, model, tmp_path):
    out = tmp_path / "d.json"
    tool.main(["--models", *[str(model)] * 3, "--sprites", "120", "--device", "cpu", "-o", str(out)])
    found = json.loads(out.read_text())
    assert found["scored_images"] == 180
    assert len(found["models"]) == 3
    assert str(tmp_path) not in out.read_text()
    for one in found["models"]:
        for given in ("symbols", "features"):
            assert 0 <= one[given]["mig"]["mig"] <= one[given]["mig"]["most"] <= 1
            assert 0 <= one[given]["lasso"]["disentanglement"] <= 1
            assert 0 <= one[given]["lasso"]["completeness"] <= 1
        assert set(one["symbols"]["forest"]["informativeness"]) == {"shape", "scale", "rotation", "x", "y"}
    stability = found["stability"]
    assert [pair["models"] for pair in stability["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    for pair in stability["pairs"]:
        for by in pair["matched_by"].values():
            assert by["same"] == 1
            assert by["correlation"] > 0.99 > by["chance_correlation"]
    assert all(best["alike"] and len(set(best["latents"])) == 1 for best in stability["best_latents"])
    for parts in stability["latents_that_say_most_of"]:
        assert sum(parts.values()) == pytest.approx(1, abs=1e-3)


def test_a_code_of_the_factors_themselves_has_the_largest_gap_and_shuffled_ones_none(tool):
    factors = np.stack(np.meshgrid(*[np.arange(4)] * 5, indexing="ij"), axis=-1).reshape(-1, 5)
    found = tool.mig(factors, factors, 0)
    assert (found["mig"], found["most"]) == (1, 1)
    assert found["chance"] < 0.02
    assert set(found["gaps"].values()) == {1.0}
