"""What is compared: every method behind one pair of functions, codes to bytes and back."""

from __future__ import annotations

import io
import lzma
import tempfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl import framing
from stochcl.benchmarks.layouts import lay_out, take_up
from stochcl.codes import Codes
from stochcl.compress import Archive, Header, Writer
from stochcl.entropy import ans as coder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.entropy.independent import IndependentModel
    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import Tables

_BLOCK_BITS = 1 << 16  # what a block of an archive holds, too
_PARAMETERS = 1 << 20  # probabilities given to one call of constriction: 8 MB


@dataclass(frozen=True)
class Method(ABC):
    """A way to write codes as bytes.

    ``decode(encode(codes))`` gives codes of equal symbols, in this process or another: a method knows the codes'
    shape and whatever entropy model it was made with, and nothing of the codes themselves. Both functions take
    and return packed :class:`~stochcl.codes.Codes`, so a method that needs another form pays for making it.

    Parameters
    ----------
    name : str
    rows, latents, alphabet : int
        The shape of the codes.
    """

    name: str
    rows: int
    latents: int
    alphabet: int

    ours: ClassVar[bool] = False
    module: ClassVar[str | None] = None
    """A module of the ``bench`` extra that it needs."""

    @abstractmethod
    def encode(self, codes: Codes) -> bytes:
        """Write codes as bytes."""

    @abstractmethod
    def decode(self, data: bytes) -> Codes:
        """Read what :meth:`encode` wrote."""

    def _codes(self, packed: NDArray[np.uint8]) -> Codes:
        return Codes(packed, self.latents, self.alphabet)


