"""The header of an archive: what it holds and what made it, as canonical JSON."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from stochcl import framing
from stochcl.codes import MAX_ALPHABET, Codes, bits_per_symbol
from stochcl.entropy.independent import MAX_DECISIONS
from stochcl.errors import BadMagic, FormatError, LimitExceeded, ModelMismatch, Truncated, UnsupportedVersion
from stochcl.files import is_lfs_pointer
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.compress.bytes import ByteReader


DICTIONARY = (
    b'"bf16""fp16""pad""stretch""selection":[0,1,2,3,4,5,6,7,8,9,"source_kind":"benchmark""stream""matrix""array"'
    b'"tar""zip""mixed"{"alphabet":16,"feature_dim":512,"input_bytes":150528,"latents":64,"model":"embeddings",'
    b'"model_latents":512,"precision":"fp32","preprocess":{},"source_kind":"matrix"}'
    b'{"alphabet":2,"feature_dim":128,"input_bytes":49152,"latents":256,"model":"general","model_latents":256,'
    b'"precision":"fp32","preprocess":{"fit":"crop","size":128},"source_kind":"folder"}'
)
"""Preset dictionary for deflating headers from version 3 on. It is part of the format."""

_KINDS: dict[str, type] = {
    **dict.fromkeys(("model", "model_sha256", "precision", "tables_sha256", "source_kind", "runtime"), str),
    **dict.fromkeys(("model_latents", "latents", "alphabet", "feature_dim", "input_bytes"), int),
    "preprocess": dict,
    "selection": list,
}
_REMARKS = ("ids", "embedder")  # informative fields, ignored if they are not of their type
_OPTIONAL = ("runtime", "selection", "ids", "embedder")
_HASHES = ("model_sha256", "tables_sha256")
_DEFLATED = 3  # first version with a deflated header after the hashes
_HASH = 32


@dataclass(frozen=True)
class Header:
    """Facts about a whole archive.

    Parameters
    ----------
    model : str
        The encoder's name, for people; the hash is what identifies it.
    model_sha256 : str
        The encoder's hash, in hex.
    model_latents : int
        The encoder's number of latents.
    latents : int
        D, the number of latents of these codes.
    alphabet : int
        K, the number of values per latent.
    precision : str
        Precision of the encoder's arithmetic: fp32, bf16...
    tables_sha256 : str
        The hash that names the decoding tables, in hex.
    feature_dim : int
        Width of the features that the codes encode; 0 if there are none.
    input_bytes : int
        Bytes of one raw input: pixels at the encoder's size, or a row of an embedding matrix.
    source_kind : str
        Kind of source: folder, zip, tar, array, matrix...
    preprocess : dict
        Preprocessing of images as plain JSON: size, fit...
    runtime : str
        Runtime of the encoder: onnx, torch; numpy for vectors. Empty if unknown.
    selection : tuple of int, optional
        The encoder's latents that are kept, ascending, if they are not the first ones.
    ids : dict, optional
        The column of a table that the names came from: ``column``, and its Arrow ``type``.
    embedder : dict, optional
        The embedder of the vectors, see :class:`~stochcl.compress.header.Embedder`.
    version : int
        Version of the format; stored in the prologue.
    """

    model: str
    model_sha256: str
    model_latents: int
    latents: int
    alphabet: int
    precision: str
    tables_sha256: str
    feature_dim: int = 0
    input_bytes: int = 0
    source_kind: str = ""
    preprocess: dict[str, Any] = field(default_factory=dict)
    runtime: str = ""
    selection: tuple[int, ...] | None = None
    ids: dict[str, Any] | None = None
    embedder: dict[str, Any] | None = None
    version: int = field(default=framing.VERSION, compare=False)

    def codes(
        self, packed: NDArray[np.uint8], names: Sequence[str] | None = None, labels: Sequence[str] | None = None,
        uncertainty: NDArray[np.float32] | None = None,
    ) -> Codes:  # fmt: skip
        """Return packed rows of this archive as codes."""
        return Codes(packed, self.latents, self.alphabet, names=names, labels=labels, uncertainty=uncertainty)

    @property
    def size(self) -> int | None:
        """Side of the preprocessed images in pixels; None for vectors."""
        size = self.preprocess.get("size")
        return size if isinstance(size, int) else None

    @property
    def decisions_per_row(self) -> int:
        """Bits per row before coding."""
        return self.latents * bits_per_symbol(self.alphabet)

    def to_bytes(self) -> bytes:
        """Return the start of the file: magic, version, length, checksum, and the header as canonical JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        del values["version"]
        for name in _OPTIONAL:
            if values[name] is None or values[name] == "":
                del values[name]
        hashes = b""
        if self.version >= _DEFLATED:
            hashes = b"".join(bytes.fromhex(values.pop(name)) for name in _HASHES)
        _check_nesting(values)
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
        framing.check_limit(len(text), framing.MAX_HEADER - len(hashes), "the size of the header")
        if hashes:
            deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=DICTIONARY)
            text = hashes + deflater.compress(text) + deflater.flush()
        head = framing.PROLOGUE.pack(framing.MAGIC, self.version, 0, len(text), 0)[:-4]
        return head + framing.crc(head, text).to_bytes(4, "little") + text

    @classmethod
    def size_of(cls, prologue: bytes) -> int:
        """Return the size of the header after a prologue."""
        if is_lfs_pointer(prologue):
            raise FormatError("this is a Git LFS pointer in place of an archive of codes: run git lfs pull")
        if not prologue.startswith(framing.MAGIC[: len(prologue)]) or not prologue:
            raise BadMagic(
                f"this is not an archive of codes: it begins with {prologue[:8].hex(' ') or 'nothing'}, not with "
                f"{framing.MAGIC.hex(' ')}"
            )
        if len(prologue) < framing.PROLOGUE.size:
            raise Truncated(f"the file has {len(prologue)} bytes, and an archive begins with {framing.PROLOGUE.size}")
        _, version, reserved, size, _ = framing.PROLOGUE.unpack(prologue)
        if version not in framing.VERSIONS:
            advice = "update stochcl" if version else "it is from before version 1: compress again"
            raise UnsupportedVersion(
                f"this archive has version {version} of the format, and this program reads 1 to {framing.VERSION}; "
                f"{advice}"
            )
        if reserved:
            raise FormatError(f"reserved bits of the prologue are {reserved:#06x}, not 0")
        return framing.check_limit(size, framing.MAX_HEADER, "the size of the header")

    @classmethod
    def from_bytes(cls, prologue: bytes, text: bytes) -> Header:
        """Read a header whose prologue passed :meth:`size_of`."""
        framing.check_crc(int.from_bytes(prologue[-4:], "little"), "the header", prologue[:-4], text)
        version = framing.PROLOGUE.unpack(prologue)[1]
        hashes = {}
        if version >= _DEFLATED:
            hashes = {name: text[i * _HASH : (i + 1) * _HASH].hex() for i, name in enumerate(_HASHES)}
            text = framing.inflate_any(text[len(_HASHES) * _HASH :], framing.MAX_HEADER, "the header", DICTIONARY)
        try:
            values = json.loads(
                text.decode("ascii"), object_pairs_hook=_once, parse_constant=_number, parse_float=_number,
                parse_int=_integer,
            )  # fmt: skip
        except (ValueError, RecursionError) as exc:
            raise FormatError(f"the header is not JSON as it should be ({exc})") from exc
        if not isinstance(values, dict):
            raise FormatError("the header is not a JSON object")
        _check_nesting(values)
        # Unknown names are from a later version.
        values = {f.name: values.get(f.name) for f in fields(cls) if f.name in values or f.name not in _OPTIONAL}
        values |= hashes | {"version": version}
        for name in _REMARKS:
            if not _is_remark(values.get(name)):
                values.pop(name, None)
        for name, kind in _KINDS.items():
            if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
                raise FormatError(f"the header's {name} is {values[name]!r:.60}, not of type {kind.__name__}")
        if (chosen := values.get("selection")) is not None:
            if any(not isinstance(i, int) or isinstance(i, bool) for i in chosen):
                raise FormatError("the header's selection is not a list of integers")
            values["selection"] = tuple(chosen)
        header = cls(**values)
        header.check()
        return header

    def check(self) -> None:
        """Raise FormatError if a value makes no sense."""
        if not 2 <= self.alphabet <= MAX_ALPHABET or not 1 <= self.latents <= self.model_latents:
            raise FormatError(
                f"{self.latents} of {self.model_latents} latents with {self.alphabet} values make no sense in "
                "the header"
            )
        framing.check_limit(self.model_latents * bits_per_symbol(self.alphabet), MAX_DECISIONS, "the width of a row")
        for name in _HASHES:
            value = getattr(self, name)
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise FormatError(f"the header's {name} is not a SHA-256 in hex")
        if self.feature_dim < 0 or self.input_bytes < 0:
            raise FormatError("a size in the header is negative")
        if self.selection is not None:
            chosen = list(self.selection)
            ascends = chosen == sorted(set(chosen)) and len(chosen) == self.latents
            if not ascends or not 0 <= chosen[0] <= chosen[-1] < self.model_latents:
                raise FormatError(f"the header's selection is not {self.latents} latents of the model, ascending")
        framing.check_limit(max(self.feature_dim, self.input_bytes), framing.MAX_INPUT, "a size in the header")


