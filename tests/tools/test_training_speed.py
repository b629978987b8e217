"""benchmarks/training_speed.py: the parts of a step, and the options that it takes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stochcl.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import throughput
from training_speed import FLOOR, PARTS, STEP, TrainingSpeedConfig, benchmark_training, main, title

# At 16 pixels the last convolutions are of single pixels, whose gradients in bf16 PyTorch 2.13.0 now and then takes
# from memory that nobody has written to.
TINY = {"backbone": "resnet10", "size": 32, "crop": 32, "batch_size": 8, "device": "cpu", "repeat": 1}


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Free memory is given back before every part; in a process of tests that takes most of the time."""
    monkeypatch.setattr(throughput, "restart_peak", throughput.peak)


@pytest.fixture
def no_work(monkeypatch):
    """Nothing is measured: what is asked of a step is said without taking one."""
    times = throughput.Times([1.0], [1.0])
    monkeypatch.setattr("training_speed.interleave", lambda work, *given, **options: dict.fromkeys(work, times))


def test_the_parts_of_a_step_are_measured_beside_the_bare_pass():
    result = benchmark_training(TrainingSpeedConfig(**TINY))
    rows = {row["stage"]: row for row in result["rows"]}
    assert set(rows) == {*PARTS, FLOOR, STEP}
    assert {row["n"] for row in rows.values()} == {16}  # two views of eight images
    assert result["limit"] in PARTS
    assert result["limit"] in title(result)
    assert (result["crop"], result["schema"]) == (32, "stochcl.benchmark.training/0")
    assert set(result["ratios"]) == {f"{FLOOR} / {STEP}, {clock}" for clock in ("core", "wall")}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("native", "given", "used"), [(True, None, "bf16"), (False, None, "fp32"), (False, "bf16", "bf16")]
)
def test_the_precision_is_what_training_would_take(monkeypatch, native, given, used):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)
    assert benchmark_training(TrainingSpeedConfig(**TINY, precision=given))["precision"] == used


@pytest.mark.usefixtures("no_work")
def test_a_preset_is_what_is_measured_but_for_what_is_given():
    result = benchmark_training(TrainingSpeedConfig(preset="digits", batch_size=8, device="cpu", repeat=1))
    assert (result["size"], result["crop"], result["batch_size"]) == (32, 24, 8)
    assert result["command"].startswith("python benchmarks/training_speed.py --preset digits --batch-size 8")


@pytest.mark.parametrize(("options", "message"), [({"preset": "nothing"}, "nothing"), ({"backbone": "vgg"}, "vgg")])
def test_what_there_is_not_is_said(options, message):
    with pytest.raises(UsageError, match=message):
        benchmark_training(TrainingSpeedConfig(**TINY | options))


@pytest.mark.usefixtures("no_work")
def test_the_script_prints_a_table_and_writes_files(tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    result = CliRunner().invoke(main, [*options, "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "bare pass / step (core seconds)" in result.stdout
    assert json.loads((tmp_path / "training.json").read_text())["batch_size"] == 8
    refused = CliRunner().invoke(main, ["--preset", "nothing", "-o", str(tmp_path)])
    assert refused.exit_code == 2
    assert "nothing" in refused.stderr
