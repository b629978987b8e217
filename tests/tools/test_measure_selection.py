"""The table of chosen latents: real bytes, rows that a user would get, codes of bits and of more values."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

import stochcl
from stochcl.codes import Codes
from tests.compress.making import make_tables, write

TOOLS = Path(__file__).parents[2] / "tools"
ROWS, LATENTS = 400, 12


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_selection")


def archives(folder, alphabet):
    """Two archives of which the last two latents say the class, one of four, and the others nothing."""
    tables = make_tables(LATENTS, alphabet)
    for seed, name in enumerate(("train.bin", "test.bin")):
        rng = np.random.default_rng(seed)
        symbols = rng.integers(0, alphabet, (ROWS, LATENTS))
        classes = rng.integers(0, 4, ROWS)
        symbols[:, -2], symbols[:, -1] = classes // 2 * (alphabet - 1), classes % 2 * (alphabet - 1)
        names = [f"{c}/{i}.png" for i, c in enumerate(classes)]
        write(folder / name, Codes.from_symbols(symbols, alphabet=alphabet, names=names), tables)
    return folder / "train.bin", folder / "test.bin"


@pytest.mark.parametrize("alphabet", [2, 5])
def test_what_says_the_class_is_chosen_and_its_file_is_paid_for(tool, tmp_path, alphabet):
    train, test = archives(tmp_path, alphabet)
    out = tmp_path / "s.json"
    tool.main([str(train), str(test), "--latents", "2", "6", "--draws", "2", "-o", str(out)])
    found = json.loads(out.read_text())
    assert found["command"].startswith("python tools/measure_selection.py train.bin test.bin --latents 2 6")
    assert (found["latents"], found["alphabet"], found["input"]) == (LATENTS, alphabet, "symbols")
    assert set(found["order"][:2]) == {LATENTS - 2, LATENTS - 1}
    assert found["label"] == {"classes": 4, "bits_per_image": 2.0, "bytes": ROWS // 4}
    two, six = found["rows"]
    assert two["chosen"]["accuracy"] == 1
    assert two["random"]["accuracy"] < 0.9
    # Two latents that say which of four it is take about its two bits.
    assert ROWS // 4 <= two["chosen"]["bytes"] < ROWS // 4 + 100
    for row in (two, six):
        assert row["prefix"] is None or row["prefix"]["bytes"] <= row["chosen"]["bytes"]
    stochcl.transcode(test, tmp_path / "six.bin", select=found["order"][:6], names=False, external_tables=True)
    with stochcl.open(tmp_path / "six.bin") as archive:
        parts = archive.parts()
        assert six["chosen"]["bytes"] == parts["codes"] + parts["tables"]
        assert six["chosen"]["fitted_table_bytes"] == parts["tables"]
    with stochcl.open(test) as archive:
        assert found["external_bytes"] == len(archive.tables.data)
    least = LATENTS * math.log2(alphabet) * ROWS / 8 * 0.9
    assert found["all"]["as_compressed"]["bytes"] > found["all"]["refitted"]["bytes"] * 0.9 > least * 0.5


def test_vectors_are_those_of_the_latents_that_are_kept(tool, tmp_path):
    train, test = archives(tmp_path, 2)
    tool.main(
        [str(train), str(test), "--latents", "3", "--draws", "1", "--input", "vectors", "-o", str(tmp_path / "s")]
    )
    found = json.loads((tmp_path / "s").read_text())
    assert found["input"] == "vectors"
    assert 0 <= found["rows"][0]["chosen"]["accuracy"] <= 1


def test_the_ladder_follows_the_width(tool):
    assert tool.ladder(100, None) == [8, 16, 32, 64]
    assert tool.ladder(6, None) == [3]
    with pytest.raises(SystemExit, match=r"--latents 7: the archives have 1 to 6 latents"):
        tool.ladder(6, [3, 7])


def test_images_are_encoded_by_the_model_that_is_named(tool, images, model, tmp_path):
    out = tmp_path / "s.json"
    tool.main([str(images), str(images), "--model", str(model), "--latents", "8", "--draws", "1", "-o", str(out)])
    assert json.loads(out.read_text())["test_images"] == 42