def read_header(reader: ByteReader) -> tuple[Header, int]:
    """Return the header of an archive, and its size with the prologue."""
    prologue = reader.read(0, min(framing.PROLOGUE.size, reader.size))
    size = Header.size_of(prologue)
    return Header.from_bytes(prologue, reader.read(framing.PROLOGUE.size, size)), framing.PROLOGUE.size + size


def _is_remark(value: Any) -> bool:
    """Return whether a value is a flat dict of texts, numbers and booleans."""
    return isinstance(value, dict) and all(isinstance(one, str | int) for one in value.values())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs; refuse duplicate keys, which parsers read differently."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _number(text: str) -> float:
    """Return a finite number; larger ones would parse as infinity, which cannot be written."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number that is finite")
    return value


def _integer(text: str) -> int:
    value = int(text[:21])
    if len(text) > 21 or not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{text[:20]}... is more than 64 bits")
    return value


def _check_nesting(value: Any) -> None:
    """Raise LimitExceeded for deep nesting, because writing a header recurses."""
    level = [value]
    for _ in range(framing.MAX_NESTING + 1):
        nested = [part for part in level if isinstance(part, dict | list)]
        if not nested:
            return
        level = [part for parts in nested for part in (parts.values() if isinstance(parts, dict) else parts)]
    raise LimitExceeded(f"the header nests lists and objects more than {framing.MAX_NESTING} deep")


EMBEDDER_KEY = "embedder"
"""Metadata key of an Arrow schema for the embedder, as ``NAME`` or ``NAME@REVISION``."""


@dataclass(frozen=True)
class Embedder:
    """The model that made vectors, as far as known.

    Parameters
    ----------
    name : str
        Name on its hub, such as ``sentence-transformers/all-MiniLM-L6-v2``.
    revision : str
        Commit, tag or version; empty if unknown.
    width : int
        Dimension of the vectors; 0 if unknown.
    normalised : bool, optional
        Whether all vectors have unit length; None if unknown.

    Examples
    --------
    >>> Embedder.parse("org/model@v2")
    Embedder(name='org/model', revision='v2', width=0, normalised=None)
    >>> Embedder("org/model", "v2").difference(Embedder("model", "v1"))
    'revision v2, not v1'
    """

    name: str
    revision: str = ""
    width: int = 0
    normalised: bool | None = None

    @classmethod
    def parse(cls, text: str) -> Embedder:
        """Read ``NAME`` or ``NAME@REVISION``."""
        name, _, revision = text.strip().partition("@")
        return cls(name, revision)

    @classmethod
    def of(cls, value: Any) -> Embedder | None:
        """Return the embedder from :meth:`to_json`; None for anything else."""
        kinds = {"name": str, "revision": str, "width": int, "normalised": bool}
        if not isinstance(value, dict) or not value.get("name"):
            return None
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        right = all(type(known[name]) is kinds[name] for name in known)
        return cls(**known) if right else None

    def to_json(self) -> dict[str, Any]:
        """Return the known fields as JSON types."""
        return {name: value for name, value in vars(self).items() if value or value is False}

    def __str__(self) -> str:
        return escape_name(f"{self.name}@{self.revision}" if self.revision else self.name)

    def difference(self, other: Embedder) -> str:
        """Describe a known difference to another embedder, empty if none; a name may lack its organisation."""
        names, revisions = (self.name, other.name), (self.revision, other.revision)
        bare = any("/" not in name for name in names)
        if len({name.rpartition("/")[2] if bare else name for name in names}) > 1:
            return f"{self}, not {other}"
        if all(revisions) and not any(a.startswith(b) for a, b in (revisions, revisions[::-1])):
            return f"revision {escape_name(self.revision)}, not {escape_name(other.revision)}"
        if self.width and other.width and self.width != other.width:
            return f"{self.width:,} numbers, not {other.width:,}"
        if None not in (self.normalised, other.normalised) and self.normalised != other.normalised:
            said = {True: "normalised", False: "not normalised"}
            return f"{said[bool(self.normalised)]}, and not {said[bool(other.normalised)]}"
        return ""


def check_embedder(shown: str, one: Embedder | None, other: Embedder | None, than: str) -> None:
    """Raise ModelMismatch if two embedders are known to differ; ``than`` names the owner of the other."""
    if one is not None and other is not None and (difference := one.difference(other)):
        raise ModelMismatch(
            f"{shown}: its vectors were made by another embedder than those of {than} ({difference}), so that they "
            "cannot be compared; embed both with one model."
        )
