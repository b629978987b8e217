"""The header of an archive: what it holds and what made it, as canonical JSON."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from stochcl.codes import MAX_ALPHABET, bits_per_symbol
from stochcl.entropy.independent import MAX_DECISIONS
from stochcl.errors import BadMagic, FormatError, LimitExceeded, Truncated, UnsupportedVersion
from stochcl.files import is_lfs_pointer
from stochcl.framing import (
    MAGIC,
    MAX_HEADER,
    MAX_INPUT,
    MAX_NESTING,
    PROLOGUE,
    VERSION,
    VERSIONS,
    check_crc,
    check_limit,
    crc,
    inflate_any,
)

if TYPE_CHECKING:
    from stochcl.compress.bytes import ByteReader


DICTIONARY = (
    b'"bf16""fp16""pad""stretch""selection":[0,1,2,3,4,5,6,7,8,9,"source_kind":"benchmark""stream""matrix""array"'
    b'"tar""zip""mixed"{"alphabet":16,"feature_dim":512,"input_bytes":150528,"latents":64,"model":"embeddings",'
    b'"model_latents":512,"precision":"fp32","preprocess":{},"source_kind":"matrix"}'
    b'{"alphabet":2,"feature_dim":128,"input_bytes":49152,"latents":256,"model":"general","model_latents":256,'
    b'"precision":"fp32","preprocess":{"fit":"crop","size":128},"source_kind":"folder"}'
)
"""What headers are deflated with from version 3 on: most of them repeat most of it. It is part of the format."""

_HASHES = ("model_sha256", "tables_sha256")
_DEFLATED = 3  # the first version whose header is deflated, behind these hashes
_HASH = 32


@dataclass(frozen=True)
class Header:
    """What is true of a whole archive.

    Parameters
    ----------
    model : str
        What the encoder was called; for people, the hash decides.
    model_sha256 : str
        The encoder's hash, in hex.
    model_latents : int
        The encoder's full width.
    latents : int
        D, the width of these codes: a prefix of the encoder's.
    alphabet : int
        K, the number of values a latent takes.
    precision : str
        Of the encoder's arithmetic: fp32, bf16...
    tables_sha256 : str
        The name of the decoding tables, in hex.
    feature_dim : int
        Width of the features that the codes stand for; 0 where there are none.
    input_bytes : int
        Bytes of one raw input: pixels at the encoder's size, or a row of an embedding matrix.
    source_kind : str
        What was compressed: folder, zip, tar, array, matrix...
    preprocess : dict
        How images were prepared, plain JSON: size, fit...
    runtime : str
        What computed the network: onnx, torch; of vectors numpy. Empty where nothing says so.
    selection : tuple of int, optional
        Which of the encoder's latents these are, ascending, where they are not its first ones.
    version : int
        Of the format. It stands in the prologue.
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
    version: int = field(default=VERSION, compare=False)

    @property
    def decisions_per_row(self) -> int:
        """Bits of a row before it is coded."""
        return self.latents * bits_per_symbol(self.alphabet)

    def to_bytes(self) -> bytes:
        """Return the file's beginning: magic, version, length, checksum, and the header as canonical JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        del values["version"]
        if self.selection is None:
            del values["selection"]
        if not self.runtime:
            del values["runtime"]
        hashes = b""
        if self.version >= _DEFLATED:
            hashes = b"".join(bytes.fromhex(values.pop(name)) for name in _HASHES)
        _check_nesting(values)
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
        check_limit(len(text), MAX_HEADER - len(hashes), "the size of the header")
        if hashes:
            deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=DICTIONARY)
            text = hashes + deflater.compress(text) + deflater.flush()
        head = PROLOGUE.pack(MAGIC, self.version, 0, len(text), 0)[:-4]
        return head + crc(head, text).to_bytes(4, "little") + text

    @classmethod
    def size_of(cls, prologue: bytes) -> int:
        """Return how many bytes of header follow a prologue."""
        if is_lfs_pointer(prologue):
            raise FormatError("this is a Git LFS pointer in place of an archive of codes: run git lfs pull")
        if not prologue.startswith(MAGIC[: len(prologue)]) or not prologue:
            msg = (
                f"this is not an archive of codes: it begins with {prologue[:8].hex(' ') or 'nothing'}, not with "
                f"{MAGIC.hex(' ')}"
            )
            raise BadMagic(msg)
        if len(prologue) < PROLOGUE.size:
            raise Truncated(f"the file has {len(prologue)} bytes, and an archive begins with {PROLOGUE.size}")
        _, version, reserved, size, _ = PROLOGUE.unpack(prologue)
        if version not in VERSIONS:
            advice = "update stochcl" if version else "it is from before version 1: compress again"
            known = f"1 to {VERSION}"
            msg = f"this archive has version {version} of the format, and this program reads {known}; {advice}"
            raise UnsupportedVersion(msg)
        if reserved:
            raise FormatError(f"reserved bits of the prologue are {reserved:#06x}, not 0")
        return check_limit(size, MAX_HEADER, "the size of the header")

    @classmethod
    def from_bytes(cls, prologue: bytes, text: bytes) -> Header:
        """Read a header whose prologue has passed :meth:`size_of`."""
        check_crc(int.from_bytes(prologue[-4:], "little"), "the header", prologue[:-4], text)
        version = PROLOGUE.unpack(prologue)[1]
        hashes = {}
        if version >= _DEFLATED:
            hashes = {name: text[i * _HASH : (i + 1) * _HASH].hex() for i, name in enumerate(_HASHES)}
            text = inflate_any(text[len(_HASHES) * _HASH :], MAX_HEADER, "the header", DICTIONARY)
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
        kinds = {"str": str, "int": int, "dict[str, Any]": dict}
        values |= hashes
        known: dict[str, Any] = {"version": version}
        for f in fields(cls):  # names that are not known are a later version's remarks
            if f.name in known:
                continue
            value = values.get(f.name, "" if f.name == "runtime" else None)  # from before there was one
            if f.name == "selection":
                known[f.name] = _selection(value) if f.name in values else None
                continue
            if not isinstance(value, kinds[str(f.type)]) or isinstance(value, bool):
                raise FormatError(f"the header's {f.name} is {value!r:.60}, not of type {f.type}")
            known[f.name] = value
        header = cls(**known)
        header.check()
        return header

    def check(self) -> None:
        """Raise FormatError where numbers make no sense."""
        if not 2 <= self.alphabet <= MAX_ALPHABET or not 1 <= self.latents <= self.model_latents:
            msg = (
                f"{self.latents} of {self.model_latents} latents with {self.alphabet} values make no sense in "
                "the header"
            )
            raise FormatError(msg)
        check_limit(self.model_latents * bits_per_symbol(self.alphabet), MAX_DECISIONS, "the width of a row")
        for name in _HASHES:
            value = getattr(self, name)
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise FormatError(f"the header's {name} is not a SHA-256 in hex")
        if self.feature_dim < 0 or self.input_bytes < 0:
            raise FormatError("a size in the header is negative")
        if self.selection is not None:
            chosen = list(self.selection)
            if (
                len(chosen) != self.latents
                or chosen != sorted(set(chosen))
                or not 0 <= chosen[0] <= chosen[-1] < (self.model_latents)
            ):
                raise FormatError(f"the header's selection is not {self.latents} latents of the model, ascending")
        check_limit(max(self.feature_dim, self.input_bytes), MAX_INPUT, "a size in the header")


def read_header(reader: ByteReader) -> tuple[Header, int]:
    """Read the header of an archive; return it and the bytes that it takes with its prologue."""
    prologue = reader.read(0, min(PROLOGUE.size, reader.size))
    size = Header.size_of(prologue)
    return Header.from_bytes(prologue, reader.read(PROLOGUE.size, size)), PROLOGUE.size + size


def _selection(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or any(not isinstance(i, int) or isinstance(i, bool) for i in value):
        raise FormatError("the header's selection is not a list of integers")
    return tuple(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs; what occurs twice could be read in two ways."""
    values = dict(pairs)
    if len(values) != len(pairs):
        msg = "a key occurs twice"
        raise ValueError(msg)
    return values


def _number(text: str) -> float:
    """Return a finite number; what is larger than a float would be read as infinite, and could not be written."""
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text[:20]} is not a number that is finite"
        raise ValueError(msg)
    return value


def _integer(text: str) -> int:
    value = int(text[:21])
    if len(text) > 21 or not -(1 << 63) <= value < 1 << 64:
        msg = f"{text[:20]}... is more than 64 bits"
        raise ValueError(msg)
    return value


def _check_nesting(value: Any) -> None:
    """Raise LimitExceeded where lists and objects stand in each other too deep: whoever writes them anew recurs."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        nested = [part for part in level if isinstance(part, dict | list)]
        if not nested:
            return
        level = [part for parts in nested for part in (parts.values() if isinstance(parts, dict) else parts)]
    raise LimitExceeded(f"the header nests lists and objects more than {MAX_NESTING} deep")
