"""Sources: folders, archives and arrays of images, embedding matrices, and labels."""

from __future__ import annotations

from stochcl.data.array import ArraySource, MatrixSource, VectorSource, sample_rows, sample_size
from stochcl.data.arrow import ArrowImages, ArrowVectors, open_arrow
from stochcl.data.folder import FolderSource
from stochcl.data.labels import LabelTable, held_out, read_labels
from stochcl.data.names import SourceOptions
from stochcl.data.open import open_list, open_source, open_sources
from stochcl.data.preprocess import Preprocess
from stochcl.data.source import Entry, Failure, ImageBatch, ImageSource, StreamSource, SubsetSource
from stochcl.data.tar import TarSource, TarStream
from stochcl.data.zip import ZipSource

__all__ = [
    "ArraySource", "ArrowImages", "ArrowVectors", "Entry", "Failure", "FolderSource", "ImageBatch", "ImageSource",
    "LabelTable", "MatrixSource", "Preprocess", "SourceOptions", "StreamSource", "SubsetSource", "TarSource",
    "TarStream", "VectorSource", "ZipSource", "held_out", "open_arrow", "open_list", "open_source", "open_sources",
    "read_labels", "sample_rows", "sample_size",
]  # fmt: skip
