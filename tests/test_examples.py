"""Every example in the help of every command runs.

They run as they stand, in a folder with small files of the names that they use. What would take long asks for less,
and what needs other machines has a stand-in: ``MOST`` and ``ELSEWHERE`` of tools/run_pages.py.
"""

import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path

import click
import faiss
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from stochcl.cli import main

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
run_pages = importlib.import_module("run_pages")
sys.path.remove(str(ROOT / "tools"))


def commands(command=main, path=""):
    """Return all commands by their names, without `stochcl`."""
    found = {path: command}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found |= commands(command.get_command(context, name), f"{path} {name}".strip())
    return found


def examples(command):
    """Return the lines below `Example:` in a command's help."""
    block = re.search(r"^Example:\n((?:  .+(?:\n|$))+)", inspect.cleandoc(command.help or ""), re.MULTILINE)
    return [] if block is None else [line.partition(" #")[0].strip() for line in block[1].splitlines()]


COMMANDS = commands()
OF_COMMANDS = {
    line for command in COMMANDS.values() if not isinstance(command, click.Group) for line in examples(command)
}


def write_tables(folder):
    """Write tables of vectors with ids and topics, and an index of FAISS."""
    vectors = np.load(folder / "vectors.npy")
    for name, rows in [("vectors", range(300)), ("new", range(300, 400)), ("queries", range(3))]:
        uids, topics = [f"u{i}" for i in rows], [f"t{i % 3}" for i in rows]
        columns = {"uid": uids, "vector": list(vectors[rows]), "topic": topics}
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet")
    index = faiss.IndexPQ(vectors.shape[1], 4, 4)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(folder / "pq.faiss"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, model):
    """Make the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    run_pages.prepare(folder)
    images = folder / "examples" / "images"
    for name, first in [("images", 0), ("test", 5)]:
        for kind, digit in [("cats", 0), ("dogs", 1)]:
            (folder / name / kind).mkdir(parents=True)
            for i in range(4 if first else 5):
                shutil.copy(images / f"digit-{digit}" / f"0{first + i}.png", folder / name / kind / f"0{i}.png")
            shutil.copy(images / "china" / f"1{digit}.jpg", folder / name / kind / "other.jpg")
    for name, source in [("images", "images"), ("train", "images"), ("test", "test"), ("photos", "photos")]:
        shutil.make_archive(str(folder / name), "zip", folder / source)
    shutil.copy(folder / "photos.zip", folder / "what-the-model-saw.zip")
    shutil.rmtree(folder / "examples")
    names = sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.*"))
    rows = [f"{name},{name.partition('/')[0]},{name.partition('/')[0]}" for name in names]
    (folder / "labels.csv").write_text("\n".join(["name,label,species", *rows]) + "\n")
    for name, part in zip("xy", np.split(np.load(folder / "vectors.npy"), [300]), strict=True):
        np.save(folder / f"{name}.npy", part)
    write_tables(folder)
    for name in ("photos", "mine"):
        shutil.copy(model, folder / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in [
            "stochcl compress images/ -o codes.bin",
            "stochcl compress test/ -o test.bin",
            "stochcl compress photos/ -o other.bin",
            "stochcl evaluate codes.bin --save probe.skops",
            "stochcl train vectors.npy -o head.safetensors --rate 16",
            "stochcl compress vectors.parquet -m head.safetensors --id-column uid -o vectors.bin",
            "stochcl finetune mine.safetensors photos/ -o classifier.safetensors",
        ]:
            run_pages.run_lines(line, shortened=True)
    for name in ("a", "b", "train"):
        shutil.copy(folder / "codes.bin", folder / f"{name}.bin")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell as Unix has it")
@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "stochcl")
def test_the_examples_of_a_command_run(name, prepared, tmp_path, monkeypatch):
    lines = examples(COMMANDS[name])
    assert lines, f"stochcl {name} --help has no example"
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        if line in OF_COMMANDS and isinstance(COMMANDS[name], click.Group):
            continue  # it runs with a command below
        written = re.search(r" -o (\S+)", line)
        if written and (tmp_path / written[1]).is_file():
            (tmp_path / written[1]).unlink()
        run_pages.run_lines(line, shortened=True)
        assert written is None or (tmp_path / written[1]).exists()


def test_a_shortened_example_asks_for_no_more_than_the_most():
    def shortened(line):
        return " ".join(run_pages.shorten_command(line.split()))

    most = "--batch-size 16 --size 32 --latent-steps 5 --hold-out 2"
    assert shortened("train x -o y --max-time 2h") == f"train x -o y --max-time 2h --epochs 1 {most}"
    assert shortened("train x --epochs 0 --size 64 --rate 64").startswith("train x --epochs 0 --size 32 --rate 64 ")
    assert shortened("info codes.bin") == "info codes.bin"


def test_every_stand_in_and_every_most_is_used():
    lines = [line for command in COMMANDS.values() for line in examples(command)]
    for part, *_ in run_pages.ELSEWHERE:
        assert any(part in line for line in lines), part
    for command in run_pages.MOST:
        assert any(line.startswith(f"stochcl {command} ") for line in lines), command
