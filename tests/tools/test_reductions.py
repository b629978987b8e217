"""tools/reductions.py: the best code of at most a 588th of what pixels and features take."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from reductions import reductions


def test_reductions_are_the_best_code_below_the_bits():
    def row(bits, accuracy, group="ours", method="m"):
        return {"group": group, "method": method, "bits_per_image": bits, "accuracy": accuracy, "code": f"{bits}",
                "input": "vectors"}  # fmt: skip

    rows = [row(30, 0.4), row(40, 0.5), row(50, 0.9), row(2000, 0.6), row(16384, 0.8, "features", "float32")]
    found = reductions({"rows": rows, "features": 512}, 32)
    assert [line["bits"] for line in found] == [2048.0, 41.8, 27.9]
    assert [line.get("accuracy") for line in found] == [0.9, 0.5, None]
    assert found[1]["relative"] == pytest.approx(0.5 / 0.8)
    _, features = reductions({"rows": rows, "features": 2048}, None)
    assert (features["of"], features["bits"]) == ("float32 features, 2048", 111.5)
