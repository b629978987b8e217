"""Archives made with models that were released decode for ever: their tables stay in the package."""

import hashlib
from pathlib import Path

import pytest

import stochcl

RELEASED = Path(__file__).parents[1] / "released"
CODES = {
    "general-e1a2f751.bin": ("e4c128ad4ded4441d24a5bb23f881526759bf5330eb571ed5ca740337e2c010f", 512),
    "general-432bb3cc.bin": ("4cd6d3d72a1ca66916415727a357bf8fb64f0c48c2b38890c9502f9eaefb6694", 960),
    "general-7b2666cf.bin": ("333a9f707caf736e25dac16d833e5f456d44d6d3f20d4734c999838142584997", 960),
    "general-927f5774.bin": ("f64950dd775471d6cdc069643865dc175084e94a2078a5905e6421e9b410bb55", 128),
    "general-15150ce9.bin": ("963136ae53e9c35749eece1862355e036ee36139088924e172deb5db75cc9e20", 128),
}
"""SHA-256 of the symbols, row after row, of two images of each of the three first classes of examples/images, and how
many numbers a decoded vector has."""


@pytest.mark.parametrize("name", CODES)
def test_an_archive_decodes_with_the_tables_that_the_package_keeps(name):
    with stochcl.open(RELEASED / name) as archive:
        assert archive.names[0] == "china/00.jpg"
        sha256, width = CODES[name]
        assert hashlib.sha256(archive.to_numpy().tobytes()).hexdigest() == sha256
        assert archive.to_vectors().shape == (6, width)


def test_every_archive_that_is_kept_is_tested():
    assert {path.name for path in RELEASED.iterdir()} == set(CODES)
