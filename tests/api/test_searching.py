"""Search: images find themselves, distances are those of a plain computation, and what is refused."""

import numpy as np
import pytest
from PIL import Image

import stochcl
from stochcl.api.search import _ROWS, search
from stochcl.errors import ImageError, ModelMismatch, UsageError
from tests.making import make_model


@pytest.fixture
def some(images):
    return sorted(images.rglob("*.png"))[:3]


def test_an_image_finds_itself(codes, images, model, some):
    found = search(codes, some, model=str(model), device="cpu", count=3, output="symbols")
    assert (found["schema"], found["images"], found["by"]) == ("stochcl.search/0", 42, "symbols")
    assert found["unit"] == "bits that differ"
    for query, path in zip(found["queries"], some, strict=True):
        assert query["row"] is None
        assert len(query["neighbours"]) == 3
        best = query["neighbours"][0]
        assert best["distance"] == 0
        same = [hit["name"] for hit in query["neighbours"] if hit["distance"] == 0]
        name = path.relative_to(images).as_posix()
        assert name in same or len(same) == 3
        assert best["label"] == best["name"].partition("/")[0]


def test_vectors_are_held_against_features(codes, codec, model, some):
    found = search(codes, some, model=str(model), device="cpu", count=5)
    assert (found["by"], found["unit"]) == ("vectors", "1 - cosine")
    features = codec.encode_prepared(codec.prepare(some)).features
    with stochcl.open(codes) as archive:
        vectors = archive.to_vectors()
    angles = 1 - (features @ vectors.T) / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)
    for query, row in zip(found["queries"], angles, strict=True):
        distances = [hit["distance"] for hit in query["neighbours"]]
        np.testing.assert_allclose(distances, np.sort(row)[:5], atol=2e-5)
        np.testing.assert_allclose(row[[hit["row"] for hit in query["neighbours"]]], distances, atol=2e-5)


def test_a_row_is_not_its_own_neighbour(codes):
    with stochcl.open(codes) as archive:
        names, symbols = archive.names, archive.to_numpy().astype(int)
    found = search(codes, names=[names[5]], rows=[0, 41], output="symbols", count=41)
    assert [query["row"] for query in found["queries"]] == [5, 0, 41]
    for query in found["queries"]:
        rows = [hit["row"] for hit in query["neighbours"]]
        assert sorted([*rows, query["row"]]) == list(range(42))
        expected = np.abs(symbols[rows] - symbols[query["row"]]).sum(axis=1)
        assert [hit["distance"] for hit in query["neighbours"]] == expected.tolist() == sorted(expected.tolist())


def test_a_narrower_archive_and_one_of_chosen_latents(codes, model, some, tmp_path):
    for name, options in (("prefix", {"latents": 8}), ("chosen", {"select": [3, 1, 20]})):
        path = tmp_path / f"{name}.bin"
        stochcl.transcode(codes, path, **options)
        for by in ("symbols", "vectors"):
            found = search(path, some, model=str(model), device="cpu", output=by, count=2)
            assert len(found["queries"]) == 3
            if by == "symbols":
                assert all(query["neighbours"][0]["distance"] == 0 for query in found["queries"])


def test_parts_give_what_the_whole_gives(codes, monkeypatch):
    whole = search(codes, rows=[7], count=20)
    monkeypatch.setattr("stochcl.api.search._ROWS", 5)
    assert search(codes, rows=[7], count=20) == whole
    assert _ROWS > 5


