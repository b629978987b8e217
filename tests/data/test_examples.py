"""The example images in the repository are those that the script makes."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from stochcl.codes import folder_label
from stochcl.data import open_source

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from make_images import write_examples

COMMITTED = Path(__file__).parents[2] / "examples" / "images"


def test_committed_images_are_what_the_script_makes(tmp_path):
    assert write_examples(tmp_path) == 130
    made, committed = open_source(tmp_path), open_source(COMMITTED)
    names = [entry.name for entry in made.entries]
    assert [entry.name for entry in committed.entries] == names
    assert len({folder_label(name) for name in names}) == 12
    for name in names:
        with Image.open(tmp_path / name) as a, Image.open(COMMITTED / name) as b:
            difference = np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))
        if name.endswith(".png"):
            assert difference.max() == 0, name
        else:  # JPEG encoders and decoders round differently
            assert difference.mean() < 3, name


def test_committed_images_are_small_and_explained():
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()) < 1_000_000
    text = (COMMITTED.parent / "README.md").read_text(encoding="utf-8")
    for word in ("danielbuechele", "vultilion", "creativecommons.org/licenses/by/2.0", "Alpaydin"):
        assert word in text
