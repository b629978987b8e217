"""Reads archives from docs/FORMAT.md alone, with numpy and the standard library: no constriction, nothing of stochcl.

It holds the real reader to the page, and is in no hurry: the file is in memory, and Python decodes each decision. As
the page says, a stream that decodes and ends as it should is the one that its rows code to; so there is no encoder.
"""

import json
import struct
import zlib
from hashlib import sha256
from itertools import pairwise

import numpy as np

FULL = 1 << 24  # a stream's probabilities are multiples of 1 / FULL, and its state begins there


def must(condition, what):
    if not condition:
        raise ValueError(what)


class Bytes:  # that are taken from the front: more than there are is an error, and so is leaving some
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def take(self, count=None, crc=None):
        count = len(self.data) - self.at if count is None else count
        must(0 <= self.at <= len(self.data) - count, f"{count} bytes at {self.at} of {len(self.data)}")
        self.at += count
        taken = self.data[self.at - count : self.at]
        must(crc is None or zlib.crc32(taken) == crc, f"checksum of the bytes before {self.at}")
        return taken

    def number(self, kind="I"):
        return self.numbers(kind)[0]

    def numbers(self, layout):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def array(self, kind, count):
        values = np.frombuffer(self.take(int(count) * np.dtype(kind).itemsize), kind)
        return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)

    def varint(self):
        digits = [self.number("B")]
        while digits[-1] > 127:
            digits.append(self.number("B"))
        must(len(digits) == 1 or (digits[-1] and len(digits) < 10), "a varint that is too long")
        return sum((digit & 127) << 7 * place for place, digit in enumerate(digits))

    def end(self):
        must(self.at == len(self.data), f"{len(self.data) - self.at} bytes too many")


def inflate(data, limit):
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, limit + 1)
    must(stream.eof and not stream.unused_data and len(inflated) <= limit, "deflated bytes do not end as they should")
    return inflated


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


def uncertainty(source, rows, version):
    if version == 1:
        must(len(source.data) == 2 * rows, "uncertainty that is not two bytes a row")
        return source.array("<f2", rows)
    exponent, least = source.number("b"), source.varint()
    must(-8 <= exponent <= 12 and least * 2.0**exponent <= 1 << 16, "the least uncertainty")
    steps = Bytes(inflate(source.take(), rows)).array("u1", rows)
    return ((least + steps) * 2.0**exponent).astype(np.float32)


class Stream:  # decisions out of the words of a block
    def __init__(self, words):
        self.words = words.tolist()
        must(self.words and self.words[-1], "a stream without words, or with a last word of 0")
        self.state = self.words.pop()
        self.state = self.state << 32 | self.words.pop() if self.words else self.state

    def take(self, numerators):
        coded = np.minimum(numerators, 4096 - numerators).ravel()
        order = np.argsort(coded, kind="stable")
        decisions, state, words = [], self.state, self.words
        for numerator in coded[order].tolist():
            one, q = numerator << 12, state & FULL - 1
            decisions.append(int(q >= FULL - one))
            start, width = (FULL - one, one) if decisions[-1] else (0, FULL - one)
            state = (state >> 24) * width + q - start
            if state < 1 << 32 and words:
                state = state << 32 | words.pop()
        self.state, taken = state, np.empty(len(coded), np.int64)
        taken[order] = decisions
        return taken.reshape(numerators.shape) ^ (numerators > 2048)


class Model:  # what the two kinds of entropy model share; their `run` goes through the passes of a block
    def __init__(self, data):
        self.latents, self.alphabet = (source := Bytes(data)).numbers("II")
        must(2 <= self.alphabet <= 4096 and 1 <= self.latents <= 4096, "a model's shape")
        self.bits = (self.alphabet - 1).bit_length()
        self.nodes = (1 << self.bits) - 1
        numerators = self.parse(source)
        must(((numerators > 0) & (numerators < 4096)).all(), "a numerator that is not 1 to 4095")
        source.end()

    def decode(self, words, rows, latents):
        symbols = np.zeros((rows, len(latents)), np.int64)
        self.run(symbols, (stream := Stream(words)).take, latents)
        must(not stream.words and stream.state == FULL, "a stream that does not end where it should")
        must((symbols < self.alphabet).all(), "a symbol beyond the alphabet")
        return symbols


