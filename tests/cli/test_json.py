"""The JSON of every command: its schema and keys, on standard output and alone there."""

import json

import pytest

REPORT = {
    "schema", "path", "images", "skipped", "bytes", "bits_per_image", "parts", "external_bytes", "reduction",
    "model", "latents", "precision", "runtime", "size",
}  # fmt: skip
PARTS = ["codes", "tables", "names", "index", "header"]


def commands(images, model, codes, out):
    """Every command with the keys of its JSON."""
    evaluation = {
        "schema", "path", "images", "input", "latents", "model", "task", "estimator", "n_train", "n_test", "score",
        "interval", "baseline", "balanced_accuracy", "baseline_balanced_accuracy", "duplicates", "folds", "classes",
        "confusion", "seconds", "labels_from",
    }  # fmt: skip
    uncertainty = {
        "schema", "path", "images", "input", "latents", "model", "trained_on", "estimator", "accuracy", "scores",
        "refused", "outside", "notes", "seed", "seconds",
    }  # fmt: skip
    report = {
        "schema", "path", "output", "output_bytes", "images", "sampled", "latents", "bits_per_image", "bits_alone",
        "bits_given", "label", "task", "label_bits", "strongest", "probe", "pictures", "missing", "notes", "seconds",
    }  # fmt: skip
    train = {
        "schema", "model", "sha256", "images", "held_out", "skipped", "steps", "seconds", "latents", "rate", "knn",
        "initialised", "unit", "warnings", "asked_rate",
    }  # fmt: skip
    compress = ["compress", images, "-m", model, "-o", out / "codes.bin"]
    tiny = ["--epochs", "1", "--width", "4", "--size", "32", "--latents", "8"]
    return {
        "compress": (compress, REPORT | {"images_per_second", "drift"}),
        "info": (["info", codes], REPORT),
        "verify": (["verify", codes], {"schema", "path", "images", "bytes", "left_over_bytes", "ok"}),
        "decompress": (["decompress", codes, "-o", out / "a.npz"], {"schema", "path", "images", "bytes", "holds"}),
        "evaluate": (["evaluate", codes], evaluation),
        "uncertainty": (["uncertainty", codes], uncertainty),
        "report": (["report", codes, "-o", out / "a.html"], report),
        "train": (["train", images, "-o", out / "new.safetensors", *tiny], train),
        "models": (["models"], {"schema", "models", "damaged"}),
    }


@pytest.mark.parametrize(
    "command",
    ["compress", "info", "verify", "decompress", "evaluate", "uncertainty", "report", "train", "models"],
)
def test_the_result_is_one_object_on_standard_output(run, images, model, codes, tmp_path, command):
    arguments, keys = commands(images, model, codes, tmp_path)[command]
    result = run(*arguments, "--json")
    found = json.loads(result.stdout)
    assert found["schema"] == f"stochcl.{command}/0"
    assert set(found) == keys
    assert result.stderr == ""
    assert result.stdout.isascii()


def test_parts_and_reductions_add_up(run, images, codes):
    found = json.loads(run("info", codes, "--json").stdout)
    size = codes.stat().st_size
    count = sum(1 for path in images.rglob("*.*"))
    assert found["images"] == count
    assert list(found["parts"]) == PARTS
    assert sum(found["parts"].values()) == found["bytes"] == size
    assert found["bits_per_image"] == pytest.approx(size * 8 / count, abs=1e-3)
    source = sum(path.stat().st_size for path in images.rglob("*.*"))
    compared = {"source": source, "pixels": count * 32 * 32 * 3, "features": count * 32 * 4}
    assert found["reduction"] == {name: pytest.approx(value / size, abs=1e-3) for name, value in compared.items()}
    assert found["external_bytes"] == 0
    assert found["model"] == {"name": "tiny", "sha256": found["model"]["sha256"], "latents": 32}
    assert (found["latents"], found["precision"], found["skipped"]) == (32, "fp32", [])


def test_info_says_what_compress_said(run, images, model, tmp_path):
    out = tmp_path / "codes.bin"
    said = json.loads(run("compress", images, "-m", model, "-o", out, "--json").stdout)
    assert said.pop("images_per_second") > 0
    assert said.pop("drift")["rows"] == said["images"]
    found = json.loads(run("info", out, "--json").stdout)
    assert found.pop("schema") == "stochcl.info/0"
    assert said.pop("schema") == "stochcl.compress/0"
    assert found == said


def test_people_read_the_same_figures(run, codes):
    found = json.loads(run("info", codes, "--json").stdout)
    text = run("info", codes).stdout
    assert text.startswith(f"{codes}: {found['images']:,} images, codes take ")
    assert f"  file       {found['bytes']:>12,} bytes" in text
    for name, size in found["parts"].items():
        label = "decoder" if name == "tables" else name
        assert f"  {label:<10} {size:>12,} bytes" in text
    assert "model      tiny" in text
    for compared in ("the source files", "raw pixels at the model's input size", "its decoded vectors as float32"):
        assert f"than {compared} (" in text


def test_skipped_images_are_listed_for_programs_and_named_for_people(run, compress, model, images, tmp_path):
    folder = tmp_path / "seven bad"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.png").write_bytes(b"")
    (folder / "good.png").write_bytes((images / "cats" / "00.png").read_bytes())
    result = run("compress", folder, "-m", model, "-o", tmp_path / "a.bin")
    assert result.stderr.splitlines() == [
        *(f"skipped {i}.png: the file is empty (0 bytes)" for i in range(5)),
        "skipped 2 more; `stochcl info --json` lists them all",
    ]
    assert "  skipped    7 images that could not be read" in result.stdout
    found = json.loads(run("info", tmp_path / "a.bin", "--json").stdout)
    assert found["skipped"] == [{"name": f"{i}.png", "reason": "the file is empty (0 bytes)"} for i in range(7)]
    assert found["images"] == 1
