import numpy as np
import pytest

from stochcl.benchmarks.errors import BenchmarkError
from stochcl.benchmarks.stages import Stages
from stochcl.benchmarks.throughput import FLOORS, STAGES, WHOLE, Request, benchmark_throughput, title
from stochcl.compress import Archive
from stochcl.errors import UsageError


def test_every_stage_the_whole_and_the_floors_are_measured(model, images):
    result = benchmark_throughput(Request(source=images, model=str(model), images=100, device="cpu", repeat=2))
    rows = {row["stage"]: row for row in result["rows"]}
    assert tuple(rows) == (*STAGES, WHOLE, *FLOORS)
    assert {(row["n"], row["repeats"]) for row in rows.values()} == {(42, 2)}
    assert all(row["core_ms_each"] > 0 for row in rows.values())
    assert result["agreement_with_fp32"] == 1
    assert (result["schema"], result["n"], result["latents"]) == ("stochcl.benchmark.throughput/0", 42, 32)
    parts = sum(rows[name]["core_ms_each"] for name in STAGES)
    assert parts > rows["encode"]["core_ms_each"]
    assert f"{result['ratios']['floors / whole, core']['median']:.3f}" in title(result)
    assert result["command"].startswith("stochcl benchmark throughput photos --model ")
    assert str(images) not in result["command"]


def test_images_are_made_for_an_untrained_network():
    request = Request(backbone="resnet10", size=16, images=3, image_size=20, device="cpu", precision="bf16", repeat=1)
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
    benchmark_throughput(Request(source=images, model=str(model), device="cpu", precision=precision, repeat=1))
    assert found == [precision]


def test_other_codes_than_the_encoders_are_no_result(model, images, monkeypatch):
    whole = Stages.whole

    def wrong(self):
        whole(self)
        self.encoded = self.codes[::-1]

    monkeypatch.setattr(Stages, "encode", lambda self: None)
    monkeypatch.setattr(Stages, "whole", wrong)
    with pytest.raises(BenchmarkError, match="other codes than the network gives"):
        benchmark_throughput(Request(source=images, model=str(model), device="cpu", repeat=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "general", "backbone": "resnet18"}, "give one of them"),
        ({"size": 64}, "give --backbone too"),
        ({"precision": "fp8"}, "there are fp32, bf16"),
        ({"repeat": 0}, "1 or more"),
        ({"images": 10}, "this source has 42 images, and all of them would be compressed, not 10; pass --images 42"),
        ({"image_size": 99}, "leave it out where a source is named"),
        ({"device": "quantum"}, "quantum"),
    ],
)
def test_what_does_not_go_together_is_said(model, images, options, message):
    given = {"source": images, "device": "cpu"} | ({} if "backbone" in options else {"model": str(model)}) | options
    with pytest.raises(UsageError, match=message):
        benchmark_throughput(Request(**given))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8), np.float32), "measured on images"),
        (np.zeros((4, 8, 8, 3), np.uint8), "an array has nothing to decode"),
    ],
)
def test_an_array_has_nothing_to_decode(model, tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match=message):
        benchmark_throughput(Request(source=tmp_path / "a.npy", model=str(model), device="cpu"))