class Independent(Model):
    def parse(self, source):
        self.degrees = np.zeros(0)
        self.numerators = source.array("<u2", self.latents * self.nodes).reshape(-1, self.nodes)
        return self.numerators

    def run(self, symbols, take, latents):
        for depth in range(self.bits):
            symbols += symbols + take(self.numerators[latents, 2**depth - 1 + symbols])


class Network(Model):
    def parse(self, source):
        (hidden, levels), decisions = source.numbers("II"), self.latents * self.bits
        self.levels, self.degrees = source.array("<u2", levels), source.array("<u2", hidden)
        self.hidden_bias, self.hidden_multiplier = source.array("<i4", hidden), source.array("<u2", hidden)
        self.multiplier = source.array("<u2", decisions)
        self.bias = source.array("<i4", self.latents * self.nodes).reshape(-1, self.nodes)
        must(all(1 <= a <= b < decisions for a, b in pairwise([*self.degrees, decisions - 1])), "the degrees")
        self.hidden = [source.array("i1", degree) for degree in self.degrees]
        self.direct = [source.array("i1", j) for j in range(decisions)]
        self.output = [source.array("i1", np.count_nonzero(self.degrees <= j)) for j in range(decisions)]
        return self.levels

    def run(self, symbols, take, latents):
        signs = np.zeros((len(symbols), len(latents) * self.bits), np.int64)
        units = np.zeros((len(symbols), len(self.degrees)), np.int64)
        for j in range(signs.shape[1]):
            for h in np.flatnonzero(self.degrees == j):
                u = self.hidden_bias[h] + signs[:, :j] @ self.hidden[h]
                units[:, h] = np.clip(u * self.hidden_multiplier[h] >> 14, 0, 127)
            z = 128 * (signs[:, :j] @ self.direct[j]) + units[:, : len(self.output[j])] @ self.output[j]
            latent, depth = divmod(j, self.bits)
            bias = self.bias[latent, 2**depth - 1 + symbols[:, latent]]
            index = np.clip(z * self.multiplier[j] + (bias << 16) >> 24, 0, len(self.levels) - 1)
            decisions = take(self.levels[index])
            symbols[:, latent] += symbols[:, latent] + decisions
            signs[:, j] = 2 * decisions - 1


def named_model(data, shape):
    model = {b"independent\0\0\0\0\0": Independent, b"autoregressive\0\0": Network}[data[:16]](data[16:])
    must((model.latents, model.alphabet) == shape, "a model of another shape")
    return model


