"""What uncertainty is worth on images that were made worse."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from stochcl.api.evaluate import ProbeOptions
from stochcl.downstream.uncertainty import auroc

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_uncertainty")


def test_corrupted_images_are_told_from_what_they_were(tool, images, codec, tmp_path):
    sure = tmp_path / "sure.bin"
    codec.compress(images, sure, uncertainty=True)
    (clean, *worse), shifted = tool.corrupted(sure, sure, images, codec, ProbeOptions(), 5)
    assert (clean["what"], clean["images"]) == ("clean", 5)
    assert [(w["what"], w["strength"]) for w in worse] == [
        (kind, s) for kind in tool.CORRUPTIONS for s in range(1, 6)
    ]
    names = {"entropy", "atypical entropy", "code length", "neighbours", "confidence"}
    for one in (*worse, shifted):
        assert set(one["scores"]) == names
    assert shifted["images"] == 31 * 5
    # An image among those trained on is its own nearest; one that is corrupted is not.
    strong = [w["scores"]["neighbours"]["auroc"] for w in worse if w["strength"] == 5]
    assert sum(strong) / len(strong) > 0.65


def test_copies_of_an_image_are_not_more_images(tool):
    auroc_of_copies, rng = tool.auroc_of_copies, np.random.default_rng(0)
    positive = np.arange(100) < 40
    score = rng.standard_normal(100) + positive
    once = auroc(positive, score)
    copied = auroc_of_copies(np.tile(positive, (20, 1)), np.tile(score, (20, 1)))
    assert copied.value == pytest.approx(once.value)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.3)
    assert copied == auroc_of_copies(np.tile(positive, (20, 1)), np.tile(score, (20, 1)))
    assert auroc_of_copies(np.ones((2, 3), bool), np.ones((2, 3))) is None
