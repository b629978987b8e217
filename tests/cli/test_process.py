"""The program as a process: its terminal, its pipes, its console script."""

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import stochcl
from stochcl import __version__
from tests.making import process, program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs terminals and signals as Unix has them")


def test_the_console_script_and_the_module_are_the_program():
    script = Path(sys.executable).with_name("stochcl")
    for command in ([script], [sys.executable, "-m", "stochcl"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr, done.returncode) == (f"stochcl, version {__version__}\n", "", 0)


def in_terminal(*arguments):
    """Run the program with standard error on a terminal; return what it wrote there, and its results."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        program(*arguments), stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, env=environment
    ) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # Linux says so when the other end is closed
                break
            if not data:
                break
            shown += data
        results = child.stdout.read()
    os.close(ours)
    return shown.decode(), results.decode(), child.returncode


def test_a_terminal_shows_progress_with_images_per_second(images, model, tmp_path):
    arguments = ["compress", images, "-m", model, "-o", tmp_path / "a.bin", "--batch-size", "2", "--workers", "1"]
    shown, results, code = in_terminal(*arguments)
    assert code == 0
    assert re.search(r"\d images/s", shown)
    assert re.search(r"100 %", shown)
    assert "images/s" not in results
    assert results.startswith(str(tmp_path / "a.bin"))


def test_without_a_terminal_there_is_no_progress(images, model, tmp_path):
    done = process("compress", images, "-m", model, "-o", tmp_path / "a.bin")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith(f"{tmp_path / 'a.bin'}: 42 images")


def test_without_a_terminal_progress_is_a_line_every_half_minute(run, images, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["stochcl.cli.main"], "_EVERY", 0.001)
    result = run("compress", images, "-m", model, "-o", tmp_path / "a.bin", "--device", "cpu", "--batch-size", "6")
    assert re.fullmatch(r"(running for \d+ s\n)*(\d+% after \d+ s\n)+", result.stderr)


@pytest.mark.parametrize("command", ["evaluate", "decompress", "benchmark"])
def test_every_long_command_says_how_far_it_is_or_how_long_it_runs(
    run, images, model, codes, tmp_path, monkeypatch, command
):
    class Impatient(threading.Event):
        """Says at first that half a minute has passed, however fast the machine is."""

        asked = False

        def wait(self, timeout=None):
            first, self.asked = not self.asked, True
            return False if first else super().wait(timeout)

    patched = SimpleNamespace(**vars(threading) | {"Event": Impatient})
    monkeypatch.setattr(sys.modules["stochcl.cli.main"], "threading", patched)
    words = {
        "evaluate": ["evaluate", codes, "--folds", "2"],
        "decompress": ["decompress", codes, "-o", tmp_path / "a.csv"],
        "benchmark": [
            "benchmark",
            "rate-accuracy",
            images,
            "-m",
            model,
            "--baselines",
            "features",
            "-o",
            tmp_path / "r",
        ],
    }
    said = [line for line in run(*words[command]).stderr.splitlines() if " s" in line]
    assert any(re.match(r"(\d+% after|running for) \d+ s(, .*)?$", line) for line in said)


def test_a_wrong_path_is_refused_before_a_model_is_loaded(refused, codes, tmp_path):
    nowhere, no_model = tmp_path / "nowhere", tmp_path / "no-model"
    for words in (
        ["compress", nowhere, "-o", tmp_path / "a.bin"],
        ["evaluate", nowhere],
        ["evaluate", codes, "--labels", nowhere],
        ["evaluate", codes, "--test", nowhere],
        ["append", codes, nowhere],
        ["search", codes, nowhere],
        ["decompress", nowhere, "-o", tmp_path / "a.npz"],
        ["uncertainty", codes, "--outside", nowhere],
        ["adapt", nowhere, "-o", tmp_path / "a.safetensors"],
    ):
        assert f"{nowhere}: there is no such file or folder" in refused(*words, "-m", no_model)


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_seen_enough_is_no_error(codes, both):
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            program("info", codes), stdout=theirs, stderr=theirs if both else subprocess.PIPE, check=False
        )
    finally:
        os.close(theirs)
    assert not done.stderr
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_results_that_cannot_be_printed_are_an_error_of_one_sentence(codes, options):
    with Path("/dev/full").open("wb") as full:
        done = process("info", codes, *options, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    said = "stochcl: the result cannot be written to standard output: no space left on device.\n"
    assert (done.stderr, done.returncode) == (said, 1)


def test_names_that_the_terminal_cannot_show_are_escaped(codes, tmp_path):
    path = tmp_path / "süß日\udcff.bin"
    path.write_bytes(codes.read_bytes())
    done = process("info", path, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, encoding="latin-1")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith(f"{tmp_path}/süß\\u65e5\\udcff.bin: 42 images")


@pytest.mark.parametrize("command", ["info", "verify", "decompress", "evaluate", "models"])
def test_what_encodes_nothing_never_imports_torch(codes, tmp_path, command):
    arguments = {"models": [], "decompress": [codes, "-o", tmp_path / "a.npz"]}.get(command, [codes])
    said = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    done = process(command, *arguments, before=said)
    assert (done.stderr, done.returncode) == ("False\n", 0)


@pytest.mark.parametrize(("closed", "code"), [("2>&-", 0), (">&-", 1), ("<&- 2>&-", 0)])
def test_closed_standard_streams_cost_nothing_but_what_would_be_printed(images, model, tmp_path, closed, code):
    out = tmp_path / "codes.bin"
    command = program("compress", images, "-m", model, "-o", out, "--device", "cpu")
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    with stochcl.open(out) as archive:
        archive.verify()
        assert len(archive) == 42


@pytest.mark.parametrize(("closed", "arguments"), [("<&-", ("compress", "-")), (">&-", ("compress", ".", "-o", "-"))])
def test_a_closed_stream_that_is_needed_is_named(closed, arguments):
    output = () if "-o" in arguments else ("-o", "codes.bin")
    command = ["sh", "-c", f'"$@" {closed}', "sh", *program(*arguments, *output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "is closed" in done.stderr) == (2, True)
