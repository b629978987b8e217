"""Ids, labels and rows of tables: into archives, into probes, and back out."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pytest

import stochcl
from stochcl.api import archives
from stochcl.api.append import append
from stochcl.api.evaluate import evaluate_targets
from stochcl.api.probe_source import evaluate_embeddings
from stochcl.api.search import search
from stochcl.data import read_labels
from stochcl.errors import LabelsError, SourceError, UsageError
from tests.making import make_head

if TYPE_CHECKING:
    from pathlib import Path

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

ROWS = 60
RNG = np.random.default_rng(4)
KINDS = RNG.integers(0, 3, ROWS)
VECTORS = (4 * RNG.normal(size=(3, 12))[KINDS] + RNG.normal(size=(ROWS, 12))).astype(np.float32)
IDS = [None if i == 7 else 1000 - 3 * i for i in range(ROWS)]


def table(rows: slice = slice(None), ids: Any = None) -> Any:
    """Return rows as a table: ids, a topic and a size of each, and vectors."""
    given = pa.array(IDS, pa.int32()) if ids is None else ids
    size = pa.array((VECTORS[:, 0] * 10).tolist())
    topic = pa.array([f"topic {kind}" for kind in KINDS])
    whole = pa.table({"uid": given, "size": size, "vector": list(VECTORS), "topic": topic})
    return whole.take(np.arange(ROWS)[rows])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    parquet.write_table(table(), folder / "rows.parquet", row_group_size=17)
    parquet.write_table(table(slice(0, 25)), folder / "first.parquet")
    parquet.write_table(table(slice(None, None, -1)), folder / "backwards.parquet")
    np.save(folder / "rows.npy", VECTORS)
    np.save(folder / "more.npy", VECTORS[:20] + 1)
    stochcl.load(make_head(folder / "head.safetensors", VECTORS), device="cpu").compress(
        folder / "rows.parquet", folder / "codes.bin", id_column="uid", label_column="topic"
    )
    return folder


def test_whole_numbers_come_back_as_they_were(made: Path, tmp_path: Path) -> None:
    """A column of ids comes out of Parquet with its name, type, order and nulls."""
    archives.decompress(made / "codes.bin", tmp_path / "out.parquet")
    back = parquet.read_table(tmp_path / "out.parquet")
    assert back.column("uid").equals(table().column("uid"))
    assert back.column("label").to_pylist() == table().column("topic").to_pylist()
    with stochcl.open(made / "codes.bin") as archive:
        assert archive.names[:9] == ("1000", "997", "994", "991", "988", "985", "982", "row 0000007", "976")
        assert pa.table(archive).column("uid").equals(back.column("uid"))
        assert np.array_equal(np.stack(back.column("symbols").to_numpy()), archive.to_numpy())
    archives.transcode(made / "codes.bin", tmp_path / "narrow.bin", latents=8)
    archives.merge([tmp_path / "narrow.bin", tmp_path / "narrow.bin"], tmp_path / "twice.bin")
    with stochcl.open(tmp_path / "twice.bin") as archive:
        assert pa.table(archive).column("uid").to_pylist() == IDS * 2


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("int64", "int16"), "int64"),
        (("int32", "uint32"), "int64"),
        (("uint8", "uint8"), "uint8"),
        (("int64", "uint64"), None),
        (("int64", "string"), None),
    ],
)
def test_merge_keeps_the_type_that_holds_all_ids(
    made: Path, tmp_path: Path, kinds: tuple[str, str], expected: str | None
) -> None:
    """Or says that they come back as text."""
    codec, ids = stochcl.load(made / "head.safetensors", device="cpu"), list(range(5)) * 2
    for name, kind in zip(("a", "b"), kinds, strict=True):
        given = table(slice(0, 5), pa.array(range(ROWS)).cast(kind))
        codec.compress(given, tmp_path / f"{name}.bin", id_column="uid")
    edit = archives.merge([tmp_path / "a.bin", tmp_path / "b.bin"], tmp_path / "c.bin")
    assert any("text" in note for note in edit.notes) == (expected is None)
    with stochcl.open(tmp_path / "c.bin") as archive:
        back = pa.table(archive)
    assert back.column("name").to_pylist() == [str(i) for i in ids]
    assert ("uid" in back.column_names) == (expected is not None)
    if expected is not None:
        assert back.column("uid").to_pylist() == ids
        assert str(back.schema.field("uid").type) == expected


def test_ids_of_lists_become_text(made: Path, tmp_path: Path) -> None:
    """An id may be of any type."""
    given = table(ids=pa.array([[i, i + 1] for i in range(ROWS)]))
    stochcl.load(made / "head.safetensors").compress(given, tmp_path / "a.bin", id_column="uid", column="vector")
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.names[2] == "[2, 3]"
        assert pa.table(archive).column_names == ["name", "label", "symbols", "vector"]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_append_adds_the_rows_that_are_new(made: Path, tmp_path: Path, kind: str) -> None:
    """Rows are told apart by their ids, and the result is what compressing all of them gives."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    how = {"id_column": "uid", "label_column": "topic"}
    named = [i for i in range(ROWS) if i != 7]  # a row without an id is never known
    codec.compress(made / "first.parquet", tmp_path / "a.bin", **how)
    parquet.write_table(table().take(named), tmp_path / "named.parquet", row_group_size=17)
    given = tmp_path / "named.parquet" if kind == "file" else table().take(named)
    edit = append(tmp_path / "a.bin", given, codec, **how)
    assert edit.facts == {"added": 35, "there": 24}
    assert append(tmp_path / "a.bin", given, codec, **how).facts == {"added": 0, "there": 59}
    with stochcl.open(tmp_path / "a.bin") as one, stochcl.open(made / "codes.bin") as other:
        assert list(one.names) == list(other.names)
        assert list(one.labels) == list(other.labels)
        assert np.array_equal(one.to_numpy(), other.to_numpy())
        one.verify()


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("absent", [None, ""])
def test_append_adds_rows_without_an_id_under_free_names(made: Path, tmp_path: Path, kind: str, absent: Any) -> None:
    """A row without an id is new, whatever number it has in its table; its number goes on from the archive's rows."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    ids = [absent if i % 2 else f"id {i}" for i in range(ROWS)]
    first = [*([absent] * 9), "row 0000011", *ids[10:]]
    codec.compress(table(slice(0, 10), pa.array(first, pa.string())), tmp_path / "a.bin", id_column="uid")
    given = table(slice(10, 20), pa.array(ids, pa.string()))
    if kind == "file":
        parquet.write_table(given, tmp_path / "more.parquet")
        given = tmp_path / "more.parquet"
    edit = append(tmp_path / "a.bin", given, codec, id_column="uid")
    assert edit.facts == {"added": 10, "there": 0}
    assert any("5 rows without an id" in note for note in edit.notes)
    edit = append(tmp_path / "a.bin", given, codec, id_column="uid")
    assert edit.facts == {"added": 5, "there": 5}
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.names[9:14] == ("row 0000011", "id 10", "row 0000012", "id 12", "row 0000013")
        assert archive.names[18:] == ("id 18", "row 0000019", *(f"row {number:07d}" for number in range(20, 25)))
        assert len(set(archive.names)) == len(archive)
        assert np.array_equal(archive.to_numpy()[10:20], codec.encode(VECTORS[10:20]).symbols())


def test_append_reads_ids_from_the_column_of_the_archives(made: Path, tmp_path: Path) -> None:
    """The archive knows its column of ids, so that no row is added a second time under its number."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(made / "first.parquet", tmp_path / "a.bin", id_column="uid")
    before = (tmp_path / "a.bin").read_bytes()
    assert append(tmp_path / "a.bin", table(slice(0, 7)), codec).facts == {"added": 0, "there": 7}
    numbers = table().rename_columns(["id", "size", "vector", "topic"])
    for given in (numbers, numbers.drop_columns(["id"]), made / "rows.npy"):
        with pytest.raises(UsageError, match="id_column"):
            append(tmp_path / "a.bin", given, codec)
    assert (tmp_path / "a.bin").read_bytes() == before
    assert append(tmp_path / "a.bin", numbers.slice(20, 10), codec, id_column="id").facts == {"added": 5, "there": 5}


