"""A reader that follows docs/FORMAT.md with nothing but the standard library, and is in no hurry."""

import hashlib
import json
import struct
import zlib

from tests.compress.pure_ans import decode_rows, u32


def check(truth, what):
    if not truth:
        raise AssertionError(what)


class Reader:
    """Everything that an archive holds, read at once.

    Attributes: header (dict), ladder, ones (of the tables), tables (bytes, or None if they are not embedded), rows,
    source_bytes, skipped, and for each row: symbols, names, labels, uncertainty (the last three None if absent).
    """

    def __init__(self, data: bytes, tables: bytes | None = None):
        self.data = data
        self.header = self._header()
        self.bits = (self.header["alphabet"] - 1).bit_length()
        self.latents = self.header["latents"]
        entries = self._index()
        self.tables = None
        if self.tables_at[1]:
            self.tables = tables = self._chunk(*self.tables_at, b"TABL")
        check(hashlib.sha256(tables).hexdigest() == self.header["tables_sha256"], "other tables")
        self._tables(tables)
        self.symbols, self.names, self.labels, self.uncertainty = [], [], [], []
        for offset, size, head in entries:
            self._segment(self._chunk(offset, size, b"SEGM"), head)
        self.names, self.labels, self.uncertainty = self.names or None, self.labels or None, self.uncertainty or None
        check(len(self.symbols) == self.rows, "rows")

    def _header(self):
        magic, version, reserved, size, crc = struct.unpack_from("<8sHHII", self.data)
        check(magic == b"\x89SCL\r\n\x1a\n" and version == 0 and reserved == 0, "prologue")
        text = self.data[20 : 20 + size]
        check(zlib.crc32(self.data[:16] + text) == crc, "the header's crc")
        self.position = 20 + size
        return json.loads(text)

    def _index(self):
        start, size, crc, pad, magic = struct.unpack("<QQI4s8s", self.data[-32:])
        check(magic == b"SCL\x89END\n" and pad == bytes(4) and start + size == len(self.data) - 32, "trailer")
        check(zlib.crc32(self.data[start : start + size]) == crc, "the index's crc")
        index = self._chunk(start, size, b"INDX")
        self.rows, self.source_bytes, *self.tables_at, segments, skipped = struct.unpack_from("<QQQQII", index)
        at = 40 + skipped
        self.skipped = json.loads(zlib.decompress(index[40:at])) if skipped else []
        position = self.position + self.tables_at[1]
        check(self.tables_at[0] == (self.position if self.tables_at[1] else 0), "offset of the tables")
        entries = []
        for _ in range(segments):
            offset, length, head = struct.unpack_from("<QQI", index, at)
            check(offset == position, "a gap")
            entries.append((offset, length, index[at + 20 : at + 20 + head]))
            at += 20 + head
            position += length
        check(at == len(index) and position == start, "the end of the index")
        return entries

    def _chunk(self, offset, size, expected):
        kind, length = struct.unpack_from("<4sQ", self.data, offset)
        check(kind == expected and length == size - 12, "chunk")
        return self.data[offset + 12 : offset + size]

    def _tables(self, data):
        magic, version, sections, latents, alphabet, rungs = struct.unpack_from("<8sHHIII", data)
        check(magic == b"\x89SCT\r\n\x1a\n" and version == 0, "magic of the tables")
        check((latents, alphabet) == (self.header["model_latents"], self.header["alphabet"]), "width of the tables")
        at = 24 + 4 * rungs
        self.ladder = list(u32(data[24:at]))
        check(zlib.crc32(data[:at]) == struct.unpack_from("<I", data, at)[0], "the tables' crc")
        at += 4
        content = {}
        for _ in range(sections):
            kind, size, crc = struct.unpack_from("<16sII", data, at)
            content[kind.rstrip(b"\0")] = data[at + 24 : at + 24 + size]
            check(zlib.crc32(data[at + 24 : at + 24 + size]) == crc, "a section's crc")
            at += 24 + size
        check(at == len(data), "the end of the tables")
        self.ones = self._independent(content[b"independent"], latents)
        self._self_test(content[b"self-test"])

    def _independent(self, data, latents):
        check(struct.unpack_from("<II", data) == (latents, self.header["alphabet"]), "width of a model")
        nodes = (1 << self.bits) - 1
        numerators = struct.unpack(f"<{latents * nodes}H", data[8:])
        return [numerators[j * nodes : (j + 1) * nodes] for j in range(latents)]

    def _self_test(self, data):
        (count,) = struct.unpack_from("<I", data)
        symbols, spent = decode_rows(u32(data[4 : 4 + 4 * count]), 8, self.ones, self.bits)
        check(spent, "the self-test's stream")
        for i, row in enumerate(symbols):
            for j, symbol in enumerate(row):
                product = (1000003 * i + 40503 * j + 12345) * 2654435761 % 2**64
                check(symbol == (product >> 15) % self.header["alphabet"], "the self-test")

    def _segment(self, chunk, head):
        check(chunk[: len(head)] == head, "a segment's head")
        rows, per_block, blocks, own, reserved, *parts = struct.unpack_from("<IIIB3s8I", head)
        check(reserved == bytes(3) and blocks == -(-rows // per_block), "a segment's head")
        words, end = varints(head, 48, blocks)
        check(end == len(head), "a segment's head")
        at, content = len(head), []
        for size, crc in zip(parts[::2], parts[1::2], strict=True):
            content.append(chunk[at : at + size])
            check(zlib.crc32(content[-1]) == crc, "a part's crc")
            at += size
        table, names, labels, uncertainty = content
        check(bool(table) == own, "a segment's table")
        ones = self._independent(zlib.decompress(table), self.latents) if own else self.ones[: self.latents]
        self.names += texts(names, rows) if names else []
        self.labels += texts(labels, rows) if labels else []
        self.uncertainty += struct.unpack(f"<{rows}e", uncertainty) if uncertainty else []
        for block, count in enumerate(words):
            here = min(per_block, rows - block * per_block)
            at = self._block(chunk, at, here, count, ones)
        check(at == len(chunk), "the end of a segment")

    def _block(self, chunk, at, rows, words, ones):
        fields = struct.unpack_from("<IIII", chunk, at)
        payload = chunk[at + 16 : at + 16 + 4 * words]
        check(fields[:3] == (rows, words, zlib.crc32(payload)), "a block")
        symbols, spent = decode_rows(u32(payload), rows, ones, self.bits)
        check(spent, "the end of a stream")
        check(zlib.crc32(b"".join(self._packed(row) for row in symbols)) == fields[3], "the rows' crc")
        self.symbols += symbols
        return at + 16 + 4 * words

    def _packed(self, row):
        decisions = "".join(f"{symbol:0{self.bits}b}" for symbol in row)
        width = -(-len(decisions) // 8)
        return int(decisions.ljust(8 * width, "0"), 2).to_bytes(width, "big")


def varints(data, at, count):
    values = []
    for _ in range(count):
        value = shift = 0
        while data[at] & 0x80:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        values.append(value | data[at] << shift)
        at += 1
    return values, at


def texts(data, count):
    (length,), at = varints(data, 0, 1)
    raw = zlib.decompress(data[at:])
    check(len(raw) == length, "the length of texts")
    shared, at = varints(raw, 0, count)
    added, at = varints(raw, at, count)
    found, before = [], b""
    for same, more in zip(shared, added, strict=True):
        before = before[:same] + raw[at : at + more]
        at += more
        found.append(before.decode("utf-8", "surrogateescape"))
    check(at == len(raw), "the end of texts")
    return found
