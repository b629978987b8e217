"""`stochcl export` and `import-faiss`: what FAISS finds is what vectors give, and its codes come back."""

import sys
from pathlib import Path

import numpy as np
import pytest

import stochcl
from tests.making import json_of


@pytest.fixture
def faiss():
    found = pytest.importorskip("faiss")
    found.omp_set_num_threads(1)
    return found


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF2,Flat"])
def test_an_index_finds_what_search_finds(run, codes, faiss, factory, tmp_path):
    found = json_of(run("export", codes, "--faiss", tmp_path / "i.faiss", "--factory", factory, "--json"))
    index = faiss.read_index(str(tmp_path / "i.faiss"))
    assert (found["images"], found["dimensions"], index.ntotal) == (42, index.d, 42)
    with stochcl.open(codes) as archive:
        vectors = archive.to_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine, _ = index.search(unit[:5], 1)
    np.testing.assert_allclose(cosine[:, 0], 1, atol=1e-5)


def test_vectors_for_cosines_have_length_1(run, faiss, tmp_path):
    path = Path(__file__).parents[1] / "golden" / "residual-map.bin"
    run("export", path, "--faiss", tmp_path / "i.faiss")
    with stochcl.open(path) as archive:
        vectors = archive.to_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 1e-3
    np.testing.assert_allclose(faiss.read_index(str(tmp_path / "i.faiss")).reconstruct_n(), unit, atol=1e-6)


def test_distances_bits_and_matrices(run, codes, faiss, tmp_path):
    run("export", codes, "--faiss", tmp_path / "l2.faiss", "--metric", "l2")
    run("export", codes, "--faiss", tmp_path / "b.faiss", "--binary")
    run("export", codes, "--npy", tmp_path / "v.npy")
    with stochcl.open(codes) as archive:
        vectors, packed = archive.to_vectors(), archive[:].packed
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)
    np.testing.assert_array_equal(faiss.read_index(str(tmp_path / "l2.faiss")).reconstruct_n(0, 42), vectors)
    binary = faiss.read_index_binary(str(tmp_path / "b.faiss"))
    np.testing.assert_array_equal(np.stack([binary.reconstruct(i) for i in range(42)]), packed)


def test_what_is_refused(run, codes, faiss, tmp_path, monkeypatch):
    assert "either --faiss" in run("export", codes, code=2).stderr
    assert "ending" in run("export", codes, "--npy", tmp_path / "x.bin", code=2).stderr
    for factory in ("nonsense", "IVF4096,Flat"):
        result = run("export", codes, "--faiss", tmp_path / "x.faiss", "--factory", factory, code=2)
        assert factory in result.stderr
        assert not (tmp_path / "x.faiss").exists()
    quantiser = faiss.IndexPQ(8, 2, 4)
    for index in (quantiser, faiss.IndexIDMap(quantiser)):
        faiss.write_index(index, str(tmp_path / "empty.faiss"))
        assert "it is empty" in run("import-faiss", tmp_path / "empty.faiss", "-o", tmp_path / "e.bin", code=1).stderr
    (tmp_path / "x.faiss").write_bytes(b"no index")
    assert "x.faiss" in run("import-faiss", tmp_path / "x.faiss", "-o", tmp_path / "x.bin", code=1).stderr
    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "flat.faiss"))
    assert "IndexFlat" in run("import-faiss", tmp_path / "flat.faiss", "-o", tmp_path / "x.bin", code=1).stderr
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "stochcl[faiss]" in run("export", codes, "--faiss", tmp_path / "y.faiss", code=2).stderr


@pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning")
@pytest.mark.parametrize("factory", ["PQ4x4", "RQ2x5", "IDMap,PQ2x8"])
def test_codes_of_faiss_come_back(run, faiss, factory, rng, tmp_path):
    x = rng.normal(size=(600, 8)).astype(np.float32)
    x[:, 4:] = x[:, :4] + 0.1 * x[:, 4:]
    index = faiss.index_factory(8, factory)
    index.train(x)
    if "IDMap" in factory:
        index.add_with_ids(x, np.arange(1000, 1600))
    else:
        index.add(x)
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    found = json_of(run("import-faiss", tmp_path / "i.faiss", "-o", tmp_path / "codes.bin", "--json"))
    inner = faiss.downcast_index(index.index) if "IDMap" in factory else index
    with stochcl.open(tmp_path / "codes.bin") as archive:
        np.testing.assert_allclose(archive.to_vectors(), inner.reconstruct_n(0, 600), atol=0.05)
        assert (archive.names is None) == ("IDMap" not in factory)
        assert archive.names is None or archive.names[3] == "1003"
    assert found["index_code_bytes"] == inner.codes.size()
    assert found["parts"]["codes"] > 0
    assert "keeps these codes in" in run("import-faiss", tmp_path / "i.faiss", "-o", tmp_path / "b.bin").stdout
