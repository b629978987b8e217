"""The exceptions a user can meet: one tree, one sentence each, and the exit code that a command gives.

Messages name options as the command line does, ``--force``. A program is told the argument, ``force=True``.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAG = re.compile(
    r"(?<![\w-])(?:--(?P<no>no-)?(?P<name>[a-z][a-z-]*[a-z])|(?P<with>with )?-(?P<short>[mk])\b)"
    r"(?: (?P<value>-?\d+)|=(?P<word>\w+))?"
)
_SWITCHES = {
    "any-name", "external-tables", "force", "refit", "resume", "self-contained", "strict", "trusted", "uncertainty",
}  # fmt: skip
_ARGUMENTS = {"by": "output", "input": "output"}
_SHORT = {"m": "model", "k": "count"}
_command_line = False


@contextmanager
def command_line() -> Iterator[None]:
    """Let messages name options by their flags while the block runs."""
    global _command_line  # noqa: PLW0603 - a process speaks to one kind of user
    before, _command_line = _command_line, True
    try:
        yield
    finally:
        _command_line = before


def for_caller(message: str) -> str:
    """Return a message with the names that options have for whoever calls: flags, or arguments of a function.

    Commands in backticks stay as they are.

    Examples
    --------
    >>> for_caller("it exists; pass --force, or --no-names with --label-level 2 (`stochcl merge --force`).")
    'it exists; pass force=True, or names=False with label_level=2 (`stochcl merge --force`).'
    """
    if _command_line:
        return message
    parts = message.split("`")
    return "`".join(part if i % 2 else _FLAG.sub(_argument, part) for i, part in enumerate(parts))


def option_name(flag: str, argument: str) -> str:
    """Return what whoever calls knows an option as, where a function's argument is not named like its flag."""
    return flag if _command_line else argument


def _argument(match: re.Match[str]) -> str:
    flag, value = match["name"], match["value"]
    if match["no"]:
        return f"{flag.replace('-', '_')}=False"
    if match["short"]:
        return f"{'as ' if match['with'] else ''}{_SHORT[match['short']]}"
    name = _ARGUMENTS.get(flag, flag.replace("-", "_"))
    value = repr(match["word"]) if match["word"] else "True" if flag in _SWITCHES and value is None else value
    return name if value is None else f"{name}={value}"


class StochclError(Exception):
    """Base of every error that stochcl raises on purpose.

    The message is one or more plain sentences: what was found, where, and what to do. ``exit_code`` is what
    the command line returns: 1 where the data is wrong, 2 where the request is.
    """

    exit_code = 1

    def __str__(self) -> str:
        return for_caller(" ".join(map(str, self.args)))


class UsageError(StochclError, ValueError):
    """The request is wrong, whatever the data: an option, or options that contradict each other."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A feature needs a package that is not installed; the message names the extra to install."""


def require(module: str, what: str, extra: str) -> Any:
    """Import a module of an extra; MissingExtraError, where it is not installed, says what needs it."""
    try:
        return import_module(module)
    except ImportError as exc:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} needs {package}, which is not installed; run: pip install 'stochcl[{extra}]'."
        ) from exc


class InputNotFound(UsageError, FileNotFoundError):
    """There is no such file of options, or to continue from."""


class OutputExists(UsageError, FileExistsError):
    """The output is there already; the message says how to replace or continue it."""


class NameNotFound(UsageError, KeyError):
    """An archive has no row of this name."""


class SourceError(StochclError):
    """A source of images or embeddings cannot be read as a whole."""


class SourceNotFound(SourceError, FileNotFoundError):
    """There is no such file or folder."""


class EnvironmentFault(SourceError):
    """The disk, network or file table failed, or the source vanished, while it was read: no fault of an image."""


class ImageError(StochclError):
    """One image of a source cannot be read; compression names, counts and skips it."""


class ImageNotFound(ImageError, FileNotFoundError):
    """There is no such image."""


class LabelsError(StochclError, ValueError):
    """Labels are missing, malformed, or do not match the names of an archive."""


class LabelsNotFound(LabelsError, FileNotFoundError):
    """There is no such file of labels."""


class ModelError(StochclError, ValueError):
    """A model file is damaged, foreign, or of a kind that this version does not know."""


class ModelNotFound(UsageError, ModelError, FileNotFoundError):
    """There is no model of this name, and no such file."""


class OutputError(StochclError):
    """An output cannot be written: it exists already, the disk is full, the folder is missing."""


class TrainingError(StochclError):
    """Training cannot go on: too few images, a loss that is not finite, a checkpoint of another run."""


class FormatError(StochclError, ValueError):
    """An archive is not what it should be; base of the ways in which a file can be wrong."""


class BadMagic(FormatError):
    """The file does not begin like a stochcl archive."""


class UnsupportedVersion(FormatError):
    """The archive was written by a version of the format that this program does not read."""


class Truncated(FormatError):
    """The file ends before its content does."""


class ChecksumMismatch(FormatError):
    """Stored and computed checksums differ: the file was damaged."""


class LimitExceeded(FormatError):
    """A size in the file is beyond what the format allows, so nothing is allocated for it."""


class ModelMismatch(FormatError):
    """The archive was made by another model than the one it is read with."""


_NOT_FOUND: dict[type[StochclError], type[StochclError]] = {
    UsageError: InputNotFound,
    ModelError: ModelNotFound,
    SourceError: SourceNotFound,
    ImageError: ImageNotFound,
    LabelsError: LabelsNotFound,
}


def error_of(kind: type[StochclError], cause: Exception, message: str) -> StochclError:
    """Return the error for a file that cannot be read: of a kind, and a FileNotFoundError if that is the cause."""
    return (_NOT_FOUND.get(kind, kind) if isinstance(cause, FileNotFoundError) else kind)(message)
