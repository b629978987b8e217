"""Reads archives from docs/FORMAT.md alone, with numpy and the standard library: no constriction, nothing of stochcl.

It holds the real reader to the page, and is in no hurry: the file is in memory, and Python decodes each decision. As
the page says, a stream that decodes and ends as it should is the one that its rows code to; so there is no encoder.
"""

import json
import struct
import zlib

import numpy as np

from tests.independent_tables import Bytes, Tables, inflate, must, named_model

DICTIONARY = (
    b'"bf16""fp16""pad""stretch""selection":[0,1,2,3,4,5,6,7,8,9,"source_kind":"benchmark""stream""matrix""array"'
    b'"tar""zip""mixed"{"alphabet":16,"feature_dim":512,"input_bytes":150528,"latents":64,"model":"embeddings",'
    b'"model_latents":512,"precision":"fp32","preprocess":{},"source_kind":"matrix"}'
    b'{"alphabet":2,"feature_dim":128,"input_bytes":49152,"latents":256,"model":"general","model_latents":256,'
    b'"precision":"fp32","preprocess":{"fit":"crop","size":128},"source_kind":"folder"}'
)


def read_json(data):
    def once(pairs):
        must(len(dict(pairs)) == len(pairs), "a key twice")
        return dict(pairs)

    def whole(text):
        must(-(1 << 63) <= int(text) < 1 << 64, "a whole number of more than 64 bits")
        return int(text)

    def number(text):
        must(abs(float(text)) < float("inf"), "a number that is not finite")
        return float(text)

    hooks = {"object_pairs_hook": once, "parse_int": whole, "parse_float": number, "parse_constant": number}
    return json.loads(data.decode("ascii"), **hooks)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def skipped_pairs(data):
    pairs = read_json(inflate(data, 1 << 25)) if data else []
    must(type(pairs) is list and len(pairs) <= 1 << 20, "the list of skipped images")
    for pair in pairs:
        must(type(pair) is list and len(pair) == 2 and all(type(text) is str for text in pair), "a skipped image")
    return pairs


def texts(data, rows):
    if not data:
        return None
    size = (deflated := Bytes(data)).varint()
    source = Bytes(inflate(deflated.take(), 1 << 23))
    must(len(source.data) == size, "texts of another length")
    shared, added = ([source.varint() for _ in range(rows)] for _ in range(2))
    must(sum(shared) + sum(added) <= 1 << 24, "texts that are too long")
    found = [b""]
    for common, more in zip(shared, added, strict=True):
        must(common <= len(found[-1]), "a text that shares more than there is")
        found.append(found[-1][:common] + source.take(more))
    source.end()
    return [text.decode("utf-8", "surrogateescape") for text in found[1:]]


