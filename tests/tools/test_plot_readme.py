"""The plot of README.md is drawn from recorded results; images get quantisers once these are measured."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "rate-accuracy"


@pytest.fixture
def tool(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("plot_readme")


def test_of_each_size_the_best_row_is_drawn(tool):
    rows = json.loads((RESULTS / "text.json").read_text("utf-8"))["rows"]
    found = tool.points(rows, "RQ")
    assert [row["code"].partition(",")[0] for row in found] == [f"{8 << i} bits" for i in range(6)]
    same = [row for row in rows if row["method"] == "RQ" and row["code"].startswith("64 bits")]
    assert found[3]["accuracy"] == max(row["accuracy"] for row in same)
    assert {row["coding"] for row in found} == {"linear"}


def test_images_are_drawn_with_quantisers_once_they_are_measured(tool, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(tool, "draw_panel", lambda axes, result, title: drawn.append(result["classes"]))
    for name in ("cifar10.json", "text.json"):
        shutil.copy(RESULTS / name, tmp_path)
    tool.main([str(tmp_path), "-o", str(tmp_path / "a.png")])
    (tmp_path / "cifar10-features.json").write_text('{"classes": 3}')
    tool.main([str(tmp_path), "-o", str(tmp_path / "a.png")])
    assert drawn == [10, 24, 3, 24]
    (tmp_path / "text.json").unlink()
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), "-o", str(tmp_path / "a.png")])
    assert "no text.json" in capsys.readouterr().err


def test_the_committed_results_give_a_plot(tool, tmp_path):
    tool.main([str(RESULTS), "-o", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
