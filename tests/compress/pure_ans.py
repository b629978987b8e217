"""The ANS of docs/FORMAT.md in plain Python, so that old files do not hang on one library."""

import struct

PRECISION = 24
MASK = (1 << PRECISION) - 1


START = 1 << 24


class Encoder:
    """Codes decisions, the last one first."""

    def __init__(self):
        self.words = []
        self.state = START

    def bit(self, value, numerator):
        """Code one decision whose probability of a one is numerator / 4096."""
        start, width = interval(value, numerator)
        if self.state >= width << 64 - PRECISION:
            self.words.append(self.state & 0xFFFFFFFF)
            self.state >>= 32
        self.state = (self.state // width << PRECISION) + start + self.state % width

    def finish(self):
        """Return the words, the state's last."""
        low, high = self.state & 0xFFFFFFFF, self.state >> 32
        return [*self.words, low, high] if high else [*self.words, low]


class Decoder:
    """Decodes 32-bit words with a 64-bit state, last word first."""

    def __init__(self, words):
        self.words = list(words)
        self.state = 0
        for _ in range(2):
            if self.words:
                self.state = self.state << 32 | self.words.pop()

    def bit(self, numerator):
        """Decode one decision whose probability of a one is numerator / 4096."""
        quantile = self.state & MASK
        value = int(quantile >= interval(1, numerator)[0])
        start, width = interval(value, numerator)
        self.state = (self.state >> PRECISION) * width + quantile - start
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return value

    @property
    def spent(self):
        return not self.words and self.state == START


def interval(value, numerator):
    """Return where the decision's share of the 2**24 quantiles begins, and how many they are."""
    ones = numerator << PRECISION - 12
    zeros = (1 << PRECISION) - ones
    return (zeros, ones) if value else (0, zeros)


def order(symbols, ones, level):
    """Return (numerator, row, latent) of the decisions of one pass, in order, given what was decided before."""
    latents = range(len(ones))
    places = [(ones[j][(1 << level) - 1 + row[j]], i, j) for i, row in enumerate(symbols) for j in latents]
    return sorted(places, key=lambda place: place[0])  # stable: equal ones stay row by row, then by latent


def encode_rows(symbols, ones, bits):
    """Code rows of symbols into words."""
    encoder = Encoder()
    for level in reversed(range(bits)):
        before = [[s >> bits - level for s in row] for row in symbols]
        for numerator, i, j in reversed(order(before, ones, level)):
            encoder.bit(symbols[i][j] >> bits - level - 1 & 1, numerator)
    return encoder.finish()


def decode_rows(words, rows, ones, bits):
    """Decode a block of rows: ``ones`` are the numerators of each latent's tree; returns symbols as lists."""
    decoder = Decoder(words)
    symbols = [[0] * len(ones) for _ in range(rows)]
    for level in range(bits):
        for numerator, i, j in order(symbols, ones, level):
            symbols[i][j] = symbols[i][j] << 1 | decoder.bit(numerator)
    return symbols, decoder.spent


def u32(data):
    return struct.unpack(f"<{len(data) // 4}I", data)
