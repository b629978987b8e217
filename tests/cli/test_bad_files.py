"""Bad models, archives and labels, end to end: which file, what is wrong with it, what to do."""

import json
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import stochcl

FETCH = "fetch or train it again."


def foreign(path, data):
    save_file({"weight": torch.zeros(3)}, path)


def pickled(path, data):
    torch.save({"weight": torch.zeros(3)}, path)


def changed(**changes):
    """Write the model with another metadata."""

    def write(path, data):
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        head["__metadata__"] |= changes
        text = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return write


MODELS = {
    "empty": (lambda path, data: path.write_bytes(b""), "it has 0 bytes"),
    "a text": (lambda path, data: path.write_bytes(b"words, not weights"), FETCH),
    "half": (lambda path, data: path.write_bytes(data[: len(data) // 2]), FETCH),
    "only its head": (lambda path, data: path.write_bytes(data[:300]), FETCH),
    "another's": (foreign, "this is a safetensors file but not a stochcl model"),
    "a checkpoint of PyTorch": (pickled, "this is a pickle (a PyTorch checkpoint?), which could run any program"),
    "a pickle": (lambda path, data: path.write_bytes(pickle.dumps([1])), "this is a pickle"),
    "an old pickle": (lambda path, data: path.write_bytes(pickle.dumps([1], 2)), "this is a pickle"),
    "a later version's": (changed(kind="stochcl-encoder-99"), "of a kind that this version knows"),
    "of no configuration": (changed(config="{"), "the model's configuration makes no sense"),
    "of another configuration": (changed(config='{"latents": 77}'), "the model's tensors are not those"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used(refused, model, images, tmp_path, case):
    make, message = MODELS[case]
    path, out = tmp_path / "m.safetensors", tmp_path / "codes.bin"
    out.write_bytes(b"precious")
    make(path, model.read_bytes())
    said = refused("compress", images, "-m", path, "-o", out, "--force")
    assert said.startswith(f"{path}: ")
    assert message in said
    assert out.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.bin", "m.safetensors"]


def test_a_model_whose_weights_are_not_numbers(refused, model, images, tmp_path):
    path = tmp_path / "m.safetensors"
    with safe_open(model, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["head.bias"][3] = float("nan")
    save_file(tensors, path, metadata)
    said = refused("compress", images, "-m", path, "-o", tmp_path / "codes.bin")
    assert said == f"{path}: head.bias holds numbers that are not finite; the model is damaged."


@pytest.mark.parametrize("name", ["nowhere", "no/where.safetensors", "x" * 300])
def test_no_such_model(refused, images, tmp_path, name):
    said = refused("compress", images, "-m", name, "-o", tmp_path / "codes.bin", code=2)
    assert said.startswith(f"{name}: there is no model of this name and no such file; packaged models: ")
    said = refused("compress", images, "-m", tmp_path, "-o", tmp_path / "codes.bin", code=2)
    assert said == f"{tmp_path}: this is a folder; name the model file in it."


def replaced(at, new):
    return lambda data: data[:at] + new + data[at + len(new) :]


def flipped(where):
    def damage(data):
        at = where(data)
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    return damage


AGAIN = "copy it again from where it is whole, or compress again."
ARCHIVES = {
    "empty": (lambda data: b"", "this is not an archive of codes: it begins with nothing"),
    "a text": (lambda data: b"words, not codes", "this is not an archive of codes: it begins with 77 6f 72 64 73"),
    "a zip": (lambda data: b"PK\x03\x04" + bytes(300), "this is not an archive of codes"),
    "cut in the head": (lambda data: data[:20], "it is cut short: bytes 20 to"),
    "cut in the middle": (lambda data: data[: len(data) // 2], f"it was cut short or not finished; {AGAIN}"),
    "cut at the end": (lambda data: data[:-1], f"it was cut short or not finished; {AGAIN}"),
    "of a later version": (replaced(8, b"\x07\0"), "this archive has version 7 of the format"),
    "damaged in the header": (flipped(lambda data: 60), f"; {AGAIN}"),
    "damaged in the index": (flipped(lambda data: len(data) - 40), f"; {AGAIN}"),
    "damaged at the very end": (flipped(lambda data: len(data) - 3), f"; {AGAIN}"),
}
READERS = ["info", "verify", "decompress", "evaluate"]


def reading(command, path, tmp_path):
    return [command, path, *(["-o", tmp_path / "codes.npz"] if command == "decompress" else [])]


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_cannot_be_read(refused, codes, tmp_path, command, case):
    damage, message = ARCHIVES[case]
    path = tmp_path / "codes.bin"
    path.write_bytes(damage(codes.read_bytes()))
    said = refused(*reading(command, path, tmp_path))
    assert said.startswith(f"{path}: ")
    assert message in said
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]


@pytest.mark.parametrize("command", ["verify", "decompress", "evaluate"])
def test_damage_among_the_codes_is_found_where_they_are_read(run, refused, codes, tmp_path, command):
    path, data = tmp_path / "codes.bin", codes.read_bytes()
    with stochcl.open(codes) as archive:
        parts = archive.parts()
    payload = parts["header"] + parts["tables"] + parts["names"] + parts["codes"] + 20  # near the end of the blocks
    path.write_bytes(flipped(lambda data: payload)(data))
    assert run("info", path).stdout.startswith(f"{path}: 42 images")  # which reads no codes
    said = refused(*reading(command, path, tmp_path))
    assert said.startswith(f"{path}: ")
    assert "rows 0 to 41" in said
    assert [p.name for p in tmp_path.iterdir()] == ["codes.bin"]


@pytest.mark.parametrize("command", READERS)
def test_no_archive_is_there(refused, tmp_path, command):
    for path, message in [
        (tmp_path / "nowhere.bin", "no such file"),
        (tmp_path, "has no manifest.json"),
        (tmp_path / ("x" * 300), "file name too long"),
    ]:
        said = refused(*reading(command, path, tmp_path))
        assert said.startswith(f"{path}: ")
        assert message in said


def test_two_archives_of_different_models(refused, run, images, codes, tmp_path):
    other = tmp_path / "other.safetensors"
    tiny = ["--epochs", "0", "--width", "4", "--size", "32", "--latents", "32", "--seed", "1"]
    run("train", images, "-o", other, *tiny)
    run("compress", images, "-m", other, "-o", tmp_path / "other.bin")
    said = refused("evaluate", codes, "--test", tmp_path / "other.bin")
    assert (
        said == f"{tmp_path / 'other.bin'}: it was made by another model than {codes}; compress both with one model."
    )


def table(names, label=lambda i: "ab"[i % 2]):
    return "name,label\n" + "".join(f"{name},{label(i)}\n" for i, name in enumerate(names))


LABELS = {
    "empty": (lambda names: b"", "the file is empty; its first line must be name,label."),
    "no header": (lambda names: b"a.png,cat\n", "the first line must be name,label"),
    "only a header": (lambda names: b"name,label\n", "it has no row under its header."),
    "latin-1": (lambda names: table(names).encode("latin-1"), "the labels are not UTF-8 text"),
    "an open quotation": (lambda names: b'name,label\n"a', "is not CSV"),
    "a cell too many": (lambda names: b"name,label\na,b,c\n", "line 2 has 3 cells where the header has 2."),
    "of other images": (lambda names: b"name,label\na.png,cat\n", "42 of 42 names have no row here: cats/00.png"),
    "of some images": (lambda names: table(names[30:]).encode(), "30 of 42 names have no row here"),
    "contradictory": (
        lambda names: (table(names) + f"{names[0]},c\n").encode(), "gives cats/00.png again, with other values"
    ),
    "all the same": (lambda names: table(names, lambda i: "a").encode(), "fewer than two different ones"),
    "all missing": (lambda names: table(names, lambda i: "").encode(), "fewer than two different ones"),
    "each its own": (lambda names: table(names, str).encode(), "none of the 42 classes has 2 rows or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_do_not_match(refused, codes, tmp_path, case):
    make, message = LABELS[case]
    path = tmp_path / "labels.csv"
    with stochcl.open(codes) as archive:
        path.write_bytes(make(archive.names))
    said = refused("evaluate", codes, "--labels", path)
    assert said.startswith(f"{path}: ")
    assert message in said


def test_labels_that_are_not_there(refused, codes, tmp_path):
    said = refused("evaluate", codes, "--labels", tmp_path / "no.csv")
    assert said == f"{tmp_path / 'no.csv'}: there is no such file or folder."
    path = tmp_path / "labels.csv"
    path.write_text("name,label\ncats/00.png,7\n")
    assert "there is no column size; the columns are label." in refused(
        "evaluate", codes, "--labels", path, "--column", "size"
    )
    assert "41 of 42 names have no row" in refused("decompress", codes, "-o", tmp_path / "a.npz", "--labels", path)
    assert not (tmp_path / "a.npz").exists()


def test_archives_without_names_or_folders(refused, compress, images, tmp_path):
    bare = compress(images, "--no-names", name="bare.bin")
    path = tmp_path / "labels.csv"
    path.write_text("name,label\na,b\n")
    loose = compress(images / "cats", "--no-names", name="loose.bin")
    for archive, options in ((loose, []), (bare, ["--labels", path])):
        said = refused("evaluate", archive, *options)
        assert said == f"{archive}: its rows have no names to find labels by (--no-names?); compress with names."
    flat = compress(images / "cats", name="flat.bin")
    said = refused("evaluate", flat)
    assert said == f"{flat}: it has no labels, and its names have no folders; give labels with --labels."


@pytest.mark.parametrize("arguments", [("compress", ""), ("compress", ".", "-m", "")])
def test_an_empty_name_is_not_the_current_folder(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert "empty" in run(*arguments, "-o", "codes.bin", code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
