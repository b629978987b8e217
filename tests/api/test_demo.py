"""The demonstration: what it says, what it measures, and that it leaves nothing behind."""

import tempfile

from stochcl.api.demo import demonstrate


def test_the_demonstration_says_what_it_does_and_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = []
    found = demonstrate(str(model), say=said.append)
    assert [line.split("    ")[0] for line in said] == [
        "made 130 example images: digits, and patches of two photographs, from scikit-learn",
        "stochcl compress images/ -o codes.bin",
        "stochcl evaluate codes.bin",
        "the same classifier on raw pixels",
    ]
    assert list(tmp_path.iterdir()) == []
    assert found.report.path == "codes.bin"
    assert found.report.images == found.codes.n_test == found.pixels.n_test == 130
    assert found.codes.estimator == found.pixels.estimator == "logistic"
    assert found.codes.baseline == found.pixels.baseline
    assert len(found.codes.classes) == 12
    assert found.codes.score > found.codes.baseline
    assert found.pixels.score > 0.7
