"""`stochcl adapt`, then a file of codes with the model that it wrote."""

import json

import numpy as np


def test_one_command_and_the_codes_are_fitted_to_the_images(run, model, images, tmp_path):
    out, codes = tmp_path / "mine.safetensors", tmp_path / "codes.bin"
    given = ["-m", model, "--rate", "16", "--hold-out", "2", "--device", "cpu"]
    found = json.loads(run("adapt", images, "-o", out, *given, "--json").stdout)
    assert (found["schema"], found["images"], found["held_out"]) == ("stochcl.train/0", 36, 6)
    said = run("compress", images, "-m", out, "-o", codes, "--latents", "8", "--device", "cpu").stdout
    assert ", 8 latents of " in said
    assert found["asked_rate"] == 16
    said = run("adapt", images, "-o", out, "-m", model, "--force").stdout
    assert "latents; 42 images, " in said
    assert "steps" not in said  # the backbone takes none
    assert "asked for" not in said
    assert "(asked for 16)" in run("adapt", images, "-o", out, "-m", model, "--rate", "16", "--force").stdout


def test_a_matrix_is_refused_in_one_sentence(refused, model, tmp_path):
    np.save(tmp_path / "vectors.npy", np.zeros((50, 8), np.float32))
    said = refused("adapt", tmp_path / "vectors.npy", "-o", tmp_path / "m.safetensors", "-m", model, code=2)
    assert "stochcl train" in said
