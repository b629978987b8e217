"""The group of commands, and what becomes of errors."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Any

import click

from stochcl import __version__
from stochcl.cli.output import mute
from stochcl.errors import StochclError

COMMANDS = {
    "compress": "Compress images to a file of codes.",
    "info": "Say what a file of codes holds and where its bytes go.",
    "verify": "Check every byte of a file of codes.",
    "append": "Add images to a file of codes.",
    "merge": "Join files of codes.",
    "split": "Cut a file of codes into several.",
    "transcode": "Write a file of codes anew: narrower, smaller, with labels.",
    "decompress": "Decode codes to arrays: .npz, .npy, .csv or .parquet.",
    "evaluate": "Train a classifier or regressor on codes and score it.",
    "predict": "Ask a saved classifier or regressor about codes.",
    "uncertainty": "Say whether what is uncertain is wrong, or foreign.",
    "report": "Explain a file of codes on one HTML page.",
    "search": "Find the nearest images in a file of codes.",
    "select": "Choose the latents that a task needs.",
    "sprites": "Make images of known factors, to train and measure on.",
    "train": "Train an encoder on your own images.",
    "finetune": "Train a model on labels, and keep its classifier.",
    "benchmark": "Set the codec beside other compressors, on this machine.",
    "models": "List the models that come with stochcl, with their figures.",
    "demo": "Run the whole story on example images, in under a minute.",
}
"""Commands, in the order of the help, each with its line there; the code of one is imported when it is run."""

_INTERRUPTED = 130
_PIPE = 141  # what shells say of a program whose reader has gone


class Commands(click.Group):
    """The commands of ``COMMANDS``, imported one at a time, so that ``stochcl --help`` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"stochcl.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error that stochcl raises becomes one sentence and its exit code."""
        # A name may hold letters that the terminal's encoding lacks; better an escape than no result at all.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except StochclError as exc:
            click.echo(" ".join([f"stochcl: {exc}", *getattr(exc, "__notes__", ())]), err=True)
            ctx.exit(exc.exit_code)
        except BrokenPipeError:  # the reader has seen enough
            mute()
            ctx.exit(_PIPE)
        except KeyboardInterrupt as exc:
            click.echo(" ".join(["stochcl: interrupted.", *getattr(exc, "__notes__", ())]), err=True)
            ctx.exit(_INTERRUPTED)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="stochcl")
def main() -> None:
    """Compress what a neural network knows about an image.

    \b
    stochcl compress images/ -o codes.bin     images to codes
    stochcl info codes.bin                    what the file holds
    stochcl evaluate codes.bin                a classifier trained on the codes
    """
