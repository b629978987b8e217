"""`stochcl compress`: every kind of source, and options that must not change the codes."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stochcl
from tests.making import LATENTS, json_of, make_pixels

EXAMPLES = Path(__file__).parents[2] / "examples" / "images"


def names_below(folder):
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*.*")]
    return tuple(sorted(paths, key=str.encode))


def packed(images, out, kind):
    """Pack a folder as a zip or tar."""
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            for name in names_below(images):
                archive.write(images / name, name)
    else:
        with tarfile.open(out, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(images, arcname=".")
    return out


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_of_images_give_the_folder_s_codes(compress, images, codes, tmp_path, kind):
    source = packed(images, tmp_path / f"photos.{kind}", kind)
    with stochcl.open(compress(source)) as archive, stochcl.open(codes) as expected:
        assert archive.names == expected.names == names_below(images)
        assert archive.labels == expected.labels == tuple(name.split("/")[0] for name in archive.names)
        np.testing.assert_array_equal(archive.to_numpy(), expected.to_numpy())
        assert archive.header.source_kind == kind.removesuffix(".gz")
        assert archive.source_bytes == expected.source_bytes


def test_an_array_of_images(compress, codec, tmp_path):
    pixels = np.stack([make_pixels(i, i)[:, :40] for i in range(11)])
    np.save(tmp_path / "pixels.npy", pixels)
    with stochcl.open(compress(tmp_path / "pixels.npy")) as archive:
        assert archive.names == tuple(f"{i:07d}" for i in range(11))
        assert archive.labels is None
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(pixels).symbols())
        assert archive.source_bytes == pixels.nbytes


def test_one_image_file(compress, codec, images):
    path = images / "dogs" / "03.jpg"
    with stochcl.open(compress(path)) as archive:
        assert archive.names == ("03.jpg",)
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode([path]).symbols())


@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "0"],
        ["--workers", "1", "--batch-size", "1"],
        ["--workers", "4", "--batch-size", "5"],
        ["--workers", "4", "--batch-size", "1000"],
    ],
    ids=" ".join,
)
def test_the_file_does_not_depend_on_batches_or_threads(compress, images, codes, options):
    assert compress(images, *options).read_bytes() == codes.read_bytes()


def test_nor_does_it_on_images_that_are_skipped_between(compress, images, codes, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    (mixed / "cats" / "00a.png").write_bytes(b"GIF89a")
    (mixed / "dogs" / "05.txt.png").write_text("words")
    with stochcl.open(compress(mixed, "--batch-size", "7")) as archive, stochcl.open(codes) as expected:
        assert [name for name, _ in archive.skipped] == ["cats/00a.png", "dogs/05.txt.png"]
        assert archive.names == expected.names
        np.testing.assert_array_equal(archive.to_numpy(), expected.to_numpy())


@pytest.mark.parametrize("latents", [1, 8, 13, LATENTS])
def test_latents_are_the_first_of_all(compress, images, codes, latents):
    with stochcl.open(compress(images, "--latents", str(latents))) as archive, stochcl.open(codes) as full:
        assert archive.header.latents == latents
        np.testing.assert_array_equal(archive.to_numpy(), full.to_numpy()[:, :latents])
        assert archive.to_vectors().shape == full.to_vectors().shape


def test_more_latents_than_the_model_has(refused, images, model, tmp_path):
    message = refused("compress", images, "-m", model, "-o", tmp_path / "a", "--latents", "33", code=2)
    assert message == "this model has 32 latents; --latents must be at most that, got 33."


@pytest.mark.parametrize("options", [(), ("--rate", "1000"), ("--shard-images", "14")])
def test_labels_stay_where_names_are_left_out_and_are_counted_apart(run, compress, images, codes, options):
    path = compress(images, "--no-names", *options)
    found = json_of(run("info", path, "--json"))
    assert found["parts"]["names"] == 0
    assert 0 < found["parts"]["labels"] < 100
    assert sum(found["parts"].values()) == found["bytes"]
    with stochcl.open(path) as archive, stochcl.open(codes) as named:
        assert archive.names is None
        assert archive.labels == named.labels
        np.testing.assert_array_equal(archive.to_numpy(), named.to_numpy())
    assert "accuracy" in run("evaluate", path, "--folds", "3").stdout


def test_rows_in_no_folder_have_no_label_with_names_or_without(compress, images):
    with stochcl.open(compress(images / "cats", "--no-names")) as archive:
        assert archive.names is archive.labels is None


def test_a_new_archive_without_names_keeps_labels(run, codes, tmp_path):
    run("transcode", codes, "-o", tmp_path / "a.bin", "--no-names")  # segments as they are
    run("transcode", codes, "-o", tmp_path / "b.bin", "--no-names", "--latents", "8")
    run("merge", tmp_path / "a.bin", tmp_path / "a.bin", "-o", tmp_path / "c.bin")
    with stochcl.open(codes) as named:
        labels = tuple(named.labels)
    for name, expected in (("a", labels), ("b", labels), ("c", labels * 2)):
        with stochcl.open(tmp_path / f"{name}.bin") as archive:
            assert archive.names is None
            assert archive.labels == expected


def test_fit_changes_what_happens_to_images_that_are_not_square(compress, codec, images):
    wide = images / "cats" / "00.png"
    found = {}
    for fit in ("crop", "pad", "stretch"):
        with stochcl.open(compress(images, "--fit", fit, name=f"{fit}.bin")) as archive:
            assert archive.header.preprocess == {"size": 32, "fit": fit}
            found[fit] = archive.to_numpy()
    with Image.open(wide) as image:
        assert image.size == (48, 40)
    assert not np.array_equal(found["crop"], found["pad"])
    assert not np.array_equal(found["crop"], found["stretch"])
    np.testing.assert_array_equal(found[codec.preprocess.fit][0], codec.encode([wide]).symbols()[0])


def test_strict_stops_at_the_first_image_that_cannot_be_read(refused, compress, model, images, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    (mixed / "cats" / "05.jpg").write_bytes(b"")
    out = tmp_path / "codes.bin"
    message = refused("compress", mixed, "-m", model, "-o", out, "--strict")
    said = "cats/05.jpg: the file is empty (0 bytes); --strict stops at images that are damaged or cannot be read."
    assert message == f"{mixed}: {said}"
    assert list(tmp_path.glob("codes*")) == []
    assert compress(images, "--strict").exists()


def test_strict_also_stops_at_images_that_are_not_opened_at_all(refused, model, images, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    (mixed / "lost.png").symlink_to("nowhere.png")
    message = refused("compress", mixed, "-m", model, "-o", tmp_path / "a.bin", "--strict")
    assert "lost.png: it is a broken link" in message


def test_an_existing_output_is_replaced_when_asked_only(refused, compress, images, model, codes, tmp_path):
    out = tmp_path / "codes.bin"
    out.write_bytes(b"precious")
    message = refused("compress", images, "-m", model, "-o", out, code=2)
    assert message == f"{out}: this file exists already; pass --force to replace it."
    assert out.read_bytes() == b"precious"
    assert compress(images, "--force").read_bytes() == codes.read_bytes()


def test_resume_without_anything_to_resume_begins(compress, images, codes):
    assert compress(images, "--resume").read_bytes() == codes.read_bytes()
    assert not codes.with_name("codes.bin.partial").exists()


def test_images_of_a_kind_that_the_model_does_not_know_bring_a_warning(run, tmp_path, rng):
    np.save(tmp_path / "noise.npy", rng.integers(0, 256, (120, 64, 64, 3), np.uint8))
    result = run("compress", tmp_path / "noise.npy", "-o", tmp_path / "a.bin", "--device", "cpu", "--json")
    assert result.stderr.startswith("warning: ")
    assert "a kind that it was not trained on; `stochcl transcode --refit`" in result.stderr
    assert "`stochcl adapt`" in result.stderr
    json.loads(result.stdout)


def test_images_like_the_training_images_bring_none(run, tmp_path):
    result = run("compress", EXAMPLES, "-o", tmp_path / "a.bin", "--device", "cpu")
    assert "warning" not in result.stderr


def test_codes_that_take_far_more_bits_than_those_of_the_training_images_bring_a_warning(run, tmp_path, monkeypatch):
    from stochcl.api.codec import Codec

    begin = Codec.__init__

    def trained_on_easier_images(codec, *args, **kwargs):
        begin(codec, *args, **kwargs)
        codec.model.record["entropy"] = {"autoregressive_bits": {"8": 1.0, "128": 20.0}}

    monkeypatch.setattr(Codec, "__init__", trained_on_easier_images)
    result = run("compress", EXAMPLES, "-o", tmp_path / "a.bin", "--latents", "68", "--device", "cpu")
    assert "bits per image, the model's training images 10" in result.stderr


def test_another_size_is_shown_and_one_out_of_range_is_refused(run, refused, model, tmp_path):
    sides, out = stochcl.load(device="cpu").sizes, tmp_path / "a.bin"
    result = run("compress", EXAMPLES, "-o", out, "--device", "cpu", "--size", str(sides[0]))
    assert "warning" not in result.stderr
    line = result.stdout.splitlines()[1]
    assert line.endswith(f"{sides[0]} x {sides[0]} pixels")
    assert line in run("info", out).stdout
    assert json_of(run("info", out, "--json"))["size"] == sides[0]
    more = "compress", EXAMPLES, "-o", tmp_path / "b.bin"
    said = refused(*more, "--size", str(sides[-1] + 1), code=2)
    assert f"{sides[0]} to {sides[-1]} pixels" in said
    assert "only 32 pixels" in refused(*more, "-m", model, "--size", "48", code=2)