class Tables:  # the models 0 and, if there is one, 2; `vectors`, if there is a decoder
    def __init__(self, data, shape):
        source, sections = Bytes(data), {}
        must(source.take(8) == b"\x89SCT\r\n\x1a\n", "not tables")
        version, count, self.latents, self.alphabet, rungs = source.numbers("HHIII")
        must(version in (1, 2), "tables of another version")
        must((self.latents, self.alphabet) == shape, "tables of another shape")
        self.rungs = source.array("<u4", rungs)
        must(zlib.crc32(data[: source.at]) == source.number(), "checksum of the tables' beginning")
        for _ in range(count):
            kind, size, crc = source.numbers("16sII")
            content = source.take(size, crc)
            if version == 2:
                inflated = (part := Bytes(content)).number()
                content = inflate(part.take(), inflated)
                must(len(content) == inflated, "a section of another length")
            must(sections.setdefault(kind, content) is content, "a section twice")
        source.end()
        self.name = tables_name(data, rungs, sections)
        test = Bytes(sections.pop(b"self-test".ljust(16, b"\0")))
        kinds = (b"mlp", b"codebooks") if version == 1 else (b"residual",)
        decoder, *books = (sections.pop(kind.ljust(16, b"\0"), None) for kind in kinds)
        self.residual = Residual(Bytes(decoder), self.latents) if version == 2 and decoder else None
        decoder, books = (decoder, *books) if version == 1 else (None, None)
        self.books = books and self.codebooks(Bytes(books))
        must(decoder or not books, "codebooks without a decoder")
        self.layers = decoder and self.mlp(Bytes(decoder))
        models = [named_model(kind + content, shape) for kind, content in sections.items()]
        self.models = {0 if isinstance(model, Independent) else 2: model for model in models}
        self.test(test)

    def codebooks(self, source):
        latents, alphabet, width = source.numbers("III")
        must((latents, alphabet) == (self.latents, self.alphabet), "codebooks of another shape")
        must(0 < latents * width <= 1 << 16, "the width of embeddings")
        books = source.array("<f2", latents * alphabet * width).reshape(latents, alphabet, width)
        source.end()
        must(np.isfinite(books).all(), "a number that is not finite")
        return [books]

    def mlp(self, source):
        latents, count = source.numbers("II")
        widths = [latents, *source.array("<u4", count)]
        layers = [[source.array("<f4", latents), source.array("<f4", latents)]]
        for width, out in pairwise(widths):
            layers.append([source.array("<f2", out * width).reshape(out, width), source.array("<f2", out)])
        source.end()
        must(latents == self.latents * self.width(), "the decoder's inputs")
        must(all(np.isfinite(part).all() for layer in layers for part in layer), "a number that is not finite")
        return layers

    def width(self):
        return self.books[0].shape[2] if self.books else 1

    def vectors(self, symbols, latents):
        if self.residual:
            return self.residual.vectors(symbols, latents)
        (centre, scale), *layers = self.layers
        values = np.zeros((len(symbols), self.latents, self.width()), np.float32)
        numbers = self.books[0][latents, symbols] if self.books else symbols[:, :, None]
        centre, scale = (part.reshape(self.latents, -1) for part in (centre, scale))
        values[:, latents] = (numbers - centre[latents]) * scale[latents]
        values = values.reshape(len(symbols), -1)
        for number, (weights, biases) in enumerate(layers):
            values = (np.maximum(values, 0) if number else values) @ weights.T + biases
        return values

    def test(self, source):
        products = [[(1000003 * i + 40503 * j + 12345) * 2654435761 for j in range(self.latents)] for i in range(8)]
        symbols = np.array([[(product % 2**64 >> 15) % self.alphabet for product in row] for row in products])
        for _, model in sorted(self.models.items()):
            found = model.decode(source.array("<u4", source.number()), 8, np.arange(self.latents))
            must((found == symbols).all(), "the self-test's rows")
        if self.layers or self.residual:
            vectors = np.clip(self.vectors(symbols, np.arange(self.latents)), -65504, 65504)
            expected = source.array("<f2", vectors.size).reshape(vectors.shape)
            must((abs(vectors - expected) <= 0.01 * abs(expected) + 0.01).all(), "the self-test's vectors")
        source.end()


def tables_name(data, rungs, sections):  # of version 2: the hash of the tables with their sections not deflated
    if data[8:10] == b"\1\0":
        return sha256(data).hexdigest()
    parts = [data[: 28 + 4 * rungs]]
    for kind, content in sections.items():
        parts += [kind, struct.pack("<II", len(content), zlib.crc32(content)), content]
    return sha256(b"".join(parts)).hexdigest()


class Residual:
    def __init__(self, source, latents):
        width, dim, stages = source.numbers("III")
        self.bits = source.array("u1", stages)
        must(width and ((self.bits > 0) & (self.bits <= 8)).all() and sum(self.bits) == latents, "the stages")
        scales = source.array("<f4", stages)
        self.words = [
            source.array("i1", width << b).reshape(-1, width) * s for b, s in zip(self.bits, scales, strict=True)
        ]
        output = source.array("i1", width * dim).reshape(width, dim)
        self.output, self.centre = output * source.array("<f4", dim), source.array("<f4", dim)
        source.end()
        must(
            all(np.isfinite(part).all() for part in (scales, self.output, self.centre)), "a number that is not finite"
        )

    def vectors(self, symbols, latents):
        total, first = np.zeros((len(symbols), self.words[0].shape[1])), 0
        for bits, words in zip(self.bits.tolist(), self.words, strict=True):
            known = [j for j in range(bits) if first + j in latents]
            digits = np.arange(1 << bits)[:, None] >> np.arange(bits - 1, -1, -1) & 1
            for row in range(len(symbols) if known else 0):
                given = [symbols[row, np.flatnonzero(latents == first + j)[0]] for j in known]
                total[row] += words[(digits[:, known] == given).all(axis=1)].mean(axis=0)
            first += bits
        return total @ self.output + self.centre if len(self.centre) else total


