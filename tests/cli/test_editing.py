"""`stochcl append`, `merge`, `split` and `transcode`, and what they say."""

import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest

import stochcl
from stochcl.compress.append import Appender
from tests.compress.making import make_codes, make_names, make_tables, write
from tests.making import json_of, process, signalled

REPORT = {
    "schema", "path", "images", "skipped", "bytes", "bits_per_image", "parts", "external_bytes", "reduction",
    "model", "latents", "precision", "runtime", "size", "before",
}  # fmt: skip
TABLES = make_tables(12)
CODES = make_codes(60, 12, names=make_names(60))


@pytest.fixture
def two(tmp_path):
    """Two archives of one model."""
    return [write(tmp_path / f"{i}.bin", CODES[30 * i : 30 * i + 30], TABLES, segment_rows=10) for i in range(2)]


@pytest.fixture
def cats(compress, images, tmp_path):
    """An archive of a folder that has the cats alone."""
    shutil.copytree(images / "cats", tmp_path / "some" / "cats")
    return compress(tmp_path / "some", name="cats.bin")


def symbols(path):
    with stochcl.open(path) as archive:
        archive.verify()
        return archive.to_numpy()


def test_appending(run, cats, images, model, codes):
    result = run("append", cats, images, "-m", model, "--json")
    said = json_of(result)
    assert set(said) == REPORT | {"images_per_second", "drift", "added", "there"}
    assert (said["schema"], said["images"], said["added"], said["there"]) == ("stochcl.append/0", 42, 28, 14)
    assert said["before"]["images"] == 14
    np.testing.assert_array_equal(symbols(cats), symbols(codes))
    result = run("append", cats, images, "-m", model)
    assert result.stdout.splitlines()[-1] == "  added      0 images; 42 images had been there already"
    assert result.stderr == ""


def test_appending_with_another_model_is_refused(refused, cats, images):
    before = cats.read_bytes()
    assert "it was made by the model tiny" in refused("append", cats, images, "-m", "general")
    assert "the model tiny" in refused("append", cats, images, code=2)  # and no other is taken in its place
    assert "there is no such file" in refused("append", cats.with_name("none.bin"), images)
    assert cats.read_bytes() == before


def test_appending_names_what_it_skips(run, refused, cats, images, model, tmp_path):
    shutil.copytree(images / "dogs", tmp_path / "more" / "dogs")
    (tmp_path / "more" / "dogs" / "00.png").write_bytes(b"bad")
    assert "--strict stops" in refused("append", cats, tmp_path / "more", "-m", model, "--strict")
    result = run("append", cats, tmp_path / "more", "-m", model)
    assert result.stderr.startswith("skipped dogs/00.png: ")
    assert "  added      13 images; 0 images had been there already" in result.stdout


def test_joining_and_cutting(run, refused, two, tmp_path):
    out = tmp_path / "all.bin"
    said = json_of(run("merge", *two, "-o", out, "--json"))
    assert set(said) == REPORT | {"files"}
    assert (said["schema"], said["images"], said["files"]) == ("stochcl.merge/0", 60, 2)
    np.testing.assert_array_equal(symbols(out), CODES.symbols())
    assert "exists already; pass --force" in refused("merge", *two, "-o", out, code=2)
    assert run("merge", *two, "-o", out, "--force").stdout.startswith(f"{out}: 60 images, ")
    said = json_of(run("split", out, "-o", tmp_path / "parts", "--rows", "25", "--json"))
    assert set(said) == {"schema", "path", "images", "bytes", "files"}
    assert [part["images"] for part in said["files"]] == [25, 25, 10]
    result = run("split", out, "-o", tmp_path / "parts", "--parts", "2", "--force")
    assert result.stdout.startswith(f"{tmp_path}/parts/all-0001.bin: 30 images, ")
    assert "either --rows" in refused("split", out, "-o", tmp_path / "parts", code=2)
    other = write(tmp_path / "other.bin", make_codes(5, 12), make_tables(12, decoder=False))
    said = refused("merge", out, other, "-o", tmp_path / "b.bin")
    assert said.startswith(f"{other}: it has another decoder than {out}")


def test_writing_anew(run, refused, two, tmp_path):
    out = tmp_path / "out.bin"
    said = json_of(run("transcode", two[0], "-o", out, "--latents", "5", "--no-names", "--json"))
    assert set(said) == REPORT | {"fitted_models"}
    assert (said["schema"], said["latents"], said["parts"]["names"]) == ("stochcl.transcode/0", 5, 0)
    np.testing.assert_array_equal(symbols(out), CODES[:30].symbols()[:, :5])
    text = run("transcode", two[0], "-o", out, "--rate", "9", "--refit", "--force").stdout
    assert f"  before     {two[0].stat().st_size:>12,} bytes" in text
    assert "  fitted     " in text
    (tmp_path / "l.json").write_text("[3, 11]")
    run("transcode", two[0], "-o", out, "--select", tmp_path / "l.json", "--force")
    np.testing.assert_array_equal(symbols(out), CODES[:30].symbols()[:, [3, 11]])
    assert "keep 1 to 12, not 13" in refused("transcode", two[0], "-o", out, "--force", "--latents", "13", code=2)
    assert "omit --latents" in refused(
        "transcode", two[0], "-o", out, "--force", "--latents", "1", "--select", tmp_path / "l.json", code=2
    )
    (tmp_path / "bad.json").write_text("{")
    assert "not a JSON list" in refused("transcode", two[0], "-o", out, "--force", "--select", tmp_path / "bad.json")
    np.testing.assert_array_equal(symbols(out), CODES[:30].symbols()[:, [3, 11]])