@dataclass(frozen=True)
class Blocks(Method):
    """Ours: the coded symbols alone, in blocks as an archive has them, each with its length.

    Parameters
    ----------
    model : IndependentModel or AutoregressiveModel
    rows_per_block : int
    """

    model: Any
    rows_per_block: int

    ours = True

    @staticmethod
    def block_rows(bits_per_row: float, decisions_per_row: int) -> int:
        """Rows that fill a block of 64 kbit, as in an archive."""
        rows = round(_BLOCK_BITS / max(bits_per_row, 1e-3))
        return max(1, min(rows, framing.MAX_BLOCK_DECISIONS // decisions_per_row, 1 << 20))

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        blocks = [
            coder.encode_block(codes[start : start + self.rows_per_block], self.model)
            for start in range(0, len(codes), self.rows_per_block)
        ]
        lengths = framing.pack_varints([len(words) for words in blocks])
        return b"".join([lengths, *(words.astype("<u4").tobytes() for words in blocks)])

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        starts = range(0, self.rows, self.rows_per_block)
        counts = [min(self.rows_per_block, self.rows - start) for start in starts]
        lengths, position = framing.unpack_varints(data, len(counts), 0)
        words = []
        for length in lengths:
            words.append(np.frombuffer(data, "<u4", length, position).astype(np.uint32))
            position += 4 * length
        together = getattr(coder, "decode_blocks", None)
        if together is not None:
            return self._codes(np.concatenate(together(words, counts, self.model)))
        parts = [coder.decode_block(w, n, self.model) for w, n in zip(words, counts, strict=True)]
        return self._codes(np.concatenate(parts))


@dataclass(frozen=True)
class WholeArchive(Method):
    """Ours: the file that a writer leaves, with header, index and checksums, fsync included; without names.

    Parameters
    ----------
    header : Header
    tables : Tables
    embed_tables : bool
    fitted : tuple of IndependentModel or AutoregressiveModel
        Models that the file holds for itself.
    """

    header: Header
    tables: Tables
    embed_tables: bool
    fitted: tuple[EntropyModel, ...] = ()

    ours = True

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
            path = Path(folder, "codes.bin")
            with Writer(
                path, self.header, self.tables, embed_tables=self.embed_tables, fitted=self.fitted, names=False
            ) as out:
                out.add(codes)
            return path.read_bytes()

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        with Archive(io.BytesIO(data), tables=[self.tables]) as archive:
            return archive[:]


@dataclass(frozen=True)
class Packed(Method):
    """The codes as they are held in memory: one bit a binary latent, no entropy coding."""

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        return codes.packed.tobytes()

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        return self._codes(np.frombuffer(data, np.uint8).reshape(self.rows, -1))


@dataclass(frozen=True)
class General(Method):
    """A general compressor on bytes laid out in one of several orders.

    Parameters
    ----------
    layout : str
    """

    layout: str

    label: ClassVar[str] = ""

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        return self._deflate(lay_out(codes, self.layout))

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        return take_up(self._inflate(data), self.layout, self.rows, self.latents, self.alphabet)

    @abstractmethod
    def _deflate(self, data: bytes) -> bytes: ...

    @abstractmethod
    def _inflate(self, data: bytes) -> bytes: ...


class Zlib(General):
    """Deflate at level 9."""

    label = "zlib -9"

    def _deflate(self, data: bytes) -> bytes:
        return zlib.compress(data, 9)

    def _inflate(self, data: bytes) -> bytes:
        return zlib.decompress(data)


class Xz(General):
    """LZMA2 at preset 9, extreme."""

    label = "xz -9e"

    def _deflate(self, data: bytes) -> bytes:
        return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)

    def _inflate(self, data: bytes) -> bytes:
        return lzma.decompress(data)


class Zstd(General):
    """Zstandard at level 19."""

    label = "zstd -19"
    module = "zstandard"

    def _deflate(self, data: bytes) -> bytes:
        packed: bytes = import_module("zstandard").ZstdCompressor(level=19).compress(data)
        return packed

    def _inflate(self, data: bytes) -> bytes:
        plain: bytes = import_module("zstandard").ZstdDecompressor().decompress(data)
        return plain


class Brotli(General):
    """Brotli at quality 11."""

    label = "brotli -11"
    module = "brotli"

    def _deflate(self, data: bytes) -> bytes:
        packed: bytes = import_module("brotli").compress(data, quality=11)
        return packed

    def _inflate(self, data: bytes) -> bytes:
        plain: bytes = import_module("brotli").decompress(data)
        return plain


GENERAL: tuple[type[General], ...] = (Zlib, Xz, Zstd, Brotli)


@dataclass(frozen=True)
class PerSymbol(Method):
    """constriction's ANS as its manual shows it: one stream, one row of probabilities for each symbol.

    Many symbols go to a call, but not all: their probabilities, a float64 for each value of each symbol, would
    take a hundred times the memory of the codes. The stream is the same whatever the calls' size.

    Parameters
    ----------
    model : IndependentModel
    perfect : bool
        Of constriction: probabilities rounded optimally (slow), or quickly.
    """

    model: IndependentModel
    perfect: bool

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        import constriction

        ans, family, chunk = constriction.stream.stack.AnsCoder(), self._family(), self._chunk()
        probabilities = np.tile(symbol_probabilities(self.model), (min(chunk, self.rows), 1))
        for start in reversed(range(0, self.rows, chunk)):  # a stack gives back last what it took first
            symbols = codes[start : start + chunk].symbols().reshape(-1).astype(np.int32)
            ans.encode_reverse(symbols, family, probabilities[: len(symbols)])
        return bytes(ans.get_compressed().astype("<u4").tobytes())

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        import constriction

        ans = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
        family, chunk, parts = self._family(), self._chunk(), []
        probabilities = np.tile(symbol_probabilities(self.model), (min(chunk, self.rows), 1))
        for start in range(0, self.rows, chunk):
            count = min(chunk, self.rows - start)
            symbols = ans.decode(family, probabilities[: count * self.latents])
            parts.append(Codes.from_symbols(symbols.reshape(count, -1), alphabet=self.alphabet).packed)
        return self._codes(np.concatenate(parts))

    def _family(self) -> Any:
        import constriction

        return constriction.stream.model.Categorical(perfect=self.perfect)

    def _chunk(self) -> int:
        return max(1, _PARAMETERS // (self.latents * self.alphabet))


def symbol_probabilities(model: IndependentModel) -> NDArray[np.float64]:
    """Multiply a model's decisions out to probabilities of symbols, shape (D, K); each row adds up to 1.

    Examples
    --------
    >>> symbol_probabilities(IndependentModel(np.array([[1024]], np.uint16)))
    array([[0.75, 0.25]])
    """
    ones = model.ones / 4096
    leaves = np.ones((model.latents, 1))
    while leaves.shape[1] < model.alphabet:
        nodes = leaves.shape[1]
        one = ones[:, nodes - 1 : 2 * nodes - 1]
        leaves = np.stack([leaves * (1 - one), leaves * one], axis=2).reshape(model.latents, -1)
    kept = leaves[:, : model.alphabet]  # what the alphabet lacks has next to no probability
    normal: NDArray[np.float64] = kept / kept.sum(axis=1, keepdims=True)
    return normal
