"""The group of commands, and the handling of errors."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from stochcl import __version__
from stochcl.errors import OutputError, StochclError, command_line
from stochcl.messages import duration, escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


def show(result: dict[str, Any], lines: list[str], *, as_json: bool, err: bool = False) -> None:
    """Print a result as JSON or as text to standard output, or to standard error if data goes to standard output."""
    text = json.dumps(result, indent=2, ensure_ascii=True, allow_nan=False) if as_json else "\n".join(lines)
    if sys.stdout is None and not err:
        raise OutputError("the result cannot be written to standard output: it is closed.")
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        raise
    except OSError as exc:
        mute()
        raise OutputError(f"the result cannot be written to standard output: {os_reason(exc)}.") from exc


def mute() -> None:
    """Discard what standard output and error still buffer, so that Python does not write it again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):
            stream.flush()
            continue
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say(line: str) -> None:
    """Print a line to standard error."""
    click.echo(line, err=True)


def say_skipped(skipped: Sequence[tuple[str, str]], shown: int = 5) -> None:
    """Print the first few images that could not be read, and count the rest."""
    for name, reason in skipped[:shown]:
        say(f"skipped {escape_name(name)}: {reason}")
    if len(skipped) > shown:
        say(f"skipped {len(skipped) - shown:,} more; `stochcl info --json` lists them all")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines: the first column is text, aligned left; all others are numbers, aligned right.

    Its width does not depend on the terminal, so piped output is the same.

    Examples
    --------
    >>> print("\\n".join(table("sizes", ["method", "bytes"], [["zlib", "1,024"], ["ours", "96"]])))
    sizes
      method  bytes
      zlib    1,024
      ours       96
    <BLANKLINE>
    """
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, padding=(0, 0, 0, 2), header_style="")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    console = Console(width=200, color_system=None, markup=False)
    with console.capture() as capture:
        console.print(made)
    return [title, *(line.rstrip() for line in capture.get().splitlines()), ""]


_EVERY = 30.0  # seconds between progress lines without a terminal


@contextmanager
def progress_bar(unit: str, *, rate: bool = True) -> Iterator[Callable[..., None]]:
    """Show progress on standard error while the block runs: a bar on a terminal, else a line every half minute."""
    if sys.stderr is None or not sys.stderr.isatty():
        with _plain_progress() as update:
            yield update
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if rate and task.speed else "", style="progress.data.speed")

    columns = (
        BarColumn(), TextColumn("{task.percentage:>3.0f} %"), Rate(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(unit, total=None, note="")

        def update(done: float, total: float, note: str = "") -> None:
            progress.update(task, completed=done, total=total or None, note=note)  # 0: unknown

        yield update


@contextmanager
def _plain_progress() -> Iterator[Callable[..., None]]:
    """Print progress every half minute, even if the block reports none."""
    started, ended, latest = time.monotonic(), threading.Event(), ["", ""]

    def update(done: float, total: float, note: str = "") -> None:
        latest[:] = f"{done / total:.0%}" if total else f"{done:,}" if done else "", note

    def speak() -> None:
        while not ended.wait(_EVERY):
            amount, note = latest
            elapsed = duration(time.monotonic() - started)
            say(", ".join(filter(None, [f"{amount} after {elapsed}" if amount else f"running for {elapsed}", note])))

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield update
    finally:
        ended.set()
        speaker.join()


SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Make codes": {
        "estimate": ("archives", "Estimate bytes, time and quality from a sample; write nothing."),
        "compress": ("archives", "Compress images or embeddings to an archive of codes."),
        "append": ("archives", "Add images or embeddings to an archive."),
        "merge": ("archives", "Join archives."),
        "split": ("archives", "Cut an archive into several."),
        "transcode": ("archives", "Rewrite an archive: narrower, smaller, with labels."),
        "import-faiss": ("archives", "Compress the codes of a FAISS index."),
    },
    "Look at them": {
        "info": ("archives", "Show what an archive holds and where its bytes go."),
        "verify": ("archives", "Check every byte of an archive, or salvage a damaged one."),
        "search": ("evaluate", "Find the nearest rows of an archive to images or embeddings."),
        "dedup": ("evaluate", "Find rows that are nearly the same, by their codes."),
        "report": ("evaluate", "Explain an archive on one HTML page."),
        "decompress": ("archives", "Export codes as arrays: .npz, .npy, .csv, .parquet or .arrow."),
        "export": ("archives", "Export decoded vectors or bits to an index of FAISS."),
    },
    "Learn from them": {
        "evaluate": ("evaluate", "Train a classifier or regressor on codes and score it."),
        "predict": ("evaluate", "Apply a saved classifier or regressor to codes."),
        "select": ("evaluate", "Choose the latents that a task needs."),
        "uncertainty": ("evaluate", "Test whether uncertainty flags errors and out-of-distribution rows."),
    },
    "Train": {
        "train": ("train", "Train an encoder on your own images or embeddings, without labels."),
        "adapt": ("train", "Fit a model's code to your own images, in minutes."),
        "finetune": ("train", "Train a model and a classifier on labels."),
        "models": ("train", "List the models that come with stochcl, or show one."),
    },
    "Measure": {
        "benchmark": ("benchmark", "Compare codes with other compressors."),
    },
}
"""Commands in the sections and order of the help: each one's module, imported when it runs, and its line."""

