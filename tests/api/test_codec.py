"""`stochcl.load` and `Codec.encode`: what may be given, what comes back, what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

import stochcl
from stochcl.api import archives
from stochcl.errors import FormatError, ImageError, ModelError, UsageError
from tests.making import LATENTS, SIZE, make_pixels

PIXELS = np.stack([make_pixels(i, i) for i in range(5)])


def test_what_a_codec_says_of_itself(codec, model):
    assert (codec.latents, codec.size) == (LATENTS, SIZE)
    assert (codec.preprocess.size, codec.preprocess.fit) == (SIZE, "crop")
    assert codec.model.name == "tiny"
    assert isinstance(codec, stochcl.Codec)
    again = stochcl.load(str(model), device="cpu")
    assert again.tables.sha256 == codec.tables.sha256
    assert not codec.has_packaged_tables


def test_a_codec_shows_what_it_is(codec):
    assert repr(codec) == f"<Codec 'tiny': images of {SIZE} pixels to {LATENTS} latents of 2 values, fp32 on cpu>"


def test_codes_and_archives_show_what_they_are(codec, codes):
    assert repr(codec.encode(PIXELS, uncertainty=False)) == f"<Codes: 5 rows of {LATENTS} latents of 2 values>"
    with stochcl.open(codes) as archive:
        assert repr(archive) == f"<Archive {codes}: 42 rows of {LATENTS} latents of 2 values, by model 'tiny'>"
        assert repr(archive[:3]) == f"<Codes: 3 rows of {LATENTS} latents of 2 values, with names, labels>"


def test_codes_are_decoded_as_an_archive_decodes_them(codec, images, tmp_path):
    codec.compress(images, tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        np.testing.assert_array_equal(codec.decode(archive[:]), archive.to_vectors())
        np.testing.assert_array_equal(codec.decode(archive[:].prefix(8)), archive.to_vectors(8))
    wide = stochcl.Codes.from_symbols(np.zeros((1, LATENTS + 1), np.uint8), alphabet=2)
    with pytest.raises(UsageError, match="latents"):
        codec.decode(wide)


def test_dir_lists_the_public_names_and_nothing_else():
    assert dir(stochcl) == sorted(stochcl.__all__)
    assert all(getattr(stochcl, name) is not None for name in dir(stochcl))


def test_rows_are_chosen_by_name(codes, tmp_path):
    with stochcl.open(codes) as archive:
        assert archive.row("dogs/03.jpg") == 17
        assert archive["dogs/03.jpg"].names == ("dogs/03.jpg",)
        np.testing.assert_array_equal(archive["dogs/03.jpg"].packed, archive[17].packed)
        for ask in (archive.row, archive.__getitem__):
            with pytest.raises(KeyError, match="no row named"):
                ask("dogs")
    archives.merge([codes, codes], tmp_path / "twice.bin")
    with stochcl.open(tmp_path / "twice.bin") as twice:
        assert twice.row("dogs/03.jpg") == 17
    archives.transcode(codes, tmp_path / "nameless.bin", names=False)
    with stochcl.open(tmp_path / "nameless.bin") as nameless, pytest.raises(UsageError, match="no names"):
        nameless.row("dogs/03.jpg")


def test_errors_are_the_errors_of_python_that_they_are(codec, images, codes, tmp_path):
    missing = tmp_path / "missing"
    for ask in (
        lambda: stochcl.open(missing),
        lambda: stochcl.load(missing),
        lambda: codec.compress(missing, tmp_path / "a.bin"),
        lambda: codec.compress([images, missing], tmp_path / "a.bin"),
        lambda: archives.info(missing),
        lambda: stochcl.append(missing, images, codec),
    ):
        with pytest.raises(FileNotFoundError, match="there is no"):
            ask()
    shutil.copy(codes, tmp_path / "a.bin")
    for write in (
        lambda: codec.compress(images, tmp_path / "a.bin"),
        lambda: stochcl.merge([codes], tmp_path / "a.bin"),
        lambda: stochcl.writer(tmp_path / "a.bin", codec),
    ):
        with pytest.raises(FileExistsError, match=r"pass force=True to replace it\.$"):
            write()
    (tmp_path / "no.safetensors").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a stochcl model"):
        stochcl.load(tmp_path / "no.safetensors")


def test_codes_have_a_row_an_image_and_its_uncertainty(codec):
    codes = codec.encode(PIXELS)
    assert isinstance(codes, stochcl.Codes)
    assert (len(codes), codes.latents, codes.alphabet) == (5, LATENTS, 2)
    assert codes.names is codes.labels is None
    assert codes.uncertainty.shape == (5,)
    assert ((codes.uncertainty > 0) & (codes.uncertainty <= LATENTS)).all()
    assert len(np.unique(codes.symbols(), axis=0)) > 1


def test_arrays_paths_and_pillow_images_are_the_same_images(codec, tmp_path):
    expected = codec.encode(PIXELS).symbols()
    pillow = [Image.fromarray(pixels) for pixels in PIXELS]
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for image, path in zip(pillow, paths, strict=True):
        image.save(path)
    mixed = [PIXELS[0], pillow[1], paths[2], str(paths[3]), Image.fromarray(PIXELS[4])]
    for given in (list(PIXELS), tuple(pillow), paths, mixed):
        np.testing.assert_array_equal(codec.encode(given).symbols(), expected)


def test_images_of_the_model_s_size_are_taken_as_they_are(codec):
    square = np.ascontiguousarray(PIXELS[:, :SIZE, :SIZE])
    np.testing.assert_array_equal(codec.encode(square).symbols(), codec.encode(list(square)).symbols())


def test_grey_images(codec):
    grey = PIXELS[..., 0]
    expected = codec.encode(grey[..., None].repeat(3, 3)).symbols()
    np.testing.assert_array_equal(codec.encode(list(grey)).symbols(), expected)
    np.testing.assert_array_equal(codec.encode(grey[..., None]).symbols(), expected)
    np.testing.assert_array_equal(codec.encode(list(grey[..., None])).symbols(), expected)


def test_transparent_images_lie_on_white(codec):
    alpha = np.zeros((*PIXELS.shape[1:3], 1), np.uint8)
    clear = np.concatenate([PIXELS[0], alpha], axis=2)
    white = np.full_like(PIXELS[0], 255)
    np.testing.assert_array_equal(codec.encode([clear]).symbols(), codec.encode([white]).symbols())


def test_codes_do_not_depend_on_what_else_is_encoded(codec):
    many = np.stack([make_pixels(i, i) for i in range(70)])  # more than the network sees at a time
    whole = codec.encode(many).symbols()
    np.testing.assert_array_equal(codec.encode(many[::-1]).symbols()[::-1], whole)
    np.testing.assert_array_equal(codec.encode(many[66:67]).symbols(), whole[66:67])


def test_a_pillow_image_stays_the_caller_s(codec, tmp_path):
    big = Image.fromarray(make_pixels(0, size=800))
    big.save(tmp_path / "big.jpg")
    with Image.open(tmp_path / "big.jpg") as image:
        codec.encode([image])
        assert image.size == big.size


def test_a_prefix_of_the_latents(codec):
    np.testing.assert_array_equal(codec.encode(PIXELS, latents=8).symbols(), codec.encode(PIXELS).symbols()[:, :8])
    for latents in (0, LATENTS + 1):
        with pytest.raises(UsageError, match="this model has 32 latents"):
            codec.encode(PIXELS, latents=latents)


@pytest.mark.parametrize("given", [[], np.empty((0, 40, 48, 3), np.uint8), np.empty((0, SIZE, SIZE, 3), np.uint8)])
def test_no_images_are_no_codes(codec, given):
    assert codec.encode(given).symbols().shape == (0, LATENTS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.png", "a list of images, not one str: put it into a list."),
        (b"a.png", "not one bytes"),
        (Image.new("RGB", (9, 9)), "not one Image: put it into a list."),
        (PIXELS[0], r"not uint8 of shape \(40, 48, 3\); put a single image into a list."),
        (PIXELS / 255, r"not float64 of shape"),
        (PIXELS.transpose(0, 3, 1, 2), r"not uint8 of shape \(5, 3, 40, 48\)"),
        ([PIXELS[0] / 255], r"image 0: an image is uint8 of shape \(H, W, 3\) or \(H, W\), not float64"),
        ([PIXELS[0], PIXELS], r"image 1: an image is uint8 of shape"),
        ([PIXELS[0, :0]], r"image 0: .* not uint8 \(0, 48, 3\)"),
        ([None], "image 0: an image is a path, an array or a Pillow image, not NoneType."),
    ],
)
def test_what_is_no_list_of_images(codec, given, message):
    with pytest.raises(UsageError, match=message):
        codec.encode(given)


def test_an_image_that_cannot_be_read_is_named(codec, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(PIXELS[0]).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name, reason in [
        ("empty.png", r"the file is empty \(0 bytes\)"),
        ("half.png", "the image is truncated or damaged"),
        ("no.png", "it cannot be read: no such file or directory"),
        (".", "it cannot be read: is a directory"),
    ]:
        with pytest.raises(ImageError, match=f"image 1: .*: {reason}"):
            codec.encode([PIXELS[0], tmp_path / name])
    with (
        Image.open(tmp_path / "half.png") as image,
        pytest.raises(ImageError, match="image 0: the image is truncated"),
    ):
        codec.encode([image])


def test_models_and_devices_that_are_not_there(model, tmp_path):
    with pytest.raises(UsageError, match="there is no model of this name"):
        stochcl.load("nowhere")
    with pytest.raises(UsageError, match="there is no device 'abacus' here"):
        stochcl.load(model, device="abacus")
    (tmp_path / "text").write_text("words")
    with pytest.raises(ModelError, match="text: "):
        stochcl.load(tmp_path / "text")


def test_a_writer_takes_codes_batch_by_batch(codec, tmp_path):
    path = tmp_path / "codes.bin"
    with stochcl.writer(path, codec) as out:
        for start in (0, 2, 4):
            out.add(codec.encode(PIXELS[start : start + 2]))
    with stochcl.open(path) as archive:
        assert isinstance(archive, stochcl.Archive)
        assert archive.names is None
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(PIXELS).symbols())
        assert archive[:].uncertainty is None
        assert archive.header.model_sha256 == codec.model.sha256
        assert archive.to_vectors().shape == (5, archive.header.feature_dim)


def test_uncertainty_is_stored_where_it_is_asked_for_and_is_the_whole_codes(codec, tmp_path):
    whole = codec.encode(PIXELS)
    assert codec.encode(PIXELS, uncertainty=False).uncertainty is None
    np.testing.assert_array_equal(codec.encode(PIXELS, latents=8).uncertainty, whole.uncertainty)
    with stochcl.writer(tmp_path / "a", codec, uncertainty=True) as out:
        out.add(whole)
    with stochcl.open(tmp_path / "a") as archive:
        np.testing.assert_allclose(archive.uncertainty, whole.uncertainty, atol=np.ptp(whole.uncertainty) / 254)
        np.testing.assert_array_equal(archive[1:3].uncertainty, archive.uncertainty[1:3])


def test_a_writer_of_narrower_codes(codec, tmp_path):
    with stochcl.writer(tmp_path / "a", codec, latents=8) as out:
        with pytest.raises(ValueError, match="this archive has 8 latents"):
            out.add(codec.encode(PIXELS))
        out.add(codec.encode(PIXELS, latents=8))
    with stochcl.open(tmp_path / "a") as archive:
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(PIXELS).symbols()[:, :8])
    with pytest.raises(FormatError, match="33 of 32 latents"):
        stochcl.writer(tmp_path / "b", codec, latents=33)
    assert not list(tmp_path.glob("b*"))


def test_names_that_the_package_does_not_have():
    with pytest.raises(AttributeError, match="module 'stochcl' has no attribute 'compress_images'"):
        _ = stochcl.compress_images
    assert {"load", "open", "writer", "Codec", "Codes", "Archive", "Writer"} <= set(stochcl.__all__)
