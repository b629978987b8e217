"""Codes computed in bf16: close to those of fp32, and never mixed with them."""

import numpy as np
import pytest

import stochcl
from stochcl.api.evaluate import evaluate
from stochcl.api.predict import predict
from stochcl.errors import StochclError, UsageError
from tests.making import Interrupted, stop_after


@pytest.fixture
def fast(model):
    return stochcl.load(model, device="cpu", precision="bf16")


def test_the_network_alone_computes_in_bf16(codec, fast, images):
    paths = sorted(images.rglob("*.png"))
    exact, rough = (c.encode_prepared(c.prepare(paths)) for c in (codec, fast))
    assert rough.features.dtype == np.float32
    assert not np.array_equal(exact.features, rough.features)
    np.testing.assert_allclose(rough.features, exact.features, atol=0.2)
    agreement = (exact.codes.symbols() == rough.codes.symbols()).mean()
    assert 0.9 < agreement <= 1
    assert fast.tables.sha256 == codec.tables.sha256


def test_an_archive_says_its_precision_and_keeps_to_it(codec, fast, images, tmp_path):
    path = tmp_path / "codes.bin"
    assert fast.compress(images, path).precision == "bf16"
    before = stochcl.open(path).to_numpy()
    extra = tmp_path / "more"
    extra.mkdir()
    (extra / "new.png").write_bytes(next(images.rglob("*.png")).read_bytes())
    stochcl.append(path, extra, codec)
    with stochcl.open(path) as archive:
        assert archive.header.precision == "bf16"
        np.testing.assert_array_equal(archive.to_numpy()[:-1], before)
        np.testing.assert_array_equal(
            archive.to_numpy()[-1:], fast.encode([extra / "new.png"]).symbols()
        )  # not the codec's own precision
    assert codec.precision == "fp32"


def test_codes_of_two_precisions_are_not_merged(codec, fast, images, tmp_path):
    codec.compress(images, tmp_path / "a.bin")
    fast.compress(images, tmp_path / "b.bin")
    with pytest.raises(StochclError, match="precision"):
        stochcl.merge([tmp_path / "a.bin", tmp_path / "b.bin"], tmp_path / "c.bin")
    assert not (tmp_path / "c.bin").exists()


def test_scores_across_two_precisions_come_with_a_note(codec, fast, images, tmp_path):
    for made, name in ((codec, "a.bin"), (fast, "b.bin")):
        made.compress(images, tmp_path / name)
    probe, out = tmp_path / "probe.skops", tmp_path / "out.csv"
    found, _ = evaluate(tmp_path / "a.bin", test=tmp_path / "b.bin", save=probe)
    assert sum("bf16" in note and "fp32" in note for note in found.notes) == 1
    (note,) = predict(tmp_path / "b.bin", probe, out)["notes"]
    assert "bf16" in note
    assert not predict(tmp_path / "a.bin", probe, out, force=True)["notes"]


def test_an_interrupted_run_is_not_resumed_in_another_precision(codec, fast, images, tmp_path, small_segments):
    small_segments(10)
    with pytest.raises(Interrupted):
        codec.compress(images, tmp_path / "codes.bin", progress=stop_after(15), batch_size=3)
    with pytest.raises(UsageError, match="another model, precision"):
        fast.compress(images, tmp_path / "codes.bin", resume=True)


def test_other_precisions_are_refused(model, codec):
    with pytest.raises(UsageError, match="got 'fp8'"):
        stochcl.load(model, precision="fp8")
    with pytest.raises(UsageError, match="got 'fp8'"):
        codec.with_precision("fp8")
    assert codec.with_precision("fp32") is codec


def test_an_archive_in_floats_goes_on_in_floats_where_integers_are_the_default(images, tmp_path):
    path, exact = tmp_path / "codes.bin", stochcl.load(device="cpu", precision="fp32")
    (tmp_path / "few").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "few" / name).write_bytes(next(images.rglob("*.png")).read_bytes())
        if name == "a.png":
            exact.compress(tmp_path / "few", path)
    default = stochcl.load(device="cpu")
    assert default.precision == "int8"
    stochcl.append(path, tmp_path / "few", default)
    with stochcl.open(path) as archive:
        assert archive.header.precision == "fp32"
        np.testing.assert_array_equal(*archive.to_numpy())
