"""Decoding tables: what is needed to read an archive, as a file named by the hash of its bytes."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import Codes
from stochcl.entropy.ans import decode_block, encode_block
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import INDEPENDENT, NETWORK, Candidate
from stochcl.entropy.vectors import Codebooks, ResidualDecoder, VectorDecoder
from stochcl.errors import FormatError, ModelMismatch, Truncated, UnsupportedVersion
from stochcl.files import PathLike, refuse_pointer, write_file
from stochcl.framing import MAX_TABLES, ArrayReader, check_crc, check_limit, crc, inflate, unpack
from stochcl.lazy import cached_property
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Where = Iterable["Tables | PathLike"]


Decoder = VectorDecoder | ResidualDecoder
"""A decoder from symbols to vectors."""

MAGIC = b"\x89SCT\r\n\x1a\n"
VERSION = 1
DEFLATED = 2
"""Version with deflated sections: tables with a residual decoder."""

_HEAD = struct.Struct("<8sHHIII")  # magic, version, sections, latents, alphabet, rungs
_SECTION = struct.Struct("<16sII")  # kind, bytes, CRC-32
_INFLATED = struct.Struct("<I")  # inflated size, before a deflated section's content
_TEST_ROWS = 8
_MAX_HALF = 65504
_TOLERANCE = 1e-2  # of decoded vectors, whose standardised features have unit variance


@dataclass(frozen=True, eq=False)
class Tables:
    """Decodes the bytes of an archive to symbols, and symbols to vectors.

    Parameters
    ----------
    ladder : tuple of int
        Prefixes that are codes of their own, ascending to the full width.
    entropy : IndependentModel
        Probabilities of the symbols.
    decoder : VectorDecoder, ResidualDecoder or None
        Without one, the archive has symbols but no vectors.
    autoregressive : AutoregressiveModel or None
        The network that usually codes the rows.

    Raises
    ------
    FormatError
        If the parts have different widths.
    """

    ladder: tuple[int, ...]
    entropy: IndependentModel
    decoder: Decoder | None = None
    autoregressive: AutoregressiveModel | None = None

    def __post_init__(self) -> None:
        rungs = list(self.ladder)
        if not rungs or rungs != sorted(set(rungs)) or rungs[0] < 1 or rungs[-1] != self.latents:
            raise FormatError(f"the ladder {self.ladder} does not ascend to the width, {self.latents} latents")
        if self.decoder is not None and self.decoder.latents != self.latents:
            msg = f"the vector decoder takes {self.decoder.latents} latents, the entropy model {self.latents}"
            raise FormatError(msg)
        if isinstance(self.decoder, ResidualDecoder) and self.alphabet != 2:
            raise FormatError(f"a residual decoder takes bits, and the entropy model has {self.alphabet} symbols")
        books = self.decoder.codebooks if isinstance(self.decoder, VectorDecoder) else None
        if books is not None and books.alphabet != self.alphabet:
            raise FormatError(f"the codebooks are of {books.alphabet} symbols, the entropy model of {self.alphabet}")
        network = self.autoregressive
        if network is not None and (network.latents, network.alphabet) != (self.latents, self.alphabet):
            raise FormatError(
                f"the network codes {network.latents} latents of {network.alphabet} values, the table {self.latents} "
                f"of {self.alphabet}"
            )

    @property
    def latents(self) -> int:
        """D, the full number of latents."""
        return self.entropy.latents

    @property
    def alphabet(self) -> int:
        """K, the number of values per latent."""
        return self.entropy.alphabet

    def candidates(self, latents: int, selection: Sequence[int] | None = None) -> list[Candidate]:
        """Return the entropy models for codes of the first latents, or of selected ones; independent symbols first.

        A selection has no network, because its probabilities need all earlier latents.
        """
        if selection is not None:
            return [Candidate(self.entropy.select(selection), INDEPENDENT)]
        found = [Candidate(self.entropy.prefix(latents), INDEPENDENT)]
        if self.autoregressive is not None:
            found.append(Candidate(self.autoregressive.prefix(latents), NETWORK))
        return found

    @cached_property
    def data(self) -> bytes:
        """The bytes of the tables, with a self-test that :meth:`from_bytes` repeats."""
        return _laid_out(self, self._sections, deflate=self._version == DEFLATED)

    @cached_property
    def _sections(self) -> list[tuple[str, bytes]]:
        sections = [(self.entropy.kind, self.entropy.to_bytes())]
        if self.autoregressive is not None:
            sections.append((self.autoregressive.kind, self.autoregressive.to_bytes()))
        if self.decoder is not None:
            if isinstance(self.decoder, VectorDecoder) and self.decoder.codebooks is not None:
                sections.append((self.decoder.codebooks.kind, self.decoder.codebooks.to_bytes()))
            sections.append((self.decoder.kind, self.decoder.to_bytes()))
        sections.append(("self-test", self._self_test()))
        return sections

    @property
    def _version(self) -> int:
        return DEFLATED if isinstance(self.decoder, ResidualDecoder) else VERSION

    @cached_property
    def sha256(self) -> str:
        """The tables' name, in hex: the hash of their bytes before deflation.

        So the name does not depend on the zlib that deflated them.
        """
        if self._version == VERSION:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha256(_laid_out(self, self._sections, deflate=False)).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """Read tables from bytes, and run their self-test."""
        magic, version, count, latents, alphabet, rungs = unpack(_HEAD, data, 0, "the head of the tables")
        if magic != MAGIC:
            raise FormatError(f"this is not a decoder: it begins with {magic.hex(' ')}")
        if version not in (VERSION, DEFLATED):
            msg = f"this decoder has version {version}, and this program reads 1 and 2; update stochcl"
            raise UnsupportedVersion(msg)
        check_limit(rungs, latents, "the number of a ladder's rungs")
        end = _HEAD.size + 4 * rungs
        layout = struct.Struct(f"<{rungs}II")
        *ladder, expected = unpack(layout, data, _HEAD.size, "the ladder")
        check_crc(expected, "the head of the tables", data[:end])
        sections = _sections(data, end + 4, count)
        if version == DEFLATED:
            sections = _inflated(sections)
        decoders = {"codebooks", "mlp"} if version == VERSION else {"residual"}
        if unknown := set(sections) - {"independent", "autoregressive", *decoders, "self-test"}:
            msg = f"the decoder has sections that this program does not know ({escape_name(min(unknown))})"
            raise UnsupportedVersion(f"{msg}; update stochcl")
        if "independent" not in sections:
            raise FormatError("the decoder has no entropy model")
        if "codebooks" in sections and "mlp" not in sections:
            raise FormatError("the decoder has codebooks, and no vector decoder that takes them")
        books = Codebooks.from_bytes(sections["codebooks"]) if "codebooks" in sections else None
        decoder: Decoder | None = None
        if "mlp" in sections:
            decoder = VectorDecoder.from_bytes(sections["mlp"], books)
        elif "residual" in sections:
            decoder = ResidualDecoder.from_bytes(sections["residual"])
        network = sections.get("autoregressive")
        tables = cls(
            tuple(ladder),
            IndependentModel.from_bytes(sections["independent"]),
            decoder,
            None if network is None else AutoregressiveModel.from_bytes(network),
        )
        if (tables.latents, tables.alphabet) != (latents, alphabet):
            raise FormatError("the tables' head and their entropy model disagree")
        tables._check(sections.get("self-test", b""))
        tables.__dict__["data"] = bytes(data)  # keep the bytes as read, so that the name stays the same
        tables.__dict__["_sections"] = list(sections.items())
        return tables

    def _test_rows(self) -> Codes:
        """Return rows with common and rare symbols, from a fixed formula so that they need not be stored."""
        i = np.arange(_TEST_ROWS, dtype=np.uint64)[:, None] * 1_000_003
        j = np.arange(self.latents, dtype=np.uint64)[None, :] * 40_503
        return Codes.from_symbols(((i + j + 12_345) * 2_654_435_761 >> 15) % self.alphabet, alphabet=self.alphabet)

    def _self_test(self) -> bytes:
        # Computed in float64 and rounded to float16, the vectors are the same bytes on every processor.
        vectors = self._test_vectors(np.float64).astype("<f2")
        parts = [struct.pack("<I", len(w)) + w.astype("<u4").tobytes() for w in self._test_words()]
        return b"".join([*parts, vectors.tobytes()])

    def _test_words(self) -> list[NDArray[np.uint32]]:
        codes = self._test_rows()
        return [encode_block(codes, candidate.model) for candidate in self.candidates(self.latents)]

    def _test_vectors(self, dtype: type[np.float32] | type[np.float64]) -> NDArray[np.floating]:
        if self.decoder is None:
            return np.empty(0, dtype)
        return np.clip(self.decoder.decode(self._test_rows().symbols(), dtype), -_MAX_HALF, _MAX_HALF).reshape(-1)

    def _check(self, stored: bytes) -> None:
        reader, expected_streams = ArrayReader(stored, "the self-test"), self._test_words()
        streams = [reader.take("<u4", int(reader.take("<u4", 1)[0])) for _ in expected_streams]
        expected = self._test_vectors(np.float32)
        vectors = reader.take("<f2", len(expected)).astype(np.float32)
        reader.end()
        # A network's stream is not decoded here: for wide codes that takes longer than the block itself, and its
        # probabilities come from the same integers in both directions.
        agrees = (
            all(map(np.array_equal, expected_streams, streams))
            and np.array_equal(decode_block(streams[0], _TEST_ROWS, self.entropy), self._test_rows().packed)
            and np.allclose(vectors, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
        )
        if not agrees:
            msg = "the tables' self-test fails: this machine would decode other codes than the one that wrote them"
            raise FormatError(msg)


AnyTables = Tables | PathLike
"""Decoding tables, or the path of their file."""


def _sections(data: bytes, start: int, count: int) -> dict[str, bytes]:
    sections = {}
    for _ in range(count):
        kind, size, expected = unpack(_SECTION, data, start, "a section of the tables")
        content = data[start + _SECTION.size : start + _SECTION.size + size]
        start += _SECTION.size + size
        name = kind.rstrip(b"\0").decode("ascii", "replace")
        if start > len(data):
            raise Truncated(f"the {name} section of the tables ends too early")
        check_crc(expected, f"the {name} section of the tables", content)
        if name in sections:
            raise FormatError(f"the tables have two sections called {name}")
        sections[name] = content
    if start != len(data):
        raise FormatError(f"{len(data) - start:,} bytes follow the tables' last section")
    return sections


def _laid_out(tables: Tables, sections: list[tuple[str, bytes]], *, deflate: bool) -> bytes:
    """Return head, ladder and sections as bytes."""
    rungs = tables.ladder
    head = _HEAD.pack(MAGIC, tables._version, len(sections), tables.latents, tables.alphabet, len(rungs))
    head += struct.pack(f"<{len(rungs)}I", *rungs)
    parts = [head, struct.pack("<I", crc(head))]
    for kind, content in sections:
        data = _INFLATED.pack(len(content)) + zlib.compress(content, 9) if deflate else content
        parts += [_SECTION.pack(kind.encode(), len(data), crc(data)), data]
    return b"".join(parts)


def _inflated(sections: dict[str, bytes]) -> dict[str, bytes]:
    """Inflate sections to their declared sizes, whose sum may not exceed MAX_TABLES."""
    found, room = {}, MAX_TABLES
    for name, content in sections.items():
        what = f"the bytes of the {name} section of the tables"
        (size,) = unpack(_INFLATED, content, 0, what)
        check_limit(size, room, f"the size of {what}")
        found[name] = inflate(content[_INFLATED.size :], size, what)
        room -= size
    return found


def save_tables(tables: Tables, folder: PathLike) -> Path:
    """Write tables to a folder under their own name, and return the path."""
    path = Path(folder, f"{tables.sha256}.tables")
    write_file(path, tables.data, "the decoder")
    return path


def keep_tables(tables: Tables, folder: PathLike) -> Path | None:
    """Write tables to a folder unless :func:`find_tables` finds them anyway; return the path if written."""
    try:
        find_tables(tables.sha256)
    except ModelMismatch:
        return save_tables(tables, folder)
    return None


def is_packaged(sha256: str) -> bool:
    """Return whether the package contains the tables of this name."""
    return resources.files("stochcl").joinpath("tables", f"{sha256}.tables").is_file()


def find_tables(sha256: str, extra: Iterable[AnyTables] = (), *, beside: Iterable[Path] = ()) -> Tables:
    """Return the tables of this name, from ``extra``, the package, $STOCHCL_MODELS or the folders ``beside``."""
    for known in extra:
        if isinstance(known, Tables):
            if known.sha256 == sha256:
                return known
        elif (found := _read(Path(known), sha256)) is not None:
            return found
    packaged = resources.files("stochcl").joinpath("tables", f"{sha256}.tables")
    if packaged.is_file():
        where = f"stochcl/tables/{sha256}.tables"
        if (found := _parse(packaged.read_bytes(), sha256, where)) is None:
            raise FormatError(f"{where}: this decoder is damaged; install stochcl again")
        return found
    named = [Path(folder) for folder in os.environ.get("STOCHCL_MODELS", "").split(os.pathsep) if folder]
    for folder in (*named, *beside):
        if (found := _read(Path(folder, f"{sha256}.tables"), sha256)) is not None:
            return found
    raise ModelMismatch(
        f"the decoder {sha256[:16]}... is neither in the archive nor in this version of stochcl; give the "
        f"model with -m, or put {sha256}.tables beside the archive or into a folder named in $STOCHCL_MODELS"
    )


def _read(path: Path, sha256: str) -> Tables | None:
    """Return the tables in a file, or None if they have another name."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_TABLES else b""
    except OSError:
        return None
    refuse_pointer(path, data, "a decoder", FormatError)
    return _parse(data, sha256, escape_name(path))


def _parse(data: bytes, sha256: str, where: str) -> Tables | None:
    """Return the tables in these bytes, or None if they have another name."""
    try:
        tables = Tables.from_bytes(data)
    except FormatError as exc:
        if hashlib.sha256(data).hexdigest() == sha256:
            raise type(exc)(f"{where}: {exc}") from exc
        return None
    return tables if tables.sha256 == sha256 else None
