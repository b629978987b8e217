"""The residual decoder, and the deflated tables that hold it."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stochcl.compress import Archive, Writer
from stochcl.entropy import tables as tables_module
from stochcl.entropy.tables import Tables, find_tables, save_tables
from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import FormatError, LimitExceeded
from stochcl.framing import crc
from tests.compress.making import (
    STAGES,
    make_codes,
    make_header,
    make_residual,
    make_residual_tables,
)


def summed(decoder: ResidualDecoder, bits: np.ndarray) -> np.ndarray:
    """What the formula says, row by row."""
    out = np.zeros((len(bits), decoder.words[0].shape[1]))
    for i, code in enumerate(bits):
        for columns, words, scale in zip(decoder.columns, decoder.words, decoder.scale, strict=True):
            name = int("".join(str(int(code[c])) for c in columns), 2)
            out[i] += scale * words[name].astype(np.float64)
    if decoder.output is None:
        return out
    return out @ (decoder.output * decoder.output_scale.astype(np.float64)) + decoder.centre


@pytest.mark.parametrize("dim", [0, 6])
def test_words_add_up(dim):
    decoder = make_residual(dim=dim)
    bits = make_codes(50, 7).symbols()
    np.testing.assert_allclose(decoder.decode(bits), summed(decoder, bits), rtol=1e-5, atol=1e-5)
    assert (decoder.latents, decoder.dim, decoder.stages) == (7, dim or 4, STAGES)


@given(st.sets(st.integers(0, 6), min_size=1), st.integers(0, 127))
def test_what_is_missing_counts_as_the_mean_of_what_it_leaves_open(kept, code):
    """A stage without any of its bits adds nothing; one that lost some adds the mean over these bits."""
    decoder = make_residual()
    kept = sorted(kept)
    bits = np.array([[code >> (6 - j) & 1 for j in range(7)]], np.uint8)
    expected = np.zeros((1, 4))
    for columns, words, scale in zip(decoder.columns, decoder.words, decoder.scale, strict=True):
        names = [n for n in range(len(words)) if all(
            (n >> (len(columns) - 1 - j) & 1) == bits[0, c] for j, c in enumerate(columns) if c in kept
        )]  # fmt: skip
        if any(c in kept for c in columns):
            expected += scale * words[names].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(decoder.select(kept).decode(bits[:, kept]), expected, rtol=1e-5, atol=1e-6)
    if kept == list(range(len(kept))):
        np.testing.assert_allclose(decoder.decode(bits[:, : len(kept)]), expected, rtol=1e-5, atol=1e-6)


def test_latents_may_be_chosen_in_any_order():
    decoder, bits = make_residual(dim=5), make_codes(20, 7).symbols()
    order = [6, 2, 0, 1, 5, 4, 3]
    np.testing.assert_allclose(
        decoder.select(order).decode(bits[:, order]), decoder.decode(bits), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dim", [0, 6])
def test_bytes_come_back(dim):
    decoder = make_residual(dim=dim)
    again = ResidualDecoder.from_bytes(decoder.to_bytes())
    assert again.to_bytes() == decoder.to_bytes()
    bits = make_codes(9, 7).symbols()
    np.testing.assert_array_equal(again.decode(bits), decoder.decode(bits))


def test_every_truncation_of_a_decoder_is_refused():
    data = make_residual(dim=3).to_bytes()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            ResidualDecoder.from_bytes(data[:end])
    with pytest.raises(FormatError, match="bytes, not"):
        ResidualDecoder.from_bytes(data + b"\0")


def test_numbers_that_make_no_sense_are_refused():
    data = bytearray(make_residual().to_bytes())
    with pytest.raises(LimitExceeded):
        ResidualDecoder.from_bytes(struct.pack("<I", 1 << 20) + data[4:])
    with pytest.raises(FormatError, match="1 to 8 bits"):
        ResidualDecoder.from_bytes(data[:12] + bytes([9]) + data[13:])
    with pytest.raises(FormatError, match="not finite"):
        ResidualDecoder.from_bytes(data[:16] + struct.pack("<f", np.nan) + data[20:])


@pytest.mark.parametrize("dim", [0, 6])
def test_tables_with_a_residual_decoder_come_back(dim):
    tables = make_residual_tables(dim=dim)
    again = Tables.from_bytes(tables.data)
    assert (again.sha256, again.data, again.ladder) == (tables.sha256, tables.data, (3, 5, 6, 7))
    bits = make_codes(30, 7).symbols()
    np.testing.assert_array_equal(again.decoder.decode(bits), tables.decoder.decode(bits))


def test_the_name_does_not_depend_on_who_deflated(tmp_path, monkeypatch):
    tables, compress = make_residual_tables(), zlib.compress
    data = tables.data
    monkeypatch.setattr(tables_module.zlib, "compress", lambda data, level: compress(data, 0))
    other = make_residual_tables()
    assert other.data != data
    assert other.sha256 == tables.sha256 == Tables.from_bytes(other.data).sha256
    path = save_tables(other, tmp_path)
    assert find_tables(tables.sha256, [path]).sha256 == tables.sha256


def test_every_damaged_byte_of_deflated_tables_is_noticed():
    data = make_residual_tables((2, 1)).data
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 + place % 255
        with pytest.raises(FormatError):
            Tables.from_bytes(bytes(damaged))
    for end in range(0, len(data), 7):
        with pytest.raises(FormatError):
            Tables.from_bytes(data[:end])


def with_section(data: bytes, kind: str, content: bytes) -> bytes:
    """Tables whose section of this kind has other bytes, checksums right."""
    head = struct.Struct("<8sHHIII")
    _, _, count, _, _, rungs = head.unpack_from(data)
    at = head.size + 4 * rungs + 4
    out = [data[:at]]
    for _ in range(count):
        name, size, _ = struct.unpack_from("<16sII", data, at)
        body = data[at + 24 : at + 24 + size]
        body = content if name.rstrip(b"\0").decode() == kind else body
        out += [struct.pack("<16sII", name, len(body), crc(body)), body]
        at += 24 + size
    return b"".join(out)


def test_a_section_that_inflates_to_more_than_it_says_is_refused_without_the_memory():
    data, bomb = make_residual_tables().data, zlib.compress(bytes(1 << 24))
    for size in (64, 1 << 31):
        with pytest.raises(LimitExceeded, match="the residual section"):
            Tables.from_bytes(with_section(data, "residual", struct.pack("<I", size) + bomb))
    with pytest.raises(FormatError, match="cannot be inflated"):
        Tables.from_bytes(with_section(data, "residual", struct.pack("<I", 64) + b"nonsense"))


def test_an_archive_is_written_with_such_tables_and_read_back(tmp_path):
    tables, codes = make_residual_tables(dim=6), make_codes(400, 7)
    with Writer(tmp_path / "a.bin", make_header(tables), tables, embed_tables=True) as writer:
        writer.add(codes)
    with Archive(tmp_path / "a.bin") as archive:
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())
        np.testing.assert_array_equal(archive.to_vectors(), tables.decoder.decode(codes.symbols()))
        np.testing.assert_allclose(archive.to_vectors(3), tables.decoder.decode(codes.symbols()[:, :3]), rtol=1e-6)
