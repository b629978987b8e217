"""The exceptions a user can meet: one tree, one sentence each, and the exit code that a command gives."""

from __future__ import annotations


class StochclError(Exception):
    """Base of every error that stochcl raises on purpose.

    The message is one or more plain sentences: what was found, where, and what to do. ``exit_code`` is what
    the command line returns: 1 where the data is wrong, 2 where the request is.
    """

    exit_code = 1


class UsageError(StochclError, ValueError):
    """The request cannot be carried out as it was put, whatever the data."""

    exit_code = 2


class MissingExtraError(UsageError):
    """A feature needs a package that is not installed; the message names the extra to install."""


class SourceError(StochclError):
    """A source of images or embeddings cannot be read as a whole."""


class EnvironmentFault(SourceError):
    """The disk, network or file table failed, or the source vanished, while it was read: no fault of an image."""


class ImageError(StochclError):
    """One image of a source cannot be read; compression names, counts and skips it."""


class LabelsError(StochclError):
    """Labels are missing, malformed, or do not match the names of an archive."""


class ModelError(StochclError):
    """A model file is damaged, foreign, or of a kind that this version does not know."""


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
