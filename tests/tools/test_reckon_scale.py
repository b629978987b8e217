"""docs/explanation/scale.md has what the measured files give, and nothing that was typed."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("reckon_scale")


def test_the_page_has_the_tables_of_the_files(tool):
    text = tool.PAGE.read_text("utf-8")
    assert text.count(tool.BEGIN) == text.count(tool.END) == 1
    assert tool.in_page(text, tool.tables(tool.Costs.measured())) == text


def test_times_and_bytes_are_multiples_of_what_was_measured(tool):
    costs = tool.Costs.measured()
    whole = next(row["core_ms_each"] for row in tool.of("throughput-general.json")["rows"] if row["stage"] == "whole")
    assert costs.general == pytest.approx(whole / 1e3)
    assert costs.feeding < costs.general
    line = next(line for line in tool.tables(costs).splitlines() if line.startswith("| compress with `general` "))
    assert tool.hours(10**8 * whole / 1e3) in line
    assert tool.hours(10**9 * whole / 1e3 / 64) in line


def test_times_and_sizes_are_written_in_units_of_their_size(tool):
    assert [tool.hours(s) for s in (30, 600, 9000, 900_000)] == ["30 s", "10 min", "2.5 h", "10 d"]
    assert [tool.size(n) for n in (2e5, 3.1e9, 1.9e12)] == ["0.2 MB", "3.1 GB", "1.9 TB"]


def test_figures_of_a_million_images_are_those_of_the_file(tool):
    """The list before the tables is prose: its numbers are looked up here."""
    text, found = tool.PAGE.read_text("utf-8"), json.loads((tool.RESULTS / "scale.json").read_text("utf-8"))
    flat, reading = found["flatness"], found["reading"]
    for clock in ("images_per_processor_second", "images_per_second"):
        assert f"{flat[clock]['first_quarter']:,}" in text
        assert f"{flat[clock]['last_quarter']:,}" in text
    assert f"{flat['resident_mb']['at_the_end']:.0f} MB" in text
    assert f"{reading['random_single_rows']['rows_per_second']:,} single rows" in text
    assert f"{reading['random_rows_at_once']['rows_per_second']:,} when" in text
    assert f"{reading['partial_fit']['rows_per_second']:,} rows" in text
    assert f"{reading['peak_mb']:.0f} MB" in text


def test_figures_of_loading_are_those_of_the_file(tool):
    steps = json.loads((tool.RESULTS / "loading.json").read_text("utf-8"))["steps"]
    epochs = steps["CodesDataset, shuffled"]
    loaders = (ROOT / "docs" / "how-to" / "train-on-codes.md").read_text("utf-8")
    scale = tool.PAGE.read_text("utf-8")
    stream, naive = (
        f"{steps[name]['rows_per_processor_second']:,}"
        for name in ("CodesStream, shuffled", "CodesDataset, shuffled, keep_bytes=0")
    )
    assert f"in order | {steps['CodesDataset, in order']['rows_per_processor_second']:,} |" in loaders
    first, second = (f"{epochs[name]['rows_per_processor_second']:,}" for name in ("first_epoch", "second_epoch"))
    assert f"{first}, and {second} |" in loaders
    assert f"every epoch | {stream} |" in loaders
    assert f"of its rows | {naive} |" in loaders
    assert f"({naive} rows a second where `CodesStream` gives {stream}," in scale