COMMANDS = {name: where for commands in SECTIONS.values() for name, where in commands.items()}

_INTERRUPTED, _TERMINATED = 130, 143
_PIPE = 141  # the exit status of shells for a program whose reader closed the pipe


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # values in malloc.h
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next batch; do nothing if it has no such setting.

    Otherwise every layer's output is mapped anew, page by page: 173 images/s instead of 380 on one core.
    """
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _KEPT)


class Commands(click.Group):
    """The commands of ``COMMANDS``, imported one at a time so that ``stochcl --help`` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        found: click.Command | None = getattr(import_module(f"stochcl.cli.{module}"), cmd_name.replace("-", "_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; print an error of stochcl as one sentence and exit with its code."""
        _occupy_standard_streams()
        keep_freed_memory()
        # A name may hold characters that the terminal's encoding lacks: escape them rather than fail.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        ctx.with_resource(command_line())  # until the message is printed
        try:
            with _terminable():
                return super().invoke(ctx)
        except StochclError as exc:
            click.echo(" ".join([f"stochcl: {exc}", *getattr(exc, "__notes__", ())]), err=True)
            ctx.exit(exc.exit_code)
        except BrokenPipeError:  # the reader closed the pipe
            mute()
            ctx.exit(_PIPE)
        except KeyboardInterrupt as exc:
            click.echo(" ".join(["stochcl: interrupted.", *getattr(exc, "__notes__", ())]), err=True)
            ctx.exit(_TERMINATED if isinstance(exc, Terminated) else _INTERRUPTED)


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: finished work is kept."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, unless a handler is set already."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    end.raises = Terminated  # type: ignore[attr-defined]  # training raises it at the end of a step
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _occupy_standard_streams() -> None:
    """Open the null device for closed standard streams, because the next opened file would receive their messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Completion in bash, for ~/.bashrc: eval "$(_STOCHCL_COMPLETE=bash_source stochcl)"',
)
@click.version_option(__version__, prog_name="stochcl")
@click.option(
    "--trusted", is_flag=True, help="Decode archives that ask for much more work or memory than their size suggests."
)
def main(trusted: bool) -> None:
    """Turn images or embeddings into codes of some 30 bytes that scikit-learn can train on.

    A model makes a code of each image; an archive (codes.bin) holds the codes; a decoder turns them into vectors.
    Codes are lossy: images cannot be recovered.

    \b
    Example:
      stochcl compress images/ -o codes.bin    # images to codes
      stochcl info codes.bin                   # what the archive holds
      stochcl evaluate codes.bin               # a classifier trained on the codes
    """
    if trusted:
        os.environ["STOCHCL_TRUSTED"] = "1"
