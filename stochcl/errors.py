"""The exceptions that users see: one tree, one sentence each, and the command's exit code.

Messages name options as on the command line, ``--force``; Python callers see the argument, ``force=True``.
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
    """Name options by their flags in messages while the block runs."""
    global _command_line  # noqa: PLW0603 - a process has one kind of user
    before, _command_line = _command_line, True
    try:
        yield
    finally:
        _command_line = before


def for_caller(message: str) -> str:
    """Return a message that names options as the caller knows them: flags, or function arguments.

    Commands in backticks stay unchanged.

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
    """Return the name of an option for the caller, where the argument differs from the flag."""
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
    """Base of all errors that stochcl raises on purpose.

    The message is one or more plain sentences: what was found, where, and what to do. ``exit_code`` is the
    command's exit code: 1 for wrong data, 2 for a wrong request.
    """

    exit_code = 1

    def __str__(self) -> str:
        return for_caller(" ".join(map(str, self.args)))


class UsageError(StochclError, ValueError):
    """The request itself is wrong: an option, or options that contradict each other."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A feature needs a package that is not installed; the message names the extra to install."""


def require(module: str, what: str, extra: str) -> Any:
    """Import a module of an extra; if it is not installed, raise MissingExtraError that names ``what`` needs it."""
    try:
        return import_module(module)
    except ImportError as exc:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} needs {package}, which is not installed; run: pip install 'stochcl[{extra}]'."
        ) from exc


class InputNotFound(UsageError, FileNotFoundError):
    """There is no such options file, or nothing to continue from."""


class OutputExists(UsageError, FileExistsError):
    """The output exists already; the message says how to replace or continue it."""


class NameNotFound(UsageError, KeyError):
    """An archive has no row with this name."""


class SourceError(StochclError):
    """A source of images or embeddings cannot be read as a whole."""


class SourceNotFound(SourceError, FileNotFoundError):
    """There is no such file or folder."""


class EnvironmentFault(SourceError):
    """The disk, network or file table failed, or the source vanished, during reading: no fault of an image."""


class ImageError(StochclError):
    """One image of a source cannot be read; compression names, counts and skips it."""


class ImageNotFound(ImageError, FileNotFoundError):
    """There is no such image."""


class LabelsError(StochclError, ValueError):
    """Labels are missing, malformed, or do not match the names of an archive."""


class LabelsNotFound(LabelsError, FileNotFoundError):
    """There is no such file of labels."""


class ModelError(StochclError, ValueError):
    """A model file is damaged, foreign, or of a kind unknown to this version."""


class ModelNotFound(UsageError, ModelError, FileNotFoundError):
    """There is no model of this name and no such file."""


class OutputError(StochclError):
    """An output cannot be written: it exists already, the disk is full, the folder is missing."""


class TrainingError(StochclError):
    """Training cannot continue: too few images, a loss that is not finite, a checkpoint of another run."""


class FormatError(StochclError, ValueError):
    """An archive is malformed; base of the more specific faults."""


class BadMagic(FormatError):
    """The file does not start like a stochcl archive."""


class UnsupportedVersion(FormatError):
    """The archive has a format version that this program does not read."""


class Truncated(FormatError):
    """The file ends before its content does."""


class ChecksumMismatch(FormatError):
    """Stored and computed checksums differ: the file is damaged."""


class LimitExceeded(FormatError):
    """A size in the file exceeds the format's limits, so nothing is allocated for it."""


class ModelMismatch(FormatError):
    """The archive was made by another model than the given one."""


_NOT_FOUND: dict[type[StochclError], type[StochclError]] = {
    UsageError: InputNotFound,
    ModelError: ModelNotFound,
    SourceError: SourceNotFound,
    ImageError: ImageNotFound,
    LabelsError: LabelsNotFound,
}


def error_of(kind: type[StochclError], cause: Exception, message: str) -> StochclError:
    """Return the error for a file that cannot be read, as a FileNotFoundError if that is the cause."""
    return (_NOT_FOUND.get(kind, kind) if isinstance(cause, FileNotFoundError) else kind)(message)
