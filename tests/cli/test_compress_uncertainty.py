"""`stochcl compress --uncertainty`: a byte an image, counted apart, and kept by whatever is done to the file."""

import json

import numpy as np
import pytest

import stochcl


@pytest.fixture
def sure(compress, images):
    return compress(images, "--uncertainty", name="sure.bin")


def test_it_is_stored_and_counted_apart(run, sure, codes, images, model):
    with stochcl.open(sure) as archive, stochcl.open(codes) as plain:
        np.testing.assert_array_equal(archive.to_numpy(), plain.to_numpy())
        assert plain.uncertainty is None
        expected = stochcl.load(model, device="cpu").encode([images / name for name in archive.names]).uncertainty
        np.testing.assert_allclose(archive.uncertainty, expected, atol=np.ptp(expected) / 254)
    found, before = (json.loads(run("info", path, "--json").stdout) for path in (sure, codes))
    assert 0 < found["parts"].pop("uncertainty") <= found["images"] + 30
    assert found["parts"]["codes"] == before["parts"]["codes"]
    assert set(found["parts"]) == set(before["parts"])
    assert "  uncertainty " in run("info", sure).stdout
    run("verify", sure)


def test_a_rate_is_that_of_the_codes(compress, images):
    plain, found = compress(images, "--rate", "12"), compress(images, "--rate", "12", "--uncertainty", name="b.bin")
    with stochcl.open(plain) as a, stochcl.open(found) as b:
        assert a.header.latents == b.header.latents
        assert len(b.uncertainty) == len(a)


def test_it_goes_along_when_images_are_added_and_files_are_joined_and_cut(
    run, sure, compress, images, model, tmp_path
):
    few = tmp_path / "few"
    few.mkdir()
    (few / "cats").mkdir()
    for i in range(3):
        (few / "cats" / f"new{i}.png").write_bytes((images / "cats" / f"0{2 * i}.png").read_bytes())
    other = compress(few, "--uncertainty", name="other.bin")
    with stochcl.open(sure) as a, stochcl.open(other) as b:
        expected = np.concatenate([a.uncertainty, b.uncertainty])
    run("merge", sure, other, "-o", tmp_path / "merged.bin")
    run("append", sure, few, "-m", model, "--device", "cpu")
    for path in (tmp_path / "merged.bin", sure):
        with stochcl.open(path) as archive:
            np.testing.assert_allclose(archive.uncertainty, expected, atol=np.ptp(expected) / 254)
    run("split", sure, "-o", tmp_path / "parts", "--parts", "2")
    parts = [stochcl.open(path) for path in sorted((tmp_path / "parts").iterdir())]
    np.testing.assert_allclose(np.concatenate([part.uncertainty for part in parts]), expected, atol=0.2)
    run("transcode", sure, "-o", tmp_path / "none.bin", "--no-uncertainty", "--latents", "4")
    with stochcl.open(tmp_path / "none.bin") as archive:
        assert archive.uncertainty is None


def test_files_with_and_without_it_are_not_joined(refused, sure, codes, tmp_path):
    said = refused("merge", sure, codes, "-o", tmp_path / "merged.bin", code=2)
    assert "its rows have no uncertainty" in said
    assert "--no-uncertainty" in said


def test_another_choice_does_not_go_on_with_an_interrupted_run(refused, images, model, tmp_path):
    codec = stochcl.load(model, device="cpu")
    path = tmp_path / "a.bin"

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.compress(images, path, batch_size=4, progress=stop)
    if path.with_name("a.bin.partial").exists():
        said = refused("compress", images, "-m", model, "-o", path, "--uncertainty", "--resume", code=2)
        assert "--uncertainty" in said
