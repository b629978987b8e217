"""What somebody does to files who knows the format: everything that follows from a change is made to fit."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

from stochcl.compress import Archive
from stochcl.compress.header import DICTIONARY
from stochcl.entropy.tables import Tables
from stochcl.errors import FormatError
from stochcl.framing import (
    BLOCK,
    CHUNK,
    END_MAGIC,
    ENTRY,
    FITTED,
    HEAD,
    INDEX,
    MAGIC,
    PROLOGUE,
    RETIRED,
    SEGMENT,
    TRAILER,
    VERSION,
    unpack_varints,
)

if TYPE_CHECKING:
    from tests.fuzz.bases import Base

_EDGES = (0, 1, 2, 3, 7, 8, 255, 256, 4095, 4096, 65535, 65536, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31)
_WIDE = (*_EDGES, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class Segment:
    head: tuple[int, ...]  # rows, rows a block, model, number
    crcs: tuple[int, ...]
    parts: tuple[bytes, ...]
    blocks: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class Parsed:
    """An archive in pieces."""

    header: bytes
    tables: bytes
    chunks: tuple[tuple[bytes, Any], ...]  # kind, and a model's bytes, a Segment, or a retired part's bytes
    rows: int
    source_bytes: int
    skipped: bytes
    version: int = VERSION


@cache
def parse(data: bytes, outside: tuple) -> Parsed:
    """Take a sound archive to pieces."""
    archive = Archive(io.BytesIO(data), tables=outside)
    index, places = archive._index, []
    for offset, size in index.fitted:
        places.append((offset, b"FITT", zlib.decompress(data[offset + CHUNK.size + 4 : offset + size])))
    for offset, size, _ in index.retired:
        places.append((offset, b"INDX", data[offset : offset + size]))
    for offset, head in index.segments:
        at, parts, blocks = offset + head.parts_at, [], []
        for part in head.parts:
            parts.append(data[at : at + part.size])
            at += part.size
        for start, words in zip(head.block_offsets.tolist(), head.words, strict=True):
            begin = offset + start + BLOCK.size
            blocks.append((BLOCK.unpack_from(data, offset + start)[0], data[begin : begin + 4 * words]))
        fixed = head.rows, head.rows_per_block, head.model, head.number
        places.append((offset, b"SEGM", Segment(fixed, head.crcs, tuple(parts), tuple(blocks))))
    at, size = index.tables
    return Parsed(
        data[PROLOGUE.size : archive._header_size],
        data[at + CHUNK.size : at + size] if size else b"",
        tuple((kind, value) for _, kind, value in sorted(places, key=lambda place: place[0])),
        index.rows,
        index.source_bytes,
        zlib.decompress(index.skipped) if index.skipped else b"",
        archive.header.version,
    )


class Forger:
    """Puts an archive together again; every number and every string of bytes passes through here on its way.

    The first run, with no changes, counts them, so that the places to be changed can be drawn.
    """

    def __init__(self, rng: Random, changes: frozenset[int]) -> None:
        self.rng, self.changes = rng, changes
        self.places: dict[str, list[int]] = {}
        self._count = 0
        self.done: list[str] = []

    def __call__(self, what: str, value: Any, limit: int = 0) -> Any:
        """Return a value, or what is to stand in its place; a number is less than ``limit``."""
        place = self._count
        self._count += 1
        if place not in self.changes:
            self.places.setdefault(what, []).append(place)
            return value
        if isinstance(value, int):
            changed: Any = other_number(self.rng, value) % limit
        elif what in ("header", "skipped") and self.rng.random() < 0.3:
            changed = _raw_json(self.rng, value)
        else:
            changed = other_bytes(self.rng, value)
        self.done.append(f"{what}: {value!r:.40} -> {changed!r:.40}")
        return changed

    # Pieces

    def archive(self, p: Parsed) -> bytes:
        tables = self.tables(p.tables) if p.tables else b""
        if tables != p.tables and self.rng.random() < 0.7:
            tables = _with_self_test(tables)
        self.version = p.version
        text = self._header(p.header, sha256(p.tables).digest(), sha256(tables).digest())
        size = self("header size", len(text), 1 << 32)
        start = PROLOGUE.pack(MAGIC, self("version", p.version, 1 << 16), self("reserved", 0, 1 << 16), size, 0)[:-4]
        out = bytearray(start + struct.pack("<I", zlib.crc32(text, zlib.crc32(start))) + text)
        at = 0, 0
        if p.tables:
            at = len(out), CHUNK.size + len(tables)
            out += self._chunk(b"TABL", tables)
        fitted, retired, entries = [], [], []
        chunks = self._order(list(p.chunks))
        for kind, value in chunks:
            begin = len(out)
            if kind == b"SEGM":
                head, chunk = self.segment(value)
                out += chunk
                entries.append((begin, len(chunk), head))
            elif kind == b"FITT":
                model = self.deflated("fitted model", self.model(value))
                out += self._chunk(kind, struct.pack("<I", zlib.crc32(model)) + model)
                fitted.append((begin, len(out) - begin))
            else:
                part = self("retired part", value)
                out += part
                retired.append((begin, len(part), zlib.crc32(part)))
        crc = int.from_bytes(out[PROLOGUE.size - 4 : PROLOGUE.size], "little")
        header_crc = self("header's crc in the trailer", crc, 1 << 32)
        return bytes(out) + self.index(p, at, fitted, retired, entries, len(out), header_crc)

    def _header(self, text: bytes, before: bytes, now: bytes) -> bytes:
        """Return a header that names other tables."""
        if self.version < 3:
            return self._json("header", text.replace(before.hex().encode(), now.hex().encode()))
        hashes, text = text[:64], zlib.decompressobj(-15, DICTIONARY).decompress(text[64:])
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        deflated = deflater.compress(self._json("header", text)) + deflater.flush()
        return self("hashes", hashes.replace(before, now)) + self("deflated header", deflated)

    def _numbers(self, layout: struct.Struct, *values: int) -> bytes:
        return b"".join(map(_varint, values)) if self.version >= 3 else layout.pack(*values)

    def _order(self, chunks: list) -> list:
        if self.rng.random() < 0.03 and chunks:
            how, i, j = self.rng.randrange(3), self.rng.randrange(len(chunks)), self.rng.randrange(len(chunks))
            self.done.append(f"chunks {i}, {j} moved")
            if how == 0:
                chunks[i], chunks[j] = chunks[j], chunks[i]
            elif how == 1:
                chunks.insert(j, chunks[i])
            else:
                del chunks[i]
        return chunks

    def _chunk(self, kind: bytes, payload: bytes) -> bytes:
        return CHUNK.pack(self("kind", kind)[:4], self("chunk size", len(payload), 1 << 64)) + payload

    def _json(self, what: str, text: bytes) -> bytes:
        changed = self(f"{what} values", text)
        if changed != text:  # in its values, not its bytes
            value = json.loads(text)
            text = json.dumps(_other_json(self.rng, value), sort_keys=True, separators=(",", ":")).encode()
        return self(what, text)

    def deflated(self, what: str, raw: bytes) -> bytes:
        raw = self(f"{what}, inflated", raw)
        if raw and self.rng.random() < (0.001 if what == "skipped" else 0.0005):
            self.done.append(f"{what} is a bomb")
            return _bomb(
                self.rng.choice((20, 22, 23, 24, 25, 26, 28)), raw, self.rng.choice((b"\0", b'["",""],', b"\x7f"))
            )
        return self(what, zlib.compress(raw, 1))

    def model(self, raw: bytes) -> bytes:
        """An entropy model under its name."""
        name, body = raw[:16], raw[16:]
        if name.startswith(b"independent"):
            latents, alphabet = struct.unpack_from("<II", body)
            head = struct.pack("<II", self("D", latents, 1 << 32), self("K", alphabet, 1 << 32))
            return self("model's name", name) + head + self("numerators", body[8:])
        sizes = struct.unpack_from("<IIII", body)
        shape = [self(what, n, 1 << 32) for what, n in zip(("D", "K", "H", "levels"), sizes, strict=True)]
        at, parts = 16, []
        latents, alphabet, hidden, levels = sizes
        bits = (alphabet - 1).bit_length()
        lengths = (
            2 * levels, 2 * hidden, 4 * hidden, 2 * hidden, 2 * latents * bits, 4 * latents * ((1 << bits) - 1),
        )  # fmt: skip
        for length in lengths:
            parts.append(self("network's numbers", body[at : at + length]))
            at += length
        return b"".join(
            [self("model's name", name), struct.pack("<IIII", *shape), *parts, self("weights", body[at:])]
        )

    def texts(self, data: bytes, rows: int) -> bytes:
        if not data:
            return self("no texts", data)
        _, start = unpack_varints(data, 1)
        raw = zlib.decompress(data[start:])
        numbers, at = unpack_varints(raw, 2 * rows)
        numbers = [self("text's length", n, 1 << 65) for n in numbers]
        raw = b"".join(map(_varint, numbers)) + self("letters", raw[at:])
        size = self("texts' size", len(raw), 1 << 65)
        return _varint(size) + self.deflated("texts", raw)

    def labels(self, data: bytes, rows: int) -> bytes:
        if not data or self.version < 4:
            return self.texts(data, rows)
        (count,), start = unpack_varints(data, 1)
        if not count:
            return data[:start] + self.texts(data[start:], rows)
        (size,), start = unpack_varints(data, 1, start)
        texts = self.texts(data[start : start + size], count)
        numbers = self("labels' numbers", zlib.decompress(data[start + size :]))
        head = _varint(self("labels", count, 1 << 65)) + _varint(self("labels' bytes", len(texts), 1 << 65))
        return head + texts + self.deflated("labels' numbers", numbers)

    def segment(self, s: Segment) -> tuple[bytes, bytes]:
        rows, per_block, model, number = s.head
        table, names, labels, uncertainty = s.parts
        if table:
            table = self.deflated("table", self.model(zlib.decompress(table)))
        parts = [
            self("table's bytes", table), self.texts(names, rows), self.labels(labels, rows),
            self("uncertainty", uncertainty),
        ]  # fmt: skip
        blocks, words = [], []
        for count, payload in s.blocks:
            stream = self("words", payload)
            words.append(self("a block's words", len(stream) // 4, 1 << 65))
            head = self("a block's rows", count, 1 << 32), self("words in a block", words[-1] % (1 << 32), 1 << 32)
            blocks.append(BLOCK.pack(*head, zlib.crc32(stream)) + stream)
        sizes = []
        for part in parts:
            sizes += [self("a part's bytes", len(part), 1 << 32), zlib.crc32(part) if part else 0]
        fixed = [
            self(what, n, 1 << 32)
            for what, n in (("rows", rows), ("rows a block", per_block), ("blocks", len(blocks)))
        ]
        fixed += [self("entropy model", model, 256), self("number", number, 1 << 16)]
        crcs = struct.pack(f"<{len(s.crcs)}I", *s.crcs)
        head = self("head", self._numbers(SEGMENT, *fixed, *sizes) + b"".join(map(_varint, words)) + crcs)
        payload = HEAD.pack(self("head's bytes", len(head), 1 << 32), zlib.crc32(head)) + head
        return head, self._chunk(b"SEGM", payload + b"".join(parts) + b"".join(blocks))

    def index(
        self,
        p: Parsed,
        tables: tuple[int, int],
        fitted: list,
        retired: list,
        entries: list,
        start: int,
        header_crc: int,
    ) -> bytes:
        skipped = self.deflated("skipped", self._json("skipped", p.skipped)) if p.skipped else b""
        skipped = self("list of skipped", skipped)
        big, small = 1 << 64, 1 << 32
        payload = self._numbers(
            INDEX, self("rows of all", p.rows, big), self("source bytes", p.source_bytes, big),
            self("tables' offset", tables[0], big), self("tables' bytes", tables[1], big),
            self("segments", len(entries), small), self("bytes of skipped", len(skipped), small),
            self("fitted models", len(fitted), small), self("retired parts", len(retired), small),
        ) + skipped  # fmt: skip
        for offset, size in fitted:
            payload += self._numbers(FITTED, self("model's offset", offset, big), self("model's bytes", size, big))
        for offset, size, crc in retired:
            fixed = self("part's offset", offset, big), self("part's bytes", size, big)
            payload += self._numbers(RETIRED, *fixed, crc)
        for offset, size, head in entries:
            fixed = self("offset", offset, big), self("bytes", size, big), self("head's bytes", len(head), small)
            short = self.version >= 3 and len(entries) == 1
            payload += self._numbers(ENTRY, *fixed) + (struct.pack("<I", zlib.crc32(head)) if short else head)
        chunk = self._chunk(b"INDX", self("index", payload))
        fixed = self("index's offset", start, big), self("index's bytes", len(chunk), big)
        return chunk + TRAILER.pack(*fixed, zlib.crc32(chunk), header_crc, END_MAGIC)

    def tables(self, data: bytes) -> bytes:
        """Tables with their checksums; their self-test is another matter."""
        magic, version, count, latents, alphabet, rungs = struct.unpack_from("<8sHHIII", data)
        head = struct.pack(
            "<8sHHIII", magic, self("tables' version", version, 1 << 16), self("sections", count, 1 << 16),
            self("tables' D", latents, 1 << 32), self("tables' K", alphabet, 1 << 32), self("rungs", rungs, 1 << 32),
        )  # fmt: skip
        head += self("ladder", data[24 : 24 + 4 * rungs])
        out, at = head + struct.pack("<I", zlib.crc32(head)), 28 + 4 * rungs
        for _ in range(count):
            kind, size = data[at : at + 16], int.from_bytes(data[at + 16 : at + 20], "little")
            content = data[at + 24 : at + 24 + size]
            if kind.rstrip(b"\0") in (b"independent", b"autoregressive"):
                content = self.model(kind + content)[16:]
            elif kind.startswith(b"mlp"):
                content = self("decoder's shape", content[:8]) + self("decoder", content[8:])
            elif kind.startswith(b"codebooks"):
                content = self("codebooks' shape", content[:12]) + self("codebooks", content[12:])
            else:
                content = self("self-test", content)
            out += self("section's name", kind)[:16].ljust(16, b"\0")
            out += struct.pack("<II", self("section's bytes", len(content), 1 << 32), zlib.crc32(content)) + content
            at += 24 + size
        return out


def _with_self_test(data: bytes) -> bytes:
    """Make the self-test fit to forged tables, if they are tables at all."""
    check = Tables._check
    try:
        Tables._check = lambda self, stored: None  # type: ignore[method-assign]
        tables = Tables.from_bytes(data)
        del tables.__dict__["data"]
        return tables.data
    except FormatError:
        return data
    finally:
        Tables._check = check  # type: ignore[method-assign]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bomb(power: int, raw: bytes, filling: bytes) -> bytes:
    """Return deflated bytes, a thousandth of what they inflate to; pairs stand in a list as they should."""
    packer = zlib.compressobj(1)
    pairs = filling.startswith(b"[")
    out = [packer.compress(b"[" if pairs else raw[:64])]
    piece = filling * ((1 << 20) // len(filling))
    out += [packer.compress(piece) for _ in range((1 << power) >> 20)]
    return b"".join([*out, packer.compress(filling[:-1] + b"]" if pairs else b""), packer.flush()])


# Changes


def other_number(rng: Random, value: int) -> int:
    """Another number: near this one, or one of those where things end."""
    how = rng.randrange(6)
    if how < 2:
        return value + rng.choice((-2, -1, 1, 2))
    if how == 2:
        return rng.choice(_WIDE)
    if how == 3:
        return value ^ 1 << rng.randrange(65)
    if how == 4:
        return value * rng.choice((2, 3, 256, 65536)) + rng.randrange(2)
    return rng.getrandbits(rng.choice((4, 8, 12, 16, 20, 24, 32, 40, 64)))


def other_bytes(rng: Random, value: bytes) -> bytes:
    """Other bytes: as many, or more, or fewer."""
    if not value:
        return rng.randbytes(rng.choice((1, 2, 16)))
    how, at = rng.randrange(8), rng.randrange(len(value))
    if how < 3:
        changed = bytearray(value)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        return bytes(changed)
    if how == 3:
        return rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\1")) * len(value)
    if how == 4:
        return rng.randbytes(len(value))
    if how == 5:
        return value[:at]
    if how == 6:
        return value[:at] + rng.randbytes(rng.choice((1, 2, 4, 8))) + value[at:]
    return value[:at] + value[at // 2 :]


_STRANGE = (
    None, True, False, 0, 1, -1, 2, 5, 300, 4096, 4097, 1 << 31, 1 << 63, 1 << 64, 10**300, 1.5, -0.0, 1e308, "", "x",
    "\udcff", "\ud800\udfff", "é" * 100, [], {}, [[]], [0, 0], [1, 0], [-1], {"a": {}},
)  # fmt: skip


def _other_json(rng: Random, value: Any) -> Any:
    """Change something within plain JSON."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        changed = value.copy()
        if rng.random() < 0.1:
            del changed[key]
        else:
            changed[key] = _other_json(rng, value[key])
        return changed
    if isinstance(value, int) and rng.random() < 0.6:
        return other_number(rng, value)
    if rng.random() < 0.05:
        deep: Any = []
        for _ in range(rng.choice((10, 500))):
            deep = [deep]
        return deep
    return rng.choice(_STRANGE)


