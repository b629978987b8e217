"""The stages of compressing a source, each alone, and the floors beside them."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from stochcl.benchmarks.errors import BenchmarkError
from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.compress.segment import write_segment
from stochcl.data.array import ArraySource
from stochcl.data.preprocess import _DRAFT_GAP
from stochcl.encoders.inference import _CHUNK
from stochcl.entropy.ans import encode_block
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import OWN
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stochcl.api.codec import Codec
    from stochcl.data import ImageSource

_BATCH = 256  # images that compressing hands on at a time


class Stages:
    """What is measured, over the images of a source that can be read, the first ``most`` of them.

    Parameters
    ----------
    codec : Codec
    source : ImageSource
        Of image files: an array has nothing to decode.
    path : Path
        Where it was opened.
    folder : Path
        For what is written.
    most : int

    Raises
    ------
    UsageError
        If the source is an array, or holds more images than ``most``: the whole would not be of the same images.
    ImageError
        If an image cannot be read.
    """

    def __init__(self, codec: Codec, source: ImageSource, path: Path, folder: Path, *, most: int) -> None:
        if isinstance(source, ArraySource):
            raise UsageError("throughput is measured on image files; an array has nothing to decode.")
        if len(source) > most:
            raise UsageError(
                f"this source has {len(source):,} images, and all of them would be compressed, not {most:,}; "
                f"pass --images {len(source)}, or name a smaller source."
            )
        self.codec, self.source, self.path, self.folder = codec, source, path, folder
        self.rows = range(len(source))
        self.pixels = np.stack([source.load(i, codec.preprocess) for i in self.rows])
        self.data = [source._read(i) for i in self.rows]
        encoder, device = codec._encoder, codec.device
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            pixels = torch.from_numpy(self.pixels).to(device).permute(0, 3, 1, 2).float()
            self.tensors = encoder.normalise(pixels).contiguous(memory_format=torch.channels_last)
            self.codes = codec.with_precision("fp32").encode_prepared(self.pixels).codes
        names = tuple(source.entries[i].name for i in self.rows)
        self.named = replace(self.codes, names=names, uncertainty=None)
        self.encoded = self.codes
        self.candidates = codec.tables.candidates(codec.latents, None)
        self.head, self.chunk = write_segment(self.named, self.candidates)
        own = IndependentModel.fit(self.codes)
        chosen = [c.model for c in self.candidates if (c.kind, c.number) == (self.head.model, self.head.number)]
        self.model: Any = own if self.head.model == OWN else chosen[0]
        self.archive = folder / "whole.bin"

    def work(self) -> dict[str, Callable[[], object]]:
        """Return the work by name: stages, the whole, floors."""
        return {
            "read": self.read,
            "decode": self.decode,
            "resize": self.resize(),
            "encode": self.encode,
            "entropy-code": lambda: write_segment(self.named, self.candidates),
            "write": self.write,
            "whole": self.whole,
            "floor: decode": self.decode,
            "floor: forward": self.forward,
            "floor: code": self.code,
        }

    def read(self) -> None:
        """Read the files, which the system has in memory after the first time."""
        for i in self.rows:
            self.source._read(i)

    def decode(self) -> None:
        """Decode files in memory with Pillow alone, at the scale that preprocessing asks of it."""
        for data in self.data:
            self._opened(data)

    def _opened(self, data: bytes) -> Image.Image:
        image = Image.open(BytesIO(data))
        preprocess = self.codec.preprocess
        image.draft(None, preprocess._scaled(*image.size, preprocess.size * _DRAFT_GAP))
        image.load()
        return image

    def resize(self) -> Callable[[], None]:
        """Return what brings decoded images to the network's size; they are decoded before."""
        images = [self._opened(data) for data in self.data]

        def resize() -> None:
            for image in images:
                self.codec.preprocess.apply(image)

        return resize

    def encode(self) -> None:
        """From 8-bit pixels to packed codes, in batches as compressing has them."""
        starts = range(0, len(self.pixels), _BATCH)
        encode = partial(self.codec.encode_prepared, uncertainty=False)
        parts = [encode(self.pixels[start : start + _BATCH]).codes for start in starts]
        self.encoded = Codes.concatenate(parts)

    @torch.inference_mode()
    def forward(self) -> None:
        """Run the network alone, on normalised tensors that are on the device, to the modes of the latents.

        In as many rows at a time as encoding has, the last ones not filled up.
        """
        chunk, encoder = _CHUNK.get(self.codec.device.type, 64), self.codec._encoder
        for start in range(0, len(self.tensors), chunk):
            encoder.posterior(encoder.features(self.tensors[start : start + chunk])).mode()

    def code(self) -> None:
        """Run the coder alone, under the model that is known to be cheapest, in one block."""
        decisions = self.codes.decisions()
        indices = None if isinstance(self.model, IndependentModel) else self.model.level_indices(decisions)
        encode_block(self.codes, self.model, indices)

    def write(self) -> None:
        """Put the coded segment onto the disk."""
        with (self.folder / "written.bin").open("wb") as file:
            file.write(self.chunk)
            file.flush()
            os.fsync(file.fileno())

    def whole(self) -> None:
        """Compress the source to an archive, as ``stochcl compress`` does."""
        self.codec.compress(self.path, self.archive, force=True)

    def check(self) -> float:
        """See that the archive's codes are those of the encoder alone; return which part fp32 gives as well."""
        with Archive(self.archive, tables=[self.codec.tables]) as archive:
            found = archive[:]
        if not np.array_equal(found.packed, self.encoded.packed):
            raise BenchmarkError(
                "the archive holds other codes than the network gives; no figure of this run counts."
            )
        return float((found.symbols() == self.codes.symbols()).mean())
