"""The ANS of docs/FORMAT.md in plain Python, so that old files do not hang on one library."""

import struct

PRECISION = 24
MASK = (1 << PRECISION) - 1


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
        ones = numerator << (PRECISION - 12)
        zeros = (1 << PRECISION) - ones
        quantile = self.state & MASK
        value = int(quantile >= zeros)
        start, width = (zeros, ones) if value else (0, zeros)
        self.state = (self.state >> PRECISION) * width + quantile - start
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return value

    @property
    def spent(self):
        return not self.words and self.state == 0


def decode_rows(words, rows, ones, bits):
    """Decode a block of rows: ``ones`` are the numerators of each latent's tree; returns symbols as lists."""
    decoder = Decoder(words)
    latents = len(ones)
    symbols = [[0] * latents for _ in range(rows)]
    for level in range(bits):
        places = [(ones[j][(1 << level) - 1 + symbols[i][j]], i, j) for i in range(rows) for j in range(latents)]
        places.sort(key=lambda place: place[0])  # stable: equal numerators stay row by row, then by latent
        for numerator, i, j in places:
            symbols[i][j] = symbols[i][j] << 1 | decoder.bit(numerator)
    return symbols, decoder.spent


def u32(data):
    return struct.unpack(f"<{len(data) // 4}I", data)