def _raw_json(rng: Random, value: bytes) -> bytes:
    """Replace text of JSON by what json.dumps would not write."""
    how = rng.randrange(6)
    if how == 0:
        return b"[" * rng.choice((100, 100_000))
    if how == 1:
        return value.replace(b":", b":" + b"[" * 50_000, 1)
    if how == 2:
        return value.replace(b",", b"," + value[1 : value.find(b",") + 1], 1)
    if how == 3:
        return value.replace(b"0", rng.choice((b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 5000)), 1)
    return other_bytes(rng, value)


@cache
def _places(base: Base) -> dict[str, list[int]]:
    """Return all places that can be changed, by what stands there."""
    forger = Forger(Random(0), frozenset())
    forger.rng.random = lambda: 1.0  # type: ignore[method-assign]
    _run(forger, base)
    return forger.places


def _run(forger: Forger, base: Base) -> bytes:
    if not base.is_tables:
        return forger.archive(parse(base.data, base.outside))
    data = forger.tables(base.data)
    return _with_self_test(data) if forger.rng.random() < 0.5 else data


def forge(rng: Random, base: Base) -> tuple[str, bytes]:
    """Return what was changed, and the forged file."""
    places = _places(base)
    kinds = rng.choices(list(places), k=rng.choice((1, 1, 1, 2, 3)))
    forger = Forger(rng, frozenset(rng.choice(places[kind]) for kind in kinds))
    data = _run(forger, base)
    return "; ".join(forger.done), data
