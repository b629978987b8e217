"""The worked example of docs/FORMAT.md: its bytes are an archive, just what is written, and its sums are right."""

import io
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stochcl.codes import Codes
from stochcl.compress import Archive, Header, Writer
from stochcl.compress import segment as limits
from stochcl.compress.header import DICTIONARY
from stochcl.compress.index import _MAX_PAIRS
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.framing import MAX_BLOCK_DECISIONS, MAX_NESTING, MAX_SEGMENT_ROWS
from tests import independent_reader
from tests.compress.making import make_codes, make_network, usual_zlib

PAGE = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text("utf-8")
EXAMPLE = PAGE[PAGE.index("## A worked example") : PAGE.index("## Limits")]
NUMERATORS = (2048, 16, 3072, 4095)
CODES = Codes.from_symbols([[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]], names=["a.png", "b.png", "b2.png"])


def example(version: int = 1) -> bytes:
    """Return the example's bytes; every line must say where it stands."""
    data = b""
    for line in EXAMPLE.split("```")[version].strip("\n").splitlines():
        if line.startswith("# "):
            continue
        offset, digits = line[:4], line[6:53]
        assert int(offset) == len(data), line
        data += bytes.fromhex(digits)
    return data


@pytest.mark.parametrize("version", [1, 3])
def test_both_readers_read_the_example(version):
    data = example(version)
    assert f"The file has {len(data)} bytes" in EXAMPLE or f"the file has {len(data)} bytes" in EXAMPLE
    pure = independent_reader.Archive(data)
    np.testing.assert_array_equal(pure.symbols, CODES.symbols())
    assert pure.names == list(CODES.names)
    with Archive(io.BytesIO(data)) as archive:
        archive.verify()
        assert archive.header.version == version
        np.testing.assert_array_equal(archive.to_numpy(), CODES.symbols())
        assert list(archive.names) == list(CODES.names)
        assert archive.source_bytes == 300


@pytest.mark.skipif(not usual_zlib(), reason="this zlib deflates to other bytes, which are as good")
@pytest.mark.parametrize("version", [1, 3])
def test_the_example_is_what_is_written(version, tmp_path):
    tables = Tables((4,), IndependentModel(np.array(NUMERATORS, np.uint16)[:, None]))
    header = Header(
        model="m",
        model_sha256="0" * 64,
        model_latents=4,
        latents=4,
        alphabet=2,
        precision="fp32",
        tables_sha256=tables.sha256,
        input_bytes=3,
        source_kind="folder",
        version=version,
    )
    with Writer(tmp_path / "a", header, tables, embed_tables=True) as writer:
        writer.add(replace(CODES), sizes=[100] * 3)
    assert (tmp_path / "a").read_bytes() == example(version)


def test_the_arithmetic_of_the_example_is_right():
    high, low, word = (int(digits, 16) for digits in re.findall(r"\b[0-9a-f]{8}\b", EXAMPLE.split("```")[2])[:3])
    assert struct.pack("<III", word, low, high) in example()
    state, words, decoded = high << 32 | low, [word], {}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in EXAMPLE.splitlines()
        if re.match(r"\| \d, \d", line)
    ]
    for place, k, before, quantile, coded, after, decision in rows:
        row, latent = map(int, place.split(","))
        numerator = NUMERATORS[latent]
        assert int(k) == min(numerator, 4096 - numerator)
        q = state & 0xFFFFFF
        assert (int(before, 16), int(quantile, 16)) == (state, q)
        one = 4096 * int(k)
        start, width = (2**24 - one, one) if coded == "1" else (0, 2**24 - one)
        assert 0 <= q - start < width
        state = (state >> 24) * width + q - start
        if state < 2**32 and words:
            state = state << 32 | words.pop()
        assert int(after, 16) == state
        assert int(decision) == int(coded) ^ (numerator > 2048)
        decoded[row, latent] = int(decision)
    assert state == 2**24
    assert [[decoded[row, latent] for latent in range(4)] for row in range(3)] == CODES.symbols().tolist()
    order = [(int(k), *map(int, place.split(","))) for place, k, *_ in rows]
    assert order == sorted(order)


def test_the_page_has_the_limits_that_the_program_has():
    page = PAGE[PAGE.index("## Limits") :]
    assert f"2^40, 2^{MAX_SEGMENT_ROWS.bit_length() - 1} |" in page
    assert f"binary decisions in a block | 2^{MAX_BLOCK_DECISIONS.bit_length() - 1} |" in page
    assert f"at most {MAX_NESTING} deep" in PAGE
    assert f"pairs | 2^25 bytes; 2^{_MAX_PAIRS.bit_length() - 1} |" in page


def test_the_page_has_the_dictionary_that_headers_are_deflated_with():
    block = PAGE[PAGE.index("### Header") :].split("```")[1]
    assert block.replace("\n", "").encode() == DICTIONARY == independent_reader.DICTIONARY
    assert f"dictionary of {len(DICTIONARY)} bytes" in PAGE


def test_the_page_has_the_limits_of_work_that_the_program_has():
    """The formulas of the page, on models of every kind."""
    text = PAGE[PAGE.index("### Limits of work") :]
    assert f"| 2^{limits._WORK.bit_length() - 1} + 2^{limits._WORK_PER_BYTE.bit_length() - 1} x B |" in text
    assert f"| 2^{limits._MEMORY.bit_length() - 1} + 2^{limits._MEMORY_PER_BYTE.bit_length() - 1} x B |" in text
    for t, h in ((8, 0), (8, 30), (40, 7)):
        assert limits.work_of_row(t, make_network(t, hidden=h)) == t * (512 + t + 2 * h) + 128 * h
        assert limits.work_of_row(t, IndependentModel.fit(make_codes(9, t))) == 256 * t
