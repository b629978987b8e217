"""The figures of a report, worked out by hand."""

import pytest

from stochcl.api.summary import Report
from stochcl.messages import plural as counted


def report(**changes):
    given = {
        "path": "a.bin", "images": 4, "skipped": (), "bytes": 200, "external_bytes": 0,
        "decoder_ships": False, "source_bytes": 5000,
        "parts": {"codes": 100, "tables": 50, "names": 20, "index": 20, "header": 10},
        "pixel_bytes": 1000, "feature_bytes": 100, "model": "m", "model_sha256": "ab" * 32, "latents": 8,
        "model_latents": 16, "precision": "fp32", "runtime": "onnx",
    }  # fmt: skip
    return Report(**given | changes)


def test_rates_and_reductions():
    found = report()
    assert found.bits_per_image == 400
    assert found.reduction == {"source": 25, "pixels": 5, "features": 0.5}
    assert found.images_per_second is None
    assert report(seconds=2.0, encoded=3).images_per_second == 1.5


def test_lines_for_people():
    assert report(seconds=2.0, encoded=3000, skipped=(("b.png", "it is gone"),), external_bytes=1234).lines() == [
        "a.bin: 4 images, codes take 200.0 bits per image",
        "  model      m (abababababab), 8 latents of 16, fp32",
        "  file                200 bytes       400.0 bits per image, of which",
        "  codes               100 bytes       200.0 bits per image",
        "  decoder              50 bytes       100.0 bits per image",
        "  names                20 bytes        40.0 bits per image",
        "  index                20 bytes        40.0 bits per image",
        "  header               10 bytes        20.0 bits per image",
        "  decoder, 1 kB, kept outside the archive (not counted)",
        "     25.0 times smaller than the source files (5,000 bytes)",
        "      5.0 times smaller than raw pixels at the model's input size (1,000 bytes)",
        "      2.0 times larger than its decoded vectors as float32 (100 bytes)",
        "  skipped    1 image that could not be read",
        "  speed      1,500 images per second",
    ]


def test_a_decoder_that_ships_with_the_package_is_called_that():
    assert (
        "  decoder, 1 kB, ships with stochcl (not counted)" in report(external_bytes=1234, decoder_ships=True).lines()
    )


def test_the_first_line_answers_the_rate_that_was_asked_for():
    assert report(rate=250.0).lines()[0] == "a.bin: 4 images, codes take 200.0 bits per image (asked for at most 250)"


def test_what_is_unknown_is_not_compared():
    lines = report(source_bytes=0, latents=16).lines()
    assert not any("source files" in line for line in lines)
    assert "  model      m (abababababab), 16 latents, fp32" in lines


def test_json_for_programs():
    found = report(skipped=(("caf\udce9.png", "it is gone"),), seconds=2.0, encoded=3).to_json("info")
    assert found == {
        "schema": "stochcl.info/0", "path": "a.bin", "images": 4, "bytes": 200, "bits_per_image": 400,
        "skipped": [{"name": "caf\\udce9.png", "reason": "it is gone"}],
        "parts": {"codes": 100, "tables": 50, "names": 20, "index": 20, "header": 10}, "external_bytes": 0,
        "reduction": {"source": 25, "pixels": 5, "features": 0.5},
        "model": {"name": "m", "sha256": "ab" * 32, "latents": 16}, "latents": 8, "precision": "fp32",
        "runtime": "onnx", "images_per_second": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (4096, "4,096 images")]
)
def test_counted(count, text):
    assert counted(count, "image") == text
