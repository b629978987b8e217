"""Run the examples of the documentation and of the help, and keep the output that the pages show up to date.

    python tools/run_pages.py                      # every page: fail if an example fails or shows another output
    python tools/run_pages.py docs/tutorial.md     # one page
    python tools/run_pages.py --write              # put the real output into the pages

A page's ``sh`` and ``python`` blocks run in order in a new folder with ``examples/images``, a smaller
``photos/CLASS/NAME.jpg``, ``photo.jpg`` and ``vectors.npy``. A ``text`` block right after one is its expected output;
a line ``...`` replaces the rest. Outputs are compared without their numbers. Before a block,

    <!-- not run: reason -->      leaves it out
    <!-- shortened: reason -->    runs it with the options of ``MOST``
    <!-- needs: MODULE -->        leaves it out if that module is not installed

The examples of the help are all shortened, see tests/test_examples.py. ``ELSEWHERE`` lists what no machine can run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?:^<!-- (?P<how>not run|shortened): [^\n]+ -->\n\s*)?"
    r"(?:^<!-- needs: (?P<needs>\w+) -->\n\s*)?"
    r"^```(?P<language>sh|python)\n(?P<code>.*?)^```\n"
    r"(?P<between>\n*)(?:^```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"[ \t]+# .*$", re.MULTILINE)
INSTALL = re.compile(r"^pip install [^&\n]*&& (?=stochcl )", re.MULTILINE)  # already installed by .ci/run
PLAIN = re.compile(r"(?:(?P<before>[^|;&<>$(){}\\#]+) \| )?(?P<command>stochcl [^|;&<>$(){}*\\#]+)")

MOST: dict[str, dict[str, str]] = {
    "train vectors.npy": {"--latent-steps": "20"},
    "train --preset": {"--epochs": "1", "--latent-steps": "5", "--entropy": "independent"},
    "train": {"--epochs": "1", "--batch-size": "16", "--size": "32", "--latent-steps": "5", "--hold-out": "2"},
    "finetune": {"--epochs": "1", "--batch-size": "4", "--size": "32", "--hold-out": "2"},
    "benchmark rate-accuracy": {"--ladder": "8", "--bits": "8", "--baselines": "float32,random-signs"},
}
"""Limits of a shortened example, by its beginning: an upper bound, and a default, for each option."""

ELSEWHERE = [
    ("torchrun --nproc-per-node 8 -m stochcl ", "stochcl ", "tests/cli/test_train.py runs torchrun"),
    ('"recall@10 0.9"', '"recall@10 0.5"', "the model has 16 bits"),
    ("stochcl estimate photos/", "stochcl estimate vectors.npy -m head.safetensors", "photos/ has too few images"),
    ("--engine ray", "--shard-images 5", "Ray is optional; tests/distributed runs it"),
]
"""Parts of examples, their replacements, and why."""


def pages() -> list[Path]:
    """Return the pages whose examples run; the format's page has its own test."""
    return [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "FORMAT.md")]


@dataclass
class Page:
    """A page while its examples run: its folder, and the names defined by its Python blocks."""

    path: Path
    folder: Path
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})

    def __post_init__(self) -> None:
        prepare(self.folder)

    def run(self) -> list[tuple[re.Match[str], str]]:
        """Run the blocks in order; return each with its output."""
        text = self.path.read_text("utf-8")
        with contextlib.chdir(self.folder):
            return [(block, self.run_block(block)) for block in BLOCK.finditer(text) if is_run(block)]

    def run_block(self, block: re.Match[str]) -> str:
        code, printed = block["code"], io.StringIO()
        try:
            if block["language"] == "python":
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, str(self.path), "exec"), self.names)
                return printed.getvalue()
            return run_lines(INSTALL.sub("", code), shortened=block["how"] == "shortened")
        except Exception as error:
            raise RuntimeError(f"{self.path.relative_to(ROOT)}: this example failed:\n{code}{error}") from error