def test_tables_and_labels_are_given_by_file(run, refused, two, tmp_path, monkeypatch):
    monkeypatch.delenv("STOCHCL_MODELS", raising=False)
    (tmp_path / "t").mkdir()
    bare, out = tmp_path / "t" / "bare.bin", tmp_path / "out.bin"
    assert "$STOCHCL_MODELS" in run("transcode", two[0], "-o", bare, "--external-tables").stdout
    (tmp_path / "t" / f"{TABLES.sha256}.tables").rename(tables := tmp_path / "moved.tables")
    assert "neither in the archive" in refused("transcode", bare, "-o", out)
    run("transcode", bare, "-o", out, "--self-contained", "-m", tables)
    assert out.read_bytes() == two[0].read_bytes()
    assert "there is no such file" in refused("transcode", bare, "-o", out, "-m", "none.tables", code=2)
    (tmp_path / "l.csv").write_text("name,label\n" + "".join(f"{name},x\n" for name in CODES.names))
    run("transcode", two[0], "-o", out, "--labels", tmp_path / "l.csv", "--force")
    with stochcl.open(out) as archive:
        assert archive.labels == ("x",) * 30


def test_a_model_can_give_the_tables(run, codes, model, tmp_path, monkeypatch):
    monkeypatch.delenv("STOCHCL_MODELS", raising=False)
    run("transcode", codes, "-o", tmp_path / "bare.bin", "--external-tables")
    next(tmp_path.glob("*.tables")).unlink()
    run("transcode", tmp_path / "bare.bin", "-o", tmp_path / "out.bin", "--self-contained", "-m", model)
    np.testing.assert_array_equal(symbols(tmp_path / "out.bin"), symbols(codes))


def test_the_program_as_a_process(two, cats, images, model, tmp_path):
    """Once without the runner, and without torch where nothing is encoded."""
    said = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    out = tmp_path / "out.bin"
    for arguments in (
        ["merge", *two, "-o", out],
        ["split", out, "-o", tmp_path / "parts", "--parts", "3"],
        ["transcode", out, "-o", tmp_path / "small.bin", "--rate", "6", "--refit"],
    ):
        done = process(*arguments, before=said)
        assert (done.stderr, done.returncode) == ("False\n", 0)
    done = process("append", cats, images, "-m", model)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits as Unix has them")
@pytest.mark.parametrize("command", ["append", "merge", "split", "transcode", "rate"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(two, cats, images, model, tmp_path, command):
    out = tmp_path / "precious.bin"
    out.write_bytes(b"precious")
    size = {"append": cats.stat().st_size + 40, "merge": 1500, "split": 900, "transcode": 900, "rate": 500}[command]
    before = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    )
    arguments = {
        "append": ["append", cats, images, "-m", model],
        "merge": ["merge", *two, "-o", out, "--force"],
        "split": ["split", two[0], "-o", tmp_path / "parts", "--parts", "2"],
        "transcode": ["transcode", two[0], "-o", out, "--no-names", "--force"],
        "rate": ["transcode", two[0], "-o", out, "--rate", "5", "--force"],
    }[command]
    files = {path: path.read_bytes() for path in tmp_path.glob("*.bin")}
    done = process(*arguments, before=before)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.count("\n") == 1
    assert ": it cannot be written: file too large" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.glob("*.bin")} == files
    assert not list((tmp_path / "parts").glob("*") if command == "split" else ())


WAIT = """
import time
from pathlib import Path
import stochcl.compress.{module} as module
store, mark = module.{name}._store, Path({mark!r})
def slow(self, *args):
    store(self, *args)
    if len(self.segments) == 1:
        mark.touch()
        while mark.exists():
            time.sleep(0.01)
module.{name}._store = slow
module.{name}.__init__.__kwdefaults__['segment_rows'] = 10
"""


def stopped(*arguments, sent, mark, module):
    """Run the program, send it a signal when its second segment is on the disk, and return what it said."""
    name = {"writer": "Writer", "append": "Appender"}[module]
    before = WAIT.format(module=module, name=name, mark=os.fspath(mark))
    return signalled(*arguments, before=before, mark=mark, sent=sent)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", ["merge", "transcode"])
def test_what_was_stopped_is_resumed(run, two, tmp_path, small_segments, command, sent):
    small_segments(10)
    arguments = {"merge": ["merge", *two], "transcode": ["transcode", two[0], "--latents", "7"]}[command]
    run(*arguments, "-o", tmp_path / "whole.bin")
    out = tmp_path / "out.bin"
    _, said, code = stopped(*arguments, "-o", out, sent=sent, mark=tmp_path / "mark", module="writer")
    if sent == signal.SIGINT:
        assert re.search(r"interrupted\. What is done, \d+ rows?, is kept in .*\.partial: pass --resume", said)
        assert code == 130
    assert not out.exists()
    run(*arguments, "-o", out, "--resume")
    assert out.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_append_locks_nobody_out_and_goes_on(run, cats, images, model, tmp_path, monkeypatch, sent):
    monkeypatch.setitem(Appender.__init__.__kwdefaults__, "segment_rows", 10)
    before = cats.read_bytes()
    arguments = ["append", cats, images, "-m", model, "--batch-size", "4"]
    run(*arguments)
    whole = cats.read_bytes()
    cats.write_bytes(before)
    _, said, code = stopped(*arguments, sent=sent, mark=tmp_path / "mark", module="append")
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[sent]
    if sent != signal.SIGKILL:
        assert re.search(r"The archive is as it was; what is done, \d+ images?, is kept behind it: repeat", said)
    assert cats.read_bytes().startswith(before)
    assert cats.stat().st_size > len(before)
    assert "14 images" in run("info", cats).stdout
    assert "--repair cuts them off" in run("verify", cats).stdout
    run(*arguments)
    assert cats.read_bytes() == whole
