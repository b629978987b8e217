"""`stochcl dedup`: tables of pairs, with names or numbers, and what is refused."""

import csv
import json

import pytest

import stochcl
from tests.making import json_of


@pytest.fixture
def twice(run, codes, tmp_path):
    """An archive whose rows are all there twice."""
    run("merge", codes, codes, "-o", tmp_path / "twice.bin")
    return tmp_path / "twice.bin"


def pairs_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_copies_are_found_by_name(run, twice, tmp_path):
    result = run("dedup", twice, "-o", tmp_path / "pairs.csv", "--threshold", "0.9999", "--json")
    found, pairs = json_of(result), pairs_of(tmp_path / "pairs.csv")
    assert (found["schema"], found["images"], found["threshold"]) == ("stochcl.dedup/0", 84, 0.9999)
    assert found["equal"] >= found["duplicates"] >= 42
    assert len(pairs) == found["pairs"]
    with stochcl.open(twice) as archive:
        assert {pair["second"] for pair in pairs} == {pair["first"] for pair in pairs} | set(archive.names)
    assert all(float(pair["similarity"]) >= 0.9999 for pair in pairs)


def test_numbers_stand_in_for_names_and_parquet_holds_the_same(run, twice, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run("transcode", twice, "-o", tmp_path / "unnamed.bin", "--no-names")
    line = run("dedup", tmp_path / "unnamed.bin", "-o", tmp_path / "pairs.csv", "--threshold", "1").stdout
    assert "of equal codes" in line
    run("dedup", tmp_path / "unnamed.bin", "-o", tmp_path / "pairs.parquet", "--threshold", "1")
    table = parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [{**row, "similarity": f"{row['similarity']:g}"} for row in table] == pairs_of(tmp_path / "pairs.csv")
    assert {"0", "41"} <= {row["first"] for row in table} | {row["second"] for row in table}


def test_what_is_refused(run, codes, tmp_path):
    assert ".csv or .parquet" in run("dedup", codes, "-o", tmp_path / "pairs.txt", code=2).stderr
    assert "at most 1" in run("dedup", codes, "-o", tmp_path / "p.csv", "--threshold", "1.5", code=2).stderr
    (tmp_path / "there.csv").touch()
    assert "--force" in run("dedup", codes, "-o", tmp_path / "there.csv", code=2).stderr
    assert json.loads(run("dedup", codes, "-o", tmp_path / "there.csv", "--force", "--json").stdout)["images"] == 42
