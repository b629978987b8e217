"""benchmarks/throughput.py: every stage of compressing beside its lower bound."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stochcl.benchmarks.run import BenchmarkError
from stochcl.compress import Archive
from stochcl.errors import UsageError
from tests.making import json_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import throughput
from throughput import (
    COLUMNS,
    FLOORS,
    STAGES,
    WHOLE,
    Stages,
    ThroughputConfig,
    Times,
    benchmark_throughput,
    interleave,
    lines,
    main,
    ratio,
    row,
    title,
)


@pytest.fixture(autouse=True)
def no_collection(request, monkeypatch):
    """Free memory is given back before every stage; in a process of tests that takes most of the time."""
    if "memory" not in request.node.name:
        monkeypatch.setattr(throughput, "restart_peak", throughput.peak)


def test_every_stage_the_whole_and_the_floors_are_measured(model, images):
    result = benchmark_throughput(
        ThroughputConfig(source=images, model=str(model), images=100, device="cpu", repeat=2)
    )
    rows = {row["stage"]: row for row in result["rows"]}
    assert tuple(rows) == (*STAGES, WHOLE, *FLOORS)
    assert {(row["n"], row["repeats"]) for row in rows.values()} == {(42, 2)}
    assert all(row["core_ms_each"] > 0 for row in rows.values())
    assert result["agreement_with_fp32"] == 1
    assert (result["schema"], result["n"], result["latents"]) == ("stochcl.benchmark.throughput/0", 42, 32)
    parts = sum(rows[name]["core_ms_each"] for name in STAGES)
    assert parts > rows["encode"]["core_ms_each"]
    assert f"{result['ratios']['floors / whole, core']['median']:.3f}" in title(result)
    assert result["command"].startswith("python benchmarks/throughput.py photos --model ")
    assert str(images) not in result["command"]


def test_images_are_made_for_an_untrained_network():
    request = ThroughputConfig(
        backbone="resnet10", size=16, images=3, image_size=20, device="cpu", precision="bf16", repeat=1
    )
    result = benchmark_throughput(request)
    assert (result["n"], result["network"], result["size"], result["precision"]) == (3, "resnet10", 16, "bf16")
    assert 0.5 < result["agreement_with_fp32"] <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compressing_has_the_precision_that_is_asked_for(model, images, monkeypatch, precision):
    found, check = [], Stages.check

    def checked(self):
        with Archive(self.archive, tables=[self.codec.tables]) as archive:
            found.append(archive.header.precision)
        return check(self)

    monkeypatch.setattr(Stages, "check", checked)
    benchmark_throughput(
        ThroughputConfig(source=images, model=str(model), device="cpu", precision=precision, repeat=1)
    )
    assert found == [precision]


def test_other_codes_than_the_encoders_are_no_result(model, images, monkeypatch):
    whole = Stages.whole

    def wrong(self):
        whole(self)
        self.encoded = self.codes[::-1]

    monkeypatch.setattr(Stages, "encode", lambda self: None)
    monkeypatch.setattr(Stages, "whole", wrong)
    with pytest.raises(BenchmarkError, match="other codes than the network gives"):
        benchmark_throughput(ThroughputConfig(source=images, model=str(model), device="cpu", repeat=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "general", "backbone": "resnet18"}, "give one of them"),
        ({"size": 64}, "give backbone"),
        ({"precision": "fp8"}, "must be fp32, bf16 or int8"),
        ({"repeat": 0}, "at least 1"),
        ({"images": 10}, "this source has 42 images, and all of them would be compressed, not 10; pass images=42"),
        ({"image_size": 99}, "leave it out where a source is named"),
        ({"device": "quantum"}, "quantum"),
    ],
)
def test_what_does_not_go_together_is_said(model, images, options, message):
    given = {"source": images, "device": "cpu"} | ({} if "backbone" in options else {"model": str(model)}) | options
    with pytest.raises(UsageError, match=message):
        benchmark_throughput(ThroughputConfig(**given))


@pytest.mark.parametrize("array", [np.zeros((4, 8), np.float32), np.zeros((4, 8, 8, 3), np.uint8)])
def test_an_array_has_nothing_to_decode(model, tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match="image files"):
        benchmark_throughput(ThroughputConfig(source=tmp_path / "a.npy", model=model, device="cpu"))


def test_work_is_done_in_rounds_after_one_that_is_not_measured():
    order, told = [], []
    times = interleave(
        {name: lambda name=name: order.append(name) for name in "abc"}, 2, progress=lambda *said: told.append(said)
    )
    assert "".join(order) == "abcabcabc"
    assert {name: (len(t.core), len(t.wall)) for name, t in times.items()} == dict.fromkeys("abc", (2, 2))
    assert told[0] == (0, 9, "a")
    assert told[-1] == (8, 9, "c")


def test_the_device_is_waited_for_before_and_after():
    order = []
    interleave({"a": lambda: order.append("a")}, 1, wait=lambda: order.append("w"))
    assert "".join(order) == "wawwaw"


def test_memory_is_what_the_first_round_adds():
    held = []
    times = interleave({"little": lambda: None, "much": lambda: held.append(bytearray(b"x" * (64 << 20)))}, 1)
    assert times["much"].peak_bytes > 60 << 20
    assert times["little"].peak_bytes < 8 << 20


def test_ratios_are_taken_within_rounds():
    times = {"a": Times([1, 2, 3], [4, 4, 4]), "b": Times([1, 1, 1], [0, 0, 0]), "c": Times([4, 4, 2], [8, 4, 2])}
    assert ratio(times, ["a", "b"], "c") == {"median": 0.75, "low": 0.5, "high": 2.0}
    assert ratio(times, ["a"], "c", "wall") == {"median": 1.0, "low": 0.5, "high": 2.0}


def test_a_row_is_of_one_image():
    found = row("stage", Times([0.2, 0.4, 0.3], [1.0, 1.0, 1.0], 5_000_000), 100)
    assert (found["core_ms_each"], found["core_ms_each_low"], found["core_ms_each_high"]) == (3.0, 2.0, 4.0)
    assert found["each_per_core_second"] == pytest.approx(333.3)
    assert found["each_per_second"] == 100
    shown = lines({"rows": [found]})[0]
    assert len(shown) == len(COLUMNS)
    assert shown == ("stage", "3.000", "2.000", "4.000", "10.000", "333", "100", "5.0")


def test_throughput_is_shown_and_written(images, model, tmp_path):
    options = [images, "-m", model, "--device", "cpu", "--repeat", "1", "-o", tmp_path / "results"]

    def run(*more):
        return CliRunner().invoke(main, [str(option) for option in (*options, *more)])

    result = run()
    assert "floors / whole (core seconds)" in result.stdout
    assert "entropy-code" in result.stdout
    written = json.loads((tmp_path / "results" / "throughput.json").read_text())
    assert [row["stage"] for row in written["rows"]][:3] == ["read", "decode", "resize"]
    assert (tmp_path / "results" / "throughput.csv").read_text().count("\n") == 11
    assert set(json_of(run("--json"))) == set(written)
    wrong = run("--size", "64")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