def prepare(folder: Path) -> None:
    """Put the files that pages expect into a new folder."""
    import numpy as np
    from sklearn.datasets import load_digits

    images = ROOT / "examples" / "images"
    shutil.copytree(images, folder / "examples" / "images")
    for label in ("china", "flower"):
        (folder / "photos" / label).mkdir(parents=True)
        for path in sorted((images / label).glob("*.jpg"))[:6]:
            shutil.copy(path, folder / "photos" / label)
    shutil.copy(images / "china" / "07.jpg", folder / "photo.jpg")
    np.save(folder / "vectors.npy", load_digits().data[:400].astype(np.float32))


def is_run(block: re.Match[str]) -> bool:
    """Tell whether a block runs here: it is not excluded, and its requirements are installed."""
    return block["how"] != "not run" and (block["needs"] is None or find_spec(block["needs"]) is not None)


def run_lines(code: str, *, shortened: bool = False) -> str:
    """Run shell lines: plain stochcl commands, also piped ones, in this process, others in bash."""
    code = COMMENT.sub("", code)
    if shortened:
        for part, other, _ in ELSEWHERE:
            code = code.replace(part, other)
    found = [PLAIN.fullmatch(line) for line in code.splitlines()]
    if None in found:
        return run_shell(code)
    printed = ""
    for line in filter(None, found):
        arguments = shlex.split(line["command"])[1:]
        piped = (
            line["before"]
            and subprocess.run(["bash", "-c", line["before"]], stdout=subprocess.PIPE, check=True).stdout
        )
        printed += run_command(shorten_command(arguments) if shortened else arguments, piped)
    return printed


def shorten_command(arguments: list[str]) -> list[str]:
    out, text = list(arguments), " ".join(arguments) + " "
    most = next((most for start, most in MOST.items() if text.startswith(f"{start} ")), {})
    for option, value in most.items():
        if option not in out:
            out += [option, value]
        elif value.isdigit() and out[at := out.index(option) + 1].isdigit():
            out[at] = str(min(int(out[at]), int(value)))
    return out


def run_command(arguments: list[str], piped: bytes | None = None) -> str:
    """Run a stochcl command in this process, where imports are done."""
    from click.testing import CliRunner

    from stochcl.cli import main

    found = CliRunner().invoke(main, arguments, input=piped, prog_name="stochcl")
    if found.exit_code:
        crash = None if isinstance(found.exception, SystemExit) else found.exception
        raise RuntimeError(f"exit code {found.exit_code}: {found.stderr}") from crash
    return found.stdout


def run_shell(code: str) -> str:
    """Run lines in bash, with ``stochcl`` and ``python`` from this interpreter and checkout."""
    python = shlex.quote(sys.executable)
    start = f'set -euo pipefail\nstochcl() {{ {python} -m stochcl "$@"; }}\npython() {{ {python} "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", start + code],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if done.returncode or "Traceback" in done.stderr:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr}")
    return done.stdout


def cut(printed: str, shown: str) -> str:
    """Cut an output where the page does, at its line of three dots."""
    lines = shown.splitlines()
    if "..." not in lines:
        return printed
    return "".join(f"{line}\n" for line in printed.splitlines()[: lines.index("...")]) + "...\n"


def without_numbers(text: str) -> str:
    """Return the words of an output; numbers and hashes differ between machines."""
    return " ".join(re.sub(r"\b[0-9a-f]{12,}\b|\d[\d.,]*", "0", text).split())


def check(path: Path, *, write: bool = False) -> list[str]:
    """Run a page's examples; return the outputs that differ."""
    with tempfile.TemporaryDirectory() as folder:
        found = Page(path, Path(folder)).run()
    text, wrong = path.read_text("utf-8"), []
    for block, printed in reversed(found):
        if block["output"] is None:
            continue
        real = cut(printed, block["output"])
        if without_numbers(real) != without_numbers(block["output"]):
            wrong.append(
                f"{path.relative_to(ROOT)}: after\n{block['code']}the page shows another output than\n{real}"
            )
        if write:
            text = text[: block.start("output")] + real + text[block.end("output") :]
    if write:
        path.write_text(text, encoding="utf-8")
    return wrong[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="put the real output into the pages")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    wrong = [fault for page in options.pages or pages() for fault in check(page.resolve(), write=options.write)]
    print("\n".join(wrong))
    sys.exit(bool(wrong) and not options.write)


if __name__ == "__main__":
    main()
