"""What can be read: folders, archives and arrays of images, embedding matrices, and labels."""

from __future__ import annotations

from stochcl.data.array import ArraySource
from stochcl.data.arrow import ArrowImages, ArrowVectors, open_arrow
from stochcl.data.cifar import Cifar10Source
from stochcl.data.folder import FileSource, FolderSource
from stochcl.data.labels import LabelTable, read_labels
from stochcl.data.matrix import MatrixBatch, MatrixSource
from stochcl.data.names import folder_label, held_out, printable
from stochcl.data.opening import open_source
from stochcl.data.preprocess import Preprocess
from stochcl.data.sampling import sample_rows, sample_size
from stochcl.data.several import open_list, open_sources
from stochcl.data.source import Entry, Failure, ImageBatch, ImageSource
from stochcl.data.stream import StreamSource, TarStream
from stochcl.data.subset import SubsetSource, missing_from
from stochcl.data.tar import TarSource
from stochcl.data.zip import ZipSource

__all__ = [
    "ArraySource",
    "ArrowImages",
    "ArrowVectors",
    "Cifar10Source",
    "Entry",
    "Failure",
    "FileSource",
    "FolderSource",
    "ImageBatch",
    "ImageSource",
    "LabelTable",
    "MatrixBatch",
    "MatrixSource",
    "Preprocess",
    "StreamSource",
    "SubsetSource",
    "TarSource",
    "TarStream",
    "ZipSource",
    "folder_label",
    "held_out",
    "missing_from",
    "open_arrow",
    "open_list",
    "open_source",
    "open_sources",
    "printable",
    "read_labels",
    "sample_rows",
    "sample_size",
]
