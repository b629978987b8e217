"""Images encoded at another size than the model's own: one size an archive, within what latents were fitted to."""

import numpy as np
import pytest

import stochcl
from stochcl.api.compress import CompressOptions
from stochcl.api.evaluate import evaluate
from stochcl.api.predict import predict
from stochcl.api.search import search
from stochcl.api.shards import compress_to_folder
from stochcl.api.train import adapt
from stochcl.errors import UsageError
from tests.distributed.test_compression import through_workers
from tests.making import SIZE, Interrupted, make_head, stop_after

OTHER = SIZE * 3 // 2


@pytest.fixture(scope="module")
def file(images, model, tmp_path_factory):
    """A model with residual latents."""
    path = tmp_path_factory.mktemp("residual") / "residual.safetensors"
    adapt([images], path, model=model, rate=16, device="cpu")
    return path


@pytest.fixture
def residual(file):
    return stochcl.load(file, device="cpu")


@pytest.fixture
def large(residual, images, tmp_path):
    residual.compress(images, tmp_path / "large.bin", size=OTHER)
    return tmp_path / "large.bin"


def symbols(path):
    with stochcl.open(path) as archive:
        return archive.to_numpy()


def test_an_archive_records_the_size_and_holds_the_codes_of_it(residual, file, images, large, tmp_path):
    report = residual.compress(images, tmp_path / "own.bin")
    assert (residual.size, report.size, report.to_json("compress")["size"]) == (SIZE, SIZE, SIZE)
    with stochcl.open(large) as archive:
        assert (archive.header.size, archive.header.input_bytes) == (OTHER, 3 * OTHER**2)
        paths = [images / name for name in archive.names]
    for other in (stochcl.load(file, device="cpu", size=OTHER), residual.with_size(OTHER)):
        assert other.size == OTHER
        np.testing.assert_array_equal(other.encode(paths).symbols(), symbols(large))
        np.testing.assert_array_equal(other.with_size(SIZE).encode(paths).symbols(), symbols(tmp_path / "own.bin"))
    assert not np.array_equal(symbols(large), symbols(tmp_path / "own.bin"))


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_append_keeps_to_the_size_of_the_archive(residual, images, tmp_path, runtime):
    codec, path = residual.with_runtime(runtime), tmp_path / "codes.bin"
    codec.compress(images / "dogs", path, size=OTHER)
    stochcl.append(path, images, residual.with_size(SIZE - 1))  # whose names begin with a folder
    with stochcl.open(path) as archive:
        assert (archive.header.size, len(archive)) == (OTHER, 14 + 42)
        expected = codec.with_size(OTHER).encode([images / name for name in archive.names[14:]]).symbols()
        np.testing.assert_array_equal(archive.to_numpy()[14:], expected)


def test_a_query_is_encoded_at_the_size_of_the_archive(large, file, images):
    query = images / "dogs" / "03.jpg"
    (found,) = search(large, [query], model=str(file), device="cpu", output="symbols", count=1)["queries"]
    assert (found["neighbours"][0]["name"], found["neighbours"][0]["distance"]) == ("dogs/03.jpg", 0)


@pytest.mark.parametrize("run", [None, through_workers])
def test_shards_have_the_size(residual, large, file, images, tmp_path, run):
    for codec, size in ((residual, OTHER), (residual.with_size(OTHER), None)):
        out = tmp_path / f"codes-{size}"
        compress_to_folder(
            codec, [images], out, CompressOptions(size=size, workers=1), model=str(file), shard_images=25, run=run
        )
        np.testing.assert_array_equal(symbols(out), symbols(large))
    with pytest.raises(UsageError, match="size"):
        compress_to_folder(residual, [images], out, CompressOptions(), model=str(file), shard_images=25)


def test_other_sizes_are_refused(residual, codec, images, tmp_path, rng):
    sizes = residual.sizes
    assert (sizes[0], sizes[-1]) == (24, 48)
    for size in (23, 49, True):
        with pytest.raises(UsageError, match="size"):
            residual.compress(images, tmp_path / "codes.bin", size=size)
    with pytest.raises(UsageError, match="24 to 48"):
        residual.with_size(49)
    assert codec.with_size(SIZE) is codec
    with pytest.raises(UsageError, match="only 32"):  # other latents know their own size alone
        codec.with_size(OTHER)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    with pytest.raises(UsageError, match="vectors"):
        stochcl.load(make_head(tmp_path / "head.safetensors", vectors), device="cpu", size=SIZE)
    assert not (tmp_path / "codes.bin").exists()


def test_archives_of_two_sizes_are_not_merged(residual, large, images, tmp_path):
    residual.compress(images, tmp_path / "own.bin")
    with pytest.raises(UsageError, match=r"prepared in another way.*size"):
        stochcl.merge([tmp_path / "own.bin", large], tmp_path / "both.bin")


def test_scores_across_two_sizes_come_with_a_note(residual, large, images, tmp_path):
    own, probe = tmp_path / "own.bin", tmp_path / "probe.skops"
    residual.compress(images, own)
    found, _ = evaluate(own, test=large, save=probe)
    assert sum(f"{OTHER} pixels" in note for note in found.notes) == 1
    (note,) = predict(large, probe, tmp_path / "out.csv")["notes"]
    assert f"{OTHER} pixels" in note
    assert not predict(own, probe, tmp_path / "out.csv", force=True)["notes"]


def test_an_interrupted_run_is_resumed_at_its_own_size_alone(residual, large, images, tmp_path, small_segments):
    small_segments(10)
    path = tmp_path / "codes.bin"
    with pytest.raises(Interrupted):
        residual.compress(images, path, progress=stop_after(15), batch_size=3, size=OTHER)
    with pytest.raises(UsageError, match="size"):
        residual.compress(images, path, resume=True)
    residual.compress(images, path, resume=True, size=OTHER)
    np.testing.assert_array_equal(symbols(path), symbols(large))


@pytest.mark.parametrize("size", ["160", 160.5, True, [128]])
def test_a_size_is_a_whole_number(size):
    with pytest.raises(UsageError, match="whole number"):
        stochcl.load("fast", device="cpu", size=size)
