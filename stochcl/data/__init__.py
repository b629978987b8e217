"""What can be read: folders, archives and arrays of images, embedding matrices, and labels."""

from __future__ import annotations

from stochcl.data.names import folder_label, held_out, printable
from stochcl.data.opening import open_source
from stochcl.data.preprocess import Preprocess
from stochcl.data.source import Entry, Failure, ImageBatch, ImageSource

__all__ = [
    "Entry",
    "Failure",
    "ImageBatch",
    "ImageSource",
    "Preprocess",
    "folder_label",
    "held_out",
    "open_source",
    "printable",
]
