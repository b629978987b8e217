"""`stochcl benchmark embeddings`: a table for people, files with all that a figure needs, the same figures again."""

import csv
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture
def digits(tmp_path):
    """A folder of digits as matrices and labels."""
    x, y = load_digits(return_X_y=True)
    for name, part in (("train", slice(1200)), ("test", slice(1200, None))):
        np.save(tmp_path / f"{name}.npy", x[part].astype(np.float32))
        np.save(tmp_path / f"{name}_y.npy", y[part])
    return tmp_path


def test_the_command_writes_files_and_prints_a_table(digits, tmp_path, run):
    options = [
        "--labels",
        digits / "train_y.npy",
        "--test-labels",
        digits / "test_y.npy",
        "--bits",
        "8",
        "--only",
        "itq",
    ]
    matrix = ["benchmark", "embeddings", digits / "train.npy", "--test", digits / "test.npy"]
    result = run(*matrix, *options, "-o", tmp_path / "r")
    written = json.loads((tmp_path / "r" / "embeddings.json").read_text("utf-8"))
    assert written["schema"] == "stochcl.benchmark.embeddings/0"
    assert written["command"] == (
        "stochcl benchmark embeddings train.npy --test test.npy --labels train_y.npy --test-labels test_y.npy "
        "--bits 8 --only itq --seed 0 -o results/"
    )
    assert str(tmp_path) not in json.dumps(written)
    with (tmp_path / "r" / "embeddings.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["coding"] for row in table] == ["packed", "independent", "linear"]
    assert all(row["command"] == written["command"] and row["hardware"] and row["versions"] for row in table)
    assert "597 rows of 64 columns, after 1,200 to learn from" in result.stdout
    assert result.stdout.count("ITQ 8") == 3
    same = json.loads(run(*matrix, *options, "-o", tmp_path / "r", "--json").stdout)
    drop = {"fit_seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in same["rows"]] == [
        {k: v for k, v in row.items() if k not in drop} for row in written["rows"]
    ]
