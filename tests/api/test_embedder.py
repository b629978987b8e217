"""What made embeddings: kept in models and archives, found in metadata, and never mixed."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stochcl
from stochcl.api import archives
from stochcl.api.append import append
from stochcl.api.evaluate import evaluate_targets
from stochcl.api.search import search
from stochcl.api.train import train
from stochcl.compress.header import Embedder, Header
from stochcl.errors import ModelMismatch, UsageError
from tests.making import make_head

if TYPE_CHECKING:
    from pathlib import Path

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAME = "org/sentences@abc123"
RNG = np.random.default_rng(5)
VECTORS = RNG.normal(size=(80, 12)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def table(metadata: dict[str, str] | None = None, rows: Any = UNIT, start: int = 0, **own: str) -> Any:
    field = pa.field("vector", pa.list_(pa.float32()), metadata=own or None)
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("label", pa.string()), field], metadata=metadata)
    labels = [f"side {int(row[0] > 0)}" for row in rows]
    return pa.table([list(range(start, start + len(rows))), labels, rows.tolist()], schema=schema)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_head(tmp_path_factory.mktemp("embedder") / "head.safetensors", VECTORS)


@pytest.fixture
def codes(head: Path, tmp_path: Path) -> Path:
    stochcl.load(head, device="cpu").compress(table(), tmp_path / "codes.bin", embedder=NAME)
    return tmp_path / "codes.bin"


def made(path: Path) -> Embedder | None:
    with stochcl.open(path) as archive:
        return Embedder.of(archive.header.embedder)


def test_it_is_kept_with_width_and_normalisation_and_shown(codes: Path, tmp_path: Path) -> None:
    assert made(codes) == Embedder("org/sentences", "abc123", 12, True)
    report = archives.info(codes)
    assert any("org/sentences@abc123, vectors of 12 numbers, of length one" in line for line in report.lines())
    assert report.to_json("info")["embedder"]["name"] == "org/sentences"
    archives.transcode(codes, tmp_path / "narrow.bin", latents=8)
    assert made(tmp_path / "narrow.bin") == made(codes)
    with stochcl.open(codes) as archive:
        assert archive.to_arrow().schema.metadata[b"embedder"] == NAME.encode()


def test_a_model_keeps_it_and_its_archives_have_it(head: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", 2 * VECTORS)
    train([tmp_path / "v.npy"], tmp_path / "m.safetensors", rate=4, entropy="independent", embedder=NAME)
    codec = stochcl.load(tmp_path / "m.safetensors")
    assert codec.embedder == Embedder("org/sentences", "abc123", 12, False)
    codec.compress(tmp_path / "v.npy", tmp_path / "a.bin")
    assert made(tmp_path / "a.bin") == codec.embedder
    report = codec.compress(table({"embedder": "org/other"}), tmp_path / "b.bin")
    assert any("another embedder" in warning for warning in report.warnings)
    assert codec.model.sha256 == dataclasses.replace(codec.model, record={}).sha256


@pytest.mark.parametrize(
    ("metadata", "own"),
    [
        ({"embedder": NAME}, {}),
        ({"embedding_model": "org/sentences", "embedding_model_revision": "abc123"}, {}),
        ({"huggingface": json.dumps({"info": {"features": {}, "embedding_model": NAME}})}, {}),
        ({}, {"model": NAME}),
    ],
)
def test_it_is_found_in_metadata(head: Path, tmp_path: Path, metadata: dict[str, str], own: dict[str, str]) -> None:
    stochcl.load(head).compress(table(metadata, **own), tmp_path / "a.bin")
    assert made(tmp_path / "a.bin") == Embedder("org/sentences", "abc123", 12, True)


OTHERS = [
    (table({"embedder": "org/other"}, start=80), {}, "org/other"),
    (table(start=80), {"embedder": "org/sentences@def"}, "revision"),
    (table({"embedder": NAME}, VECTORS, 80), {}, "normalised"),
]


@pytest.mark.parametrize(("other", "how", "word"), OTHERS)
def test_what_differs_is_not_mixed(
    head: Path, codes: Path, tmp_path: Path, other: Any, how: dict[str, Any], word: str
) -> None:
    codec = stochcl.load(head, device="cpu")
    with pytest.raises(ModelMismatch, match=word):
        append(codes, other, codec, **how)
    codec.compress(other, tmp_path / "other.bin", **how)
    with pytest.raises(ModelMismatch, match=word):
        archives.merge([codes, tmp_path / "other.bin"], tmp_path / "both.bin")
    with pytest.raises(ModelMismatch, match=word):
        evaluate_targets(codes, test=tmp_path / "other.bin")
    parquet.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(ModelMismatch, match=word):
        search(codes, [tmp_path / "other.parquet"], **how)


def test_what_nobody_says_is_not_compared(head: Path, codes: Path, tmp_path: Path) -> None:
    codec = stochcl.load(head, device="cpu")
    codec.compress(table(), tmp_path / "plain.bin")
    assert made(tmp_path / "plain.bin") is None
    archives.merge([codes, tmp_path / "plain.bin"], tmp_path / "both.bin")
    assert made(tmp_path / "both.bin") is None
    assert append(codes, table(rows=VECTORS, start=80), codec).facts["added"] == 80
    assert append(codes, table(start=160), codec, embedder="sentences@abc").facts["added"] == 80
    assert made(codes) == Embedder("org/sentences", "abc123", 12, True)


def test_images_have_no_embedder(images: Path, tmp_path: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="images"):
        stochcl.load(model).compress(images, tmp_path / "a.bin", embedder=NAME)


@pytest.mark.parametrize("value", [None, [], "org/x", {"name": [1]}, {"width": 3}, {"name": "x", "width": "3"}, 7])
def test_a_header_that_says_something_else_has_none(codes: Path, value: Any) -> None:
    with stochcl.open(codes) as archive:
        header = archive.header
    data = dataclasses.replace(header, version=1).to_bytes()
    text = json.loads(data[20:]) | {"embedder": value, "ids": value}
    text = json.dumps(text).encode()
    prologue = data[:12] + len(text).to_bytes(4, "little")
    from stochcl.framing import crc

    prologue += crc(prologue, text).to_bytes(4, "little")
    assert Embedder.of(Header.from_bytes(prologue, text).embedder) is None