def labels(data, rows, version):
    if not data or version < 4:
        return texts(data, rows)
    source = Bytes(data)
    count = source.varint()
    if not count:
        return texts(source.take(), rows)
    must(count <= min(rows, 1 << 16), "more labels than rows")
    distinct = texts(source.take(source.varint()), count)
    width = next(w for w in (1, 2, 4, *range(8, 17)) if count <= 1 << w)
    packed = inflate(source.take(), 1 << 21)
    must(len(packed) == -(-width * rows // 8), "labels' numbers of another length")
    digits = "".join(f"{byte:08b}" for byte in packed)
    numbers = [int(digits[width * row : width * (row + 1)], 2) for row in range(rows)]
    must(max(numbers) < count, "a label that is not there")
    found = [distinct[number] for number in numbers]
    must(sum(len(text.encode("utf-8", "surrogateescape")) for text in found) <= 1 << 24, "labels that are too long")
    return found


def uncertainty(source, rows, version):
    if version == 1:
        must(len(source.data) == 2 * rows, "uncertainty that is not two bytes a row")
        return entropies(source.array("<f2", rows))
    exponent, least = source.number("b"), source.varint()
    must(-8 <= exponent <= 12 and least < 1 << 24, "the least uncertainty")
    steps = Bytes(inflate(source.take(), rows)).array("u1", rows)
    return entropies(((least + steps) * 2.0**exponent).astype(np.float32))


def entropies(values):
    must(((values >= 0) & (values <= 65504)).all(), "an uncertainty that is no entropy")
    return values


class Archive:
    """A whole archive: header, symbols; names, labels, uncertainty (or None); skipped, source_bytes, vectors()."""

    def __init__(self, data, tables=None):
        self.data, self.parts = data, []
        begin = self.read_header(Bytes(data))
        self.data = self.committed(begin)
        index = self.read_index(len(self.data))
        self.source_bytes, self.skipped, embedded = index["source_bytes"], index["skipped"], index["tables"]
        must(embedded[0] == (begin if embedded[1] else 0), "the tables' place")
        tables = self.chunk(b"TABL", *embedded).data if embedded[1] else tables
        self.tables = Tables(tables, (self.header["model_latents"], self.header["alphabet"]))
        must(self.tables.name == self.header["tables_sha256"], "other tables")
        chunks = [self.chunk(b"FITT", *place) for place in index["fitted"]]
        self.fitted = [self.own_model(part.take(crc=part.number())) for part in chunks]
        for number, (offset, size, crc) in enumerate(index["retired"]):
            self.chunk(b"INDX", offset, size, crc, trailer=32)
            earlier = self.read_index(offset + size)
            must(earlier["start"] == offset and earlier["retired"] == index["retired"][:number], "an earlier index")
            must(all(earlier[key] == index[key] for key in ("tables", "fitted")), "an earlier index")
            must(earlier["segments"] == index["segments"][: len(earlier["segments"])], "an earlier index's segments")
        read = [self.segment(*place) for place in index["segments"]]
        self.parts.append((index["start"], len(self.data) - 32))
        begins, ends = zip(*sorted(self.parts), strict=True)
        must(begins == (begin, *ends[:-1]), "a gap between the parts")
        self.symbols = np.concatenate([np.empty((0, len(self.latents)), np.int64), *(part[0] for part in read)])
        self.names, self.labels, self.uncertainty = (self.joined([part[k] for part in read]) for k in (1, 2, 3))

    def read_header(self, source):
        must(source.take(8) == b"\x89SCL\r\n\x1a\n", "not an archive of codes")
        version, reserved, size, crc = source.numbers("HHII")
        must(1 <= version <= 4 and reserved == 0 and size <= 1 << 20, "the version, or reserved bytes")
        self.version, text = version, source.take(size)
        must(zlib.crc32(self.data[:16] + text) == crc, "checksum of the header")
        hashes = {"model_sha256": text[:32].hex(), "tables_sha256": text[32:64].hex()} if version > 2 else {}
        self.header = read_json(inflate(text[64:], 1 << 20, DICTIONARY) if version > 2 else text) | hashes
        must(depth(self.header) <= 32, "the header's nesting")
        chosen = self.header.get("selection", list(range(self.header["latents"])))
        must(type(chosen) is list and all(type(latent) is int for latent in chosen), "the selection")
        self.latents = np.array(chosen)
        must(len(self.latents) == self.header["latents"] and (np.diff(self.latents) > 0).all(), "the selection")
        return source.at

    def read_index(self, end):  # of the archive that ends there: the whole one, or one before an append
        start, size, crc, header_crc, closing = Bytes(self.data[:end], end - 32).numbers("QQI4s8s")
        must((header_crc, closing, start + size + 32) == (self.data[16:20], b"SCL\x89END\n", end), "the trailer")
        index = Bytes(Bytes(self.data, start).take(size, crc))
        must(index.numbers("4sQ") == (b"INDX", size - 12), "the index")
        rows, source_bytes, *tables, segments, skipped, fitted, retired = index.fields("QQQQIIII", self.version)
        must(source_bytes <= 1 << 60, "the source's bytes")
        found = {"start": start, "rows": rows, "source_bytes": source_bytes, "tables": tables}
        found["skipped"] = skipped_pairs(index.take(skipped))
        found["fitted"] = [tuple(index.fields("QQ", self.version)) for _ in range(fitted)]
        found["retired"] = [tuple(index.fields("QQI", self.version)) for _ in range(retired)]
        found["segments"] = [self.entry(index, segments == 1 and self.version > 2) for _ in range(segments)]
        index.end()
        counts = [Bytes(head).fields("I", self.version)[0] for _, _, head in found["segments"]]
        must(sum(counts) == rows, "the number of rows")
        return found

    def entry(self, index, short):
        offset, size, head_size = index.fields("QQI", self.version)
        if not short:
            return offset, size, index.take(head_size)
        return offset, size, Bytes(self.data, offset + 20).take(head_size, crc=index.number())

    def committed(self, at):  # the bytes up to the last trailer, without an append that has not been finished
        data, end = self.data, 0
        if data.endswith(b"SCL\x89END\n"):
            return data
        while at + 12 <= len(data):
            kind, size = struct.unpack_from("<4sQ", data, at)
            start, at = at, at + 12 + size
            if kind not in (b"TABL", b"FITT", b"SEGM", b"INDX") or at > len(data):
                break
            if kind == b"INDX":
                crc = struct.pack("<QQI", start, at - start, zlib.crc32(data[start:at]))
                trailer, at = data[at : at + 32], at + 32
                if trailer != crc + data[16:20] + b"SCL\x89END\n":
                    must(not end or at != len(data) or not any(trailer), "a damaged trailer")
                    break
                end = at
        begins = data[end : end + 4]
        must(not end or any(kind.startswith(begins) for kind in (b"SEGM", b"INDX", bytes(4))), "other bytes")
        return data[:end] if end else data

    def joined(self, parts):
        absent = [part is None for part in parts]
        must(all(absent) or not any(absent), "names, labels or uncertainty that only some segments have")
        return None if all(absent) else [value for part in parts for value in part]

    def vectors(self):
        return self.tables.vectors(self.symbols, self.latents)

    def chunk(self, kind, offset, size, crc=None, trailer=0):
        self.parts.append((offset, offset + size))
        found = Bytes(Bytes(self.data, offset).take(size, crc))
        must(found.numbers("4sQ") == (kind, size - 12 - trailer), f"a chunk of the kind {kind}")
        return Bytes(found.take())

    def own_model(self, data):
        return named_model(inflate(data, 1 << 26), (len(self.latents), self.header["alphabet"]))

    def segment(self, offset, size, head):
        part, head = self.chunk(b"SEGM", offset, size), Bytes(head)
        must(part.number() == len(head.data), "two heads differ")
        must(part.take(len(head.data), crc=part.number()) == head.data, "two heads differ")
        must(self.version > 2 or head.data[13] == 0, "reserved bytes")
        rows, most, blocks, kind, number, *sizes = head.fields("IIIBxHIIIIIIII", self.version)
        must(most and blocks == -(-rows // most) and kind <= 3, "a head that makes no sense")
        counts, crcs = [head.varint() for _ in range(blocks)], head.array("<u4", blocks)
        head.end()
        table, names, classes, values = (part.take(*sizes[k : k + 2]) for k in (0, 2, 4, 6))
        must((kind == 1) == (table != b"") and (kind == 3 or number == 0), "a segment's model")
        must(kind != 2 or "selection" not in self.header, "the tables' network, for latents that were selected")
        latents = np.arange(len(self.latents)) if kind % 2 else self.latents
        model = self.own_model(table) if table else self.fitted[number] if kind == 3 else self.tables.models[kind]
        shares = [min(most, rows - start) for start in range(0, rows, most)]
        symbols = [self.block(part, model, latents, *block) for block in zip(shares, counts, crcs, strict=True)]
        part.end()
        values = uncertainty(Bytes(values), rows, self.version) if values else None
        return np.concatenate(symbols), texts(names, rows), labels(classes, rows, self.version), values

    def block(self, part, model, latents, rows, words, rows_crc):
        decisions = rows * len(latents) * model.bits
        units = rows * np.count_nonzero(model.degrees < len(latents) * model.bits)
        must(decisions <= 1 << 22 and decisions + units <= 1 << 23 and decisions <= 32 * (words + 2) / 35e-5, "rows")
        *found, crc = part.numbers("III")
        must(found == [rows, words], "a block that is not what its segment's head says")
        symbols = model.decode(Bytes(part.take(4 * words, crc)).array("<u4", words), rows, latents)
        packed = np.packbits((symbols[:, :, None] >> np.arange(model.bits)[::-1] & 1).reshape(rows, -1), axis=1)
        must(zlib.crc32(packed.tobytes()) == rows_crc, "checksum of the rows")
        return symbols
