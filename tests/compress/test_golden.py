"""Files that must be written, byte for byte, and read, for ever; once also without the coder's library."""

import json
import struct

import numpy as np
import pytest

from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress import Archive, IndependentModel, framing
from tests.compress.making import make_codes, make_names, make_tables, write
from tests.compress.pure_ans import decode_rows, u32
from tests.conftest import GOLDEN


def archives():
    """Return codes, tables and options of every golden archive by name."""
    binary = make_codes(30, 20, names=make_names(30), labels=["x", "y", "z"] * 10)
    return {
        "binary.bin": (binary, make_tables(20), {"segment_rows": 16}),
        "prefix.bin": (binary.prefix(7), make_tables(20), {"names": False}),
        "five.bin": (make_codes(25, 6, 5), make_tables(6, 5, decoder=False), {}),
        "own-table.bin": (Codes.from_symbols(np.zeros((2000, 6), int)), make_tables(6, decoder=False), {}),
        "empty.bin": (binary[:0], make_tables(20), {}),
    }


@pytest.mark.parametrize("name", archives())
def test_archives_are_written_as_ever(name, golden, tmp_path):
    codes, tables, options = archives()[name]
    golden(name, write(tmp_path / name, codes, tables, **options).read_bytes())


@pytest.mark.parametrize("name", archives())
def test_archives_are_read_as_ever(name):
    codes, _, _ = archives()[name]
    with Archive(GOLDEN / name) as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())


def test_tables_are_written_as_ever(golden):
    golden("binary.tables", make_tables(20).data)


@pytest.mark.parametrize("name", archives())
def test_the_written_down_format_is_enough_to_read_them(name):
    """Follow docs/FORMAT.md through a file with nothing but struct, json and the pure ANS."""
    data = (GOLDEN / name).read_bytes()
    codes, tables, _ = archives()[name]
    _, version, _, size, _ = struct.unpack_from("<8sHHII", data)
    header = json.loads(data[20 : 20 + size])
    assert version == 0
    latents, bits = header["latents"], bits_per_symbol(header["alphabet"])
    (index_at,) = struct.unpack_from("<Q", data, len(data) - 32)
    rows, _, _, _, segments, skipped = struct.unpack_from("<QQQQII", data, index_at + 12)
    entry = index_at + 12 + 40 + skipped
    symbols = []
    for _ in range(segments):
        offset, _, head_size = struct.unpack_from("<QQI", data, entry)
        entry += 20 + head_size
        fields = struct.unpack_from("<IIIB3xIIIIIIII", data, offset + 12)
        blocks, own, parts = fields[2], fields[3], fields[4::2]
        at = offset + 12 + head_size
        ones = tables.entropy.ones
        if own:
            ones = IndependentModel.from_bytes(data[at : at + parts[0]]).ones
        at += sum(parts)
        for _ in range(blocks):
            count, words = struct.unpack_from("<II", data, at)
            payload = u32(data[at + 16 : at + 16 + 4 * words])
            block, spent = decode_rows(payload, count, ones[:latents].tolist(), bits)
            assert spent
            symbols += block
            at += 16 + 4 * words
    assert len(symbols) == rows
    assert symbols == codes.symbols().tolist()
    assert version == framing.VERSION
