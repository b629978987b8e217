"""An index of an archive's codes answers as its decoded vectors do."""

from pathlib import Path

import numpy as np
import pytest

import stochcl
from stochcl.downstream import ArchiveIndex, CodeIndex
from stochcl.downstream import distances as search
from stochcl.errors import UsageError

TESTS = Path(__file__).parents[1]
RESIDUAL = ["golden/residual.bin", "golden/residual-map.bin", "golden/residual-selection.bin",
            "released/general-927f5774.bin"]  # fmt: skip


@pytest.mark.parametrize("blocks", [1, 4, 1024])
@pytest.mark.parametrize("name", RESIDUAL)
def test_what_decoded_vectors_give(name, blocks, rng, monkeypatch):
    monkeypatch.setattr(search, "_BLOCKS", blocks)
    with stochcl.open(TESTS / name) as archive:
        index, vectors = ArchiveIndex(archive), archive.to_vectors()
    count = min(4, len(vectors))
    queries = np.concatenate([vectors[:2], rng.normal(size=(3, vectors.shape[1])), np.zeros((1, vectors.shape[1]))])
    distances, rows = index.kneighbors(queries, count)
    expected, _ = CodeIndex(metric="cosine").fit(vectors).kneighbors(queries, count)
    np.testing.assert_allclose(distances, expected, atol=3e-6)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    length = np.linalg.norm(queries, axis=1, keepdims=True)
    cosine = queries / np.where(length > 0, length, 1) @ unit.T
    np.testing.assert_allclose(1 - np.take_along_axis(cosine, rows, 1), distances, atol=3e-6)
    assert len(index) == len(vectors)


def test_equal_rows_come_in_their_order():
    with stochcl.open(TESTS / RESIDUAL[0]) as archive:
        index, vectors = ArchiveIndex(archive), archive.to_vectors()
    distances, rows = index.kneighbors(vectors[:1], len(vectors))
    assert list(zip(distances[0], rows[0], strict=True)) == sorted(zip(distances[0], rows[0], strict=True))


def test_what_is_refused():
    with stochcl.open(TESTS / "golden/categorical.bin") as archive, pytest.raises(UsageError, match="residual"):
        ArchiveIndex(archive)
    with stochcl.open(TESTS / RESIDUAL[0]) as archive:
        index, width = ArchiveIndex(archive), archive.decoder.dim
    for queries, count in (
        (np.zeros((1, width + 1)), 1),
        (np.full((1, width), np.nan), 1),
        (np.zeros((1, width)), 0),
    ):
        with pytest.raises(UsageError, match=r"must be|finite vectors"):
            index.kneighbors(queries, count)
