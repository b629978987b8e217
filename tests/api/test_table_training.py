"""Embeddings in tables: trained on, compressed, searched, from files and from what callers have in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stochcl
from stochcl import Codec
from stochcl.api.search import search
from stochcl.api.train import train
from stochcl.errors import UsageError

pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same 600 rows as a matrix, in two matrices, and in tables; and a model trained on the matrix."""
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 6, 600)
    rows = (3 * rng.normal(size=(6, 12))[kinds] + rng.normal(size=(600, 12))).astype(np.float32)
    table = pa.table(
        {"uid": [f"u{i:03d}" for i in range(600)], "vector": list(rows), "label": [f"kind {k}" for k in kinds]}
    )
    np.save(folder / "rows.npy", rows)
    np.save(folder / "first.npy", rows[:250])
    np.save(folder / "second.npy", rows[250:])
    parquet.write_table(table, folder / "rows.parquet", row_group_size=170)
    with pa.ipc.new_stream(folder / "rows.arrow", table.schema) as stream:  # which does not say its length
        stream.write_table(table, max_chunksize=90)
    report = train([folder / "rows.npy"], folder / "model.safetensors", rate=8, entropy="independent")
    return {"folder": folder, "rows": rows, "table": table, "sha256": report.sha256}


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (["first.npy", "second.npy"], None),
        (["*st.npy", "secon*"], None),
        (["row*.parquet"], "vector"),
        (["rows.parquet"], "vector"),
        (["rows.arrow"], None),
    ],
)
def test_training_reads_the_same_rows_from_any_file(
    made: dict[str, Any], tmp_path: Any, names: list[str], column: str | None
) -> None:
    """A model's weights do not depend on what its rows were kept in."""
    sources = [made["folder"] / name for name in names]
    assert sources
    output = tmp_path / "model.safetensors"
    train(sources, output, rate=8, entropy="independent", column=column)
    one, other = (Codec(path) for path in (made["folder"] / "model.safetensors", output))
    assert one.tables.data == other.tables.data


class Frame:
    """A data frame as pandas and polars have it: all that is known of it is Arrow's stream."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


class DataSet:
    """A data set as Hugging Face's library has it."""

    def __init__(self, table: Any) -> None:
        self._table, self.features = table, type("Features", (), {"arrow_schema": table.schema})

    def __len__(self) -> int:
        return len(self._table)

    def with_format(self, kind: str) -> DataSet:
        assert kind == "arrow"
        return self

    def select_columns(self, names: list[str]) -> DataSet:
        return DataSet(self._table.select(names))

    def iter(self, batch_size: int) -> Any:
        for start in range(0, len(self), batch_size):
            yield self._table.slice(start, batch_size)


@pytest.mark.parametrize("kind", [Frame, DataSet])
def test_tables_in_memory_are_compressed(made: dict[str, Any], tmp_path: Any, kind: Any) -> None:
    """Ids and labels come back out, row for row, and the codes are those of the file."""
    codec = Codec(made["folder"] / "model.safetensors")
    codec.compress(made["folder"] / "rows.parquet", tmp_path / "file.bin", id_column="uid")
    codec.compress(kind(made["table"]), tmp_path / "memory.bin", id_column="uid")
    with stochcl.open(tmp_path / "file.bin") as file, stochcl.open(tmp_path / "memory.bin") as memory:
        assert list(memory.names) == [f"u{i:03d}" for i in range(600)] == list(file.names)
        assert list(memory.labels) == made["table"]["label"].to_pylist()
        assert np.array_equal(memory[:].symbols(), file[:].symbols())


def test_search_takes_the_rows_of_a_table(made: dict[str, Any], tmp_path: Any) -> None:
    """A table of queries finds what the matrix of the same rows finds."""
    from pyarrow import parquet

    Codec(made["folder"] / "model.safetensors").compress(made["folder"] / "rows.parquet", tmp_path / "codes.bin")
    asked = made["table"].slice(5, 2).rename_columns(["id", "vector", "label"])
    parquet.write_table(asked, tmp_path / "asked.parquet")
    np.save(tmp_path / "asked.npy", made["rows"][5:7])
    options = {"model": str(made["folder"] / "model.safetensors"), "count": 3}
    one = search(tmp_path / "codes.bin", [tmp_path / "asked.parquet"], **options)["queries"]
    other = search(tmp_path / "codes.bin", [tmp_path / "asked.npy"], **options)["queries"]
    assert [q["neighbours"] for q in one] == [q["neighbours"] for q in other]
    assert one[0]["query"].endswith("row u005")


def test_training_refuses_a_column_of_no_table(made: dict[str, Any], tmp_path: Any) -> None:
    """A column is one of a table."""
    with pytest.raises(UsageError, match="column"):
        train([made["folder"] / "rows.npy"], tmp_path / "model.safetensors", column="vector")