def test_symbols_of_more_values(tmp_path, rng):
    from stochcl.api.train import train

    np.save(tmp_path / "x.npy", rng.normal(size=(60, 6)).astype(np.float32))
    for family, unit in (("gaussian", "levels apart"), ("categorical", "latents that differ")):
        head, path = tmp_path / f"{family}.safetensors", tmp_path / f"{family}.bin"
        train([tmp_path / "x.npy"], head, latents=8, alphabet=8, posterior=family, latent_steps=10,
              entropy="independent", device="cpu")  # fmt: skip
        stochcl.load(head, device="cpu").compress(tmp_path / "x.npy", path)
        found = search(path, rows=[3], output="symbols", count=4)
        assert found["unit"].startswith(unit)
        (tmp_path / "a.png").touch()
        with pytest.raises(UsageError, match="holds codes of embeddings; an image cannot be its QUERY"):
            search(path, [tmp_path / "a.png"], model=str(head), device="cpu")
        # A matrix: every row is looked for, by its own numbers, or by its symbols.
        np.save(tmp_path / "q.npy", np.load(tmp_path / "x.npy")[[5, 9]])
        found = search(path, [tmp_path / "q.npy"], model=str(head), device="cpu", output="symbols", count=3)
        assert [query["query"][-5:] for query in found["queries"]] == ["row 0", "row 1"]
        assert [query["neighbours"][0]["distance"] for query in found["queries"]] == [0, 0]
        with stochcl.open(path) as archive:
            vectors = archive.to_vectors()
        query = np.load(tmp_path / "q.npy")[0]
        angles = 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        best = search(path, [tmp_path / "q.npy"], count=1)["queries"][0]["neighbours"][0]  # needs no model
        assert best["row"] == angles.argmin()
        assert best["distance"] == pytest.approx(angles.min(), abs=2e-6)
        np.save(tmp_path / "wide.npy", np.zeros((1, 7), np.float32))
        with pytest.raises(UsageError, match="its rows have 6 numbers, and the query 7"):
            search(path, [tmp_path / "wide.npy"])
        np.save(tmp_path / "nan.npy", np.full((1, 6), np.nan, np.float32))
        with pytest.raises(UsageError, match=r"nan\.npy: row 0: .* not a finite float32"):
            search(path, [tmp_path / "nan.npy"])


def test_what_is_refused(codes, images, model, some, tmp_path):
    other = make_model(tmp_path / "other.safetensors", images / "dogs")
    with pytest.raises(ModelMismatch, match=r"made by the model tiny .* not by other .* give its own as model"):
        search(codes, some, model=str(other), device="cpu")
    with pytest.raises(UsageError, match="what to search for"):
        search(codes)
    with pytest.raises(UsageError, match="its rows are 0 to 41"):
        search(codes, rows=[42])
    with pytest.raises(UsageError, match=r"it has no row named nothing\.png"):
        search(codes, names=["nothing.png"])
    with pytest.raises(UsageError, match="count must be at least 1"):
        search(codes, rows=[0], count=0)
    stochcl.transcode(codes, tmp_path / "nameless.bin", names=False)
    with pytest.raises(UsageError, match="its rows have no names"):
        search(tmp_path / "nameless.bin", names=["a"])
    assert search(tmp_path / "nameless.bin", rows=[0])["queries"][0]["query"] == "row 0"
    np.save(tmp_path / "x.npy", np.zeros((2, 5), np.float32))
    with pytest.raises(UsageError, match="holds codes of images; a matrix cannot be its QUERY"):
        search(codes, [tmp_path / "x.npy"])
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png"):
        search(codes, [tmp_path / "bad.png"], model=str(model), device="cpu")


def test_a_colour_image_of_another_shape(codes, model, tmp_path):
    Image.new("RGB", (80, 20), "red").save(tmp_path / "wide.png")
    assert search(codes, [tmp_path / "wide.png"], model=str(model), device="cpu")["queries"][0]["neighbours"]


@pytest.mark.parametrize("by", ["symbols", "vectors"])
@pytest.mark.parametrize("count", [41, 42, 43, 100])
def test_an_image_of_elsewhere_has_every_row_for_a_neighbour(codes, model, images, by, count):
    image = next((images / "cats").iterdir())
    found = search(codes, [image], rows=[3], model=str(model), device="cpu", output=by, count=count)
    row, image = ([n["row"] for n in query["neighbours"]] for query in found["queries"])
    assert sorted(image) == sorted(set(image))
    assert len(image) == min(count, 42)
    assert sorted(row) == [i for i in range(42) if i != 3]
