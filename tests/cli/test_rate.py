"""`stochcl compress --rate`: the widest rung of the ladder whose codes keep to so many bits per image on disk."""

import json

import numpy as np
import pytest

import stochcl


def bits(path):
    with stochcl.open(path) as archive:
        return archive.parts()["codes"] * 8 / len(archive), archive.header.latents


LADDER = (8, 16, 32)  # the tiny model's


@pytest.mark.parametrize("rate", [12, 20.25, 26])
def test_the_widest_rung_that_keeps_to_the_rate(compress, images, codes, tmp_path, rate):
    path = compress(images, "--rate", str(rate))
    spent, latents = bits(path)
    assert spent <= rate
    assert latents in LADDER
    wider = compress(images, "--latents", str(LADDER[LADDER.index(latents) + 1]), name="wider.bin")
    assert bits(wider)[0] > rate
    same = compress(images, "--latents", str(latents), name="same.bin")
    assert path.read_bytes() == same.read_bytes()
    with stochcl.open(path) as archive, stochcl.open(codes) as full:
        np.testing.assert_array_equal(archive.to_numpy(), full.to_numpy()[:, :latents])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.bin", "same.bin", "wider.bin"]


def test_a_rate_above_the_full_width_takes_the_full_width(compress, images, codes):
    assert compress(images, "--rate", "1e9").read_bytes() == codes.read_bytes()


def test_a_rate_without_names_and_with_skipped_images(compress, images, run, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes((images / "cats" / f"0{2 * i}.png").read_bytes())
    (folder / "bad.png").write_bytes(b"no")
    path = compress(folder, "--rate", "60", "--no-names")
    found = json.loads(run("info", path, "--json").stdout)
    assert found["parts"]["names"] == 0
    assert [skip["name"] for skip in found["skipped"]] == ["bad.png"]
    assert found["reduction"]["source"] > 0


def test_a_rate_that_nothing_keeps_to_names_the_lowest_rung_and_leaves_nothing(refused, images, model, tmp_path):
    out = tmp_path / "codes.bin"
    message = refused("compress", images, "-m", model, "-o", out, "--rate", "0.01", code=2)
    assert message.startswith(f"{out}: no width fits into 0.01 bits per image; the least, 8 latents, takes 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", ["nan", "inf", "-3", "0"])
def test_a_rate_is_a_positive_number(run, images, model, tmp_path, rate):
    result = run("compress", images, "-m", model, "-o", tmp_path / "a", "--rate", rate, code=2)
    assert "rate" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_rate_and_a_width_contradict_each_other(refused, images, model, tmp_path):
    out = tmp_path / "a"
    message = refused("compress", images, "-m", model, "-o", out, "--rate", "12", "--latents", "9", code=2)
    assert message.startswith("--latents and --rate contradict")


def test_what_an_interrupted_rate_left_is_not_replaced_unasked(refused, compress, images, model, codes, tmp_path):
    full = tmp_path / "codes.bin.full"
    full.write_bytes(codes.read_bytes())
    request = ["compress", images, "-m", model, "-o", tmp_path / "codes.bin", "--rate", "12"]
    assert "an interrupted run left this; pass --resume" in refused(*request, code=2)
    for other in (["--fit", "pad"], []):
        if not other:
            full.write_bytes(codes.read_bytes()[:-1])
        message = refused(*request, "--resume", *other, code=2)
        assert "--force" in message
        assert message.startswith(f"{full}: ")
    compress(images, "--rate", "12", "--force")
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]


def test_the_widest_prefix_of_images_that_the_tables_were_not_made_for(compress, tmp_path):
    """Tables of the archive's own make codes smaller than those of the model say, and so leave room for more."""
    shades = np.arange(900, dtype=np.uint8).repeat(3 * 32 * 32).reshape(900, 32, 32, 3)
    np.save(tmp_path / "shades.npy", shades // 8 * 8)
    full = compress(tmp_path / "shades.npy", name="full.bin")
    with stochcl.open(full) as archive:
        assert archive.parts()["tables"] > len(archive.tables.data) + 12  # there are own ones
    rate = bits(full)[0] / 2
    path = compress(tmp_path / "shades.npy", "--rate", str(rate))
    spent, latents = bits(path)
    wider = compress(tmp_path / "shades.npy", "--latents", str(LADDER[LADDER.index(latents) + 1]), name="wider.bin")
    assert spent <= rate < bits(wider)[0]