class Archive:
    """A whole archive: header, symbols; names, labels, uncertainty (or None); skipped, source_bytes, vectors()."""

    def __init__(self, data, tables=None):
        self.data, self.parts = data, []
        begin = self.read_header(Bytes(data))
        self.data = data = self.committed(begin)
        offset, size, crc, header_crc, closing = Bytes(data, len(data) - 32).numbers("QQI4s8s")
        must((header_crc, closing, offset + size + 32) == (data[16:20], b"SCL\x89END\n", len(data)), "the trailer")
        index = self.chunk(b"INDX", offset, size, crc)
        rows, self.source_bytes, *embedded, segments, skipped, fitted, retired = index.numbers("QQQQIIII")
        self.skipped = json.loads(inflate(index.take(skipped), 1 << 28)) if skipped else []
        must(embedded[0] == (begin if embedded[1] else 0), "the tables' place")
        tables = self.chunk(b"TABL", *embedded).data if embedded[1] else tables
        self.tables = Tables(tables, (self.header["model_latents"], self.header["alphabet"]))
        must(self.tables.name == self.header["tables_sha256"], "other tables")
        chunks = [self.chunk(b"FITT", *index.numbers("QQ")) for _ in range(fitted)]
        self.fitted = [self.own_model(part.take(crc=part.number())) for part in chunks]
        for _ in range(retired):
            offset, size, crc = index.numbers("QQI")
            self.chunk(b"INDX", offset, size, crc, trailer=32)
        read = [self.segment(index) for _ in range(segments)]
        index.end()
        begins, ends = zip(*sorted(self.parts), strict=True)
        must(begins == (begin, *ends[:-1]), "a gap between the parts")
        self.symbols = np.concatenate([np.empty((0, len(self.latents)), np.int64), *(part[0] for part in read)])
        must(len(self.symbols) == rows, "the number of rows")
        self.names, self.labels, self.uncertainty = (self.joined([part[k] for part in read]) for k in (1, 2, 3))

    def read_header(self, source):
        must(source.take(8) == b"\x89SCL\r\n\x1a\n", "not an archive of codes")
        version, reserved, size, crc = source.numbers("HHII")
        must(version in (1, 2) and reserved == 0, "the version, or reserved bytes")
        self.version = version
        must(zlib.crc32(self.data[:16] + source.take(size)) == crc, "checksum of the header")
        self.header = json.loads(self.data[20 : source.at].decode("ascii"))
        self.latents = np.array(self.header.get("selection", range(self.header["latents"])))
        must(len(self.latents) == self.header["latents"] and (np.diff(self.latents) > 0).all(), "the selection")
        return source.at

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
        found = Bytes(Bytes(self.data, offset).take(size, crc))
        must(found.numbers("4sQ") == (kind, size - 12 - trailer), f"a chunk of the kind {kind}")
        self.parts.append((offset, offset + size))
        return Bytes(found.take())

    def own_model(self, data):
        return named_model(inflate(data, 1 << 26), (len(self.latents), self.header["alphabet"]))

    def segment(self, index):
        offset, size, head_size = index.numbers("QQI")
        part, head = self.chunk(b"SEGM", offset, size), Bytes(index.take(head_size))
        must(part.number() == head_size and part.take(head_size, crc=part.number()) == head.data, "two heads differ")
        rows, most, blocks, kind, reserved, number, *sizes = head.numbers("IIIBBHIIIIIIII")
        must(most and blocks == -(-rows // most) and kind <= 3 and reserved == 0, "a head that makes no sense")
        counts, crcs = [head.varint() for _ in range(blocks)], head.array("<u4", blocks)
        head.end()
        table, names, labels, values = (part.take(*sizes[k : k + 2]) for k in (0, 2, 4, 6))
        must((kind == 1) == (table != b"") and (kind == 3 or number == 0), "a segment's model")
        must(kind != 2 or "selection" not in self.header, "the tables' network, for latents that were selected")
        latents = np.arange(len(self.latents)) if kind % 2 else self.latents
        model = self.own_model(table) if table else self.fitted[number] if kind == 3 else self.tables.models[kind]
        shares = [min(most, rows - start) for start in range(0, rows, most)]
        symbols = [self.block(part, model, latents, *block) for block in zip(shares, counts, crcs, strict=True)]
        part.end()
        values = uncertainty(Bytes(values), rows, self.version) if values else None
        return np.concatenate(symbols), texts(names, rows), texts(labels, rows), values

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
