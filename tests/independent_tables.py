"""Reads decoding tables and streams from docs/FORMAT.md alone; tests/independent_reader.py reads archives with it."""

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

    def fields(self, layout, version):  # of an index or a head: from version 3 on they are varints
        if version < 3:
            return self.numbers(layout)
        values = [self.varint() for kind in layout if kind != "x"]
        struct.pack("<" + layout, *values)  # which fails where one is too large for its field
        return values

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


def inflate(data, limit, dictionary=b""):
    stream = zlib.decompressobj(-15, dictionary) if dictionary else zlib.decompressobj()
    inflated = stream.decompress(data, limit + 1)
    must(stream.eof and not stream.unused_data and len(inflated) <= limit, "deflated bytes do not end as they should")
    return inflated


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