@pytest.mark.parametrize(("kind", "is_told"), [("int8", False), ("int64", True), ("string", True)])
def test_append_says_that_a_type_of_ids_may_not_fit(made: Path, tmp_path: Path, kind: str, is_told: bool) -> None:
    """The archive's type stays."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(table(slice(0, 5), pa.array(range(ROWS), pa.int16())), tmp_path / "a.bin", id_column="uid")
    edit = append(tmp_path / "a.bin", table(slice(0, 9), pa.array(range(ROWS)).cast(kind)), codec)
    assert edit.facts == {"added": 4, "there": 5}
    assert any("do not fit" in note for note in edit.notes) == is_told


def test_append_finds_the_column_of_ids_of_text_and_refuses_rows_without_ids(made: Path, tmp_path: Path) -> None:
    """The archive knows the column of such ids, too."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    given = table(ids=pa.array([f"id {i}" for i in range(ROWS)]))
    codec.compress(given, tmp_path / "a.bin", id_column="uid")
    assert append(tmp_path / "a.bin", given, codec).facts == {"added": 0, "there": ROWS}
    with pytest.raises(UsageError, match="id_column"):
        append(tmp_path / "a.bin", made / "rows.npy", codec)


TYPED = {
    "date": (pa.date32(), date(2026, 11, 29)), "day": (pa.date64(), date(2026, 11, 29)),
    "time": (pa.timestamp("us"), datetime(2026, 11, 29, 23, 59, 1, 250)),  # noqa: DTZ001 -- without a zone
    "zone": (pa.timestamp("ms", tz="UTC"), datetime(2026, 11, 29, 23, 59, 1, 250_000, tzinfo=UTC)),
    "decimal": (pa.decimal128(10, 2), Decimal("-12.30")), "bool": (pa.bool_(), False), "double": (pa.float64(), 0.1),
    "float": (pa.float32(), 0.25), "hash": (pa.binary(16), bytes(range(16))), "uuid": (pa.uuid(), UUID(int=7)),
    "uint64": (pa.uint64(), 2**64 - 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_ids_come_back_in_their_type(made: Path, tmp_path: Path, kind: str, ending: str) -> None:
    """A column of any type but text has its name, type, values and nulls; text comes back as names."""
    arrow_type, value = TYPED[kind]
    ids = pa.array([value, None, *[value] * (ROWS - 2)], arrow_type)
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(table(ids=ids), tmp_path / "a.bin", id_column="uid")
    archives.decompress(tmp_path / "a.bin", tmp_path / f"out.{ending}")
    reader = parquet if ending == "parquet" else feather
    back = reader.read_table(tmp_path / f"out.{ending}")["uid"].combine_chunks()
    assert back.type == (pa.date32() if (ending, kind) == ("parquet", "day") else arrow_type)  # as Parquet has it
    assert back.to_pylist() == ids.to_pylist()


@pytest.mark.parametrize("kind", ["hash", "decimal", "time"])
def test_names_that_the_type_of_ids_cannot_hold_are_nulls(made: Path, tmp_path: Path, kind: str) -> None:
    """Rows may be appended under other names: bytes of another length, decimals with more digits, later times."""
    arrow_type, value = TYPED[kind]
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(table(slice(0, 5), pa.array([value] * ROWS, arrow_type)), tmp_path / "a.bin", id_column="uid")
    other = pa.array([{"hash": "abcd", "decimal": "123456789012.345", "time": "9999-99"}[kind]] * ROWS)
    append(tmp_path / "a.bin", table(slice(5, 7), other), codec)
    archives.decompress(tmp_path / "a.bin", tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet")["uid"].to_pylist() == [value] * 5 + [None] * 2


@pytest.mark.parametrize("kind", ["parquet", "arrow", "memory"])
def test_a_table_without_rows_is_refused(made: Path, tmp_path: Path, kind: str) -> None:
    """As an empty matrix is."""
    codec, given = stochcl.load(made / "head.safetensors", device="cpu"), table().slice(0, 0)
    if kind == "parquet":
        parquet.write_table(given, tmp_path / "none.parquet")
    elif kind == "arrow":
        feather.write_feather(given, tmp_path / "none.arrow")
    given = given if kind == "memory" else tmp_path / f"none.{kind}"
    codec.compress(made / "first.parquet", tmp_path / "a.bin", id_column="uid")
    with pytest.raises(SourceError, match="empty"):
        append(tmp_path / "a.bin", given, codec)
    with pytest.raises(SourceError, match="empty"):
        codec.compress(given, tmp_path / "b.bin")


def test_append_of_rows_without_ids_takes_those_by_which_a_table_has_grown(made: Path, tmp_path: Path) -> None:
    """Without ids a row is its number."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(table(slice(0, 20)).select(["vector"]), tmp_path / "a.bin")
    assert append(tmp_path / "a.bin", table().select(["vector"]), codec).facts == {"added": 40, "there": 20}
    with pytest.raises(UsageError, match="it has 20 rows"):
        append(tmp_path / "a.bin", table(slice(0, 20)).select(["vector"]), codec)


def test_append_wants_labels_where_there_are_some(made: Path, tmp_path: Path) -> None:
    """Where labels are stored a table must say which column has those of the new rows, and not in a file beside."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(made / "first.parquet", tmp_path / "a.bin", id_column="uid", label_column="topic")
    codec.compress(made / "first.parquet", tmp_path / "b.bin", id_column="uid")
    with pytest.raises(UsageError, match="label_column"):
        append(tmp_path / "a.bin", made / "rows.parquet", codec, id_column="uid")
    with pytest.raises(UsageError, match="label_column"):
        append(tmp_path / "a.bin", made / "rows.parquet", codec, id_column="uid", labels=made / "rows.parquet")
    with pytest.raises(UsageError, match="stores no labels"):
        append(tmp_path / "b.bin", made / "rows.parquet", codec, id_column="uid", label_column="topic")
    assert append(tmp_path / "b.bin", made / "rows.parquet", codec, id_column="uid").facts["added"] == 36


def test_several_matrices_are_appended(made: Path, tmp_path: Path) -> None:
    """Rows of several files go on from one to the next."""
    codec = stochcl.load(made / "head.safetensors", device="cpu")
    codec.compress(made / "rows.npy", tmp_path / "a.bin")
    edit = append(tmp_path / "a.bin", [made / "rows.npy", made / "more.npy"], codec)
    assert edit.facts == {"added": 20, "there": 60}


def test_labels_are_found_by_the_column_that_holds_the_names(made: Path, tmp_path: Path) -> None:
    """A table labels an archive whose rows stand in another order; one without names does it by order."""
    expected = tuple(f"topic {kind}" for kind in KINDS)
    with stochcl.open(made / "codes.bin") as archive:
        names = list(archive.names)
    found = read_labels(made / "backwards.parquet").match(names, "topic", partial=True)
    assert found[:7] + found[8:] == expected[:7] + expected[8:]
    assert found[7] == ""  # which has no id
    by_order = read_labels(made / "rows.parquet")
    assert by_order.match([f"{i:07d}" for i in range(ROWS)], "topic") == expected
    sizes = by_order.match([""] * ROWS, "size")
    assert list(map(float, sizes)) == table().column("size").to_pylist()
    with pytest.raises(LabelsError, match="none of its columns"):
        by_order.match(["a", "b"], "topic")
    with pytest.raises(LabelsError, match="no column"):
        by_order.match(names, "nope")
    with pytest.raises(LabelsError, match="label_column"):
        by_order.match(names)


def test_evaluate_takes_labels_of_a_table(made: Path) -> None:
    """Probes of several targets are trained on the columns of a file."""
    found, _ = evaluate_targets(
        made / "codes.bin", labels=made / "backwards.parquet", columns=["topic"], folds=2, latents=8
    )
    assert found["topic"].score > 0.8


def test_embeddings_are_evaluated_as_they_are(made: Path) -> None:
    """A table or matrices need no archive of their own, but a model."""
    how: dict[str, Any] = {"model": made / "head.safetensors", "folds": 2}
    one, facts = evaluate_embeddings([made / "rows.parquet"], id_column="uid", columns=["topic"], **how)
    assert facts["path"].endswith("rows.parquet")
    assert "topic" in facts["labels_from"]
    other, _ = evaluate_targets(made / "codes.bin", folds=2)
    assert one["label"].score == other["label"].score > 0.8
    matrix, _ = evaluate_embeddings([made / "rows.npy"], labels=made / "rows.parquet", columns=["topic"], **how)
    assert matrix["topic"].score > 0.8
    with pytest.raises(UsageError, match="model"):
        evaluate_embeddings([made / "rows.npy"], model=None)
    with pytest.raises(LabelsError, match=r"rows\.npy"):
        evaluate_embeddings([made / "rows.npy"], **how)


def test_queries_are_called_by_their_ids(made: Path) -> None:
    """A search names the column of ids as compressing does."""
    found = search(made / "codes.bin", [made / "first.parquet"], id_column="uid", count=1)
    assert found["queries"][1]["query"].endswith("row 997")
    assert found["queries"][1]["neighbours"][0]["name"] is not None
    with pytest.raises(UsageError, match="table"):
        search(made / "codes.bin", [made / "rows.npy"], id_column="uid", count=1)
