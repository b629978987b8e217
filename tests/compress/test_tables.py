import dataclasses
import hashlib
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stochcl.entropy.tables
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import INDEPENDENT, NETWORK
from stochcl.entropy.tables import Tables, find_tables, save_tables
from stochcl.entropy.vectors import VectorDecoder
from stochcl.errors import FormatError, LimitExceeded, ModelMismatch, OutputError, Truncated, UnsupportedVersion
from stochcl.framing import crc
from tests.compress.making import make_codes, make_decoder, make_network, make_tables


@pytest.mark.parametrize(("alphabet", "decoder"), [(2, True), (5, False), (300, True)])
def test_tables_come_back_under_the_same_name(alphabet, decoder):
    tables = make_tables(6, alphabet, decoder=decoder)
    again = Tables.from_bytes(tables.data)
    assert again.sha256 == tables.sha256
    assert again.ladder == tables.ladder
    assert (again.decoder is None) == (not decoder)


@pytest.mark.parametrize(("alphabet", "hidden"), [(2, 0), (2, 5), (5, 4)])
def test_a_network_comes_back_with_them(alphabet, hidden):
    tables = make_tables(6, alphabet, network=make_network(6, alphabet, hidden))
    again = Tables.from_bytes(tables.data)
    assert again.sha256 == tables.sha256
    assert again.autoregressive.to_bytes() == tables.autoregressive.to_bytes()
    kinds = [(INDEPENDENT, IndependentModel), (NETWORK, AutoregressiveModel)]
    for latents in 6, 4:
        found = again.candidates(latents)
        assert [(candidate.kind, type(candidate.model)) for candidate in found] == kinds
        assert {candidate.model.latents for candidate in found} == {latents}
    (only,) = again.candidates(2, (1, 5))
    assert only.kind == INDEPENDENT
    np.testing.assert_array_equal(only.model.ones, tables.entropy.ones[[1, 5]])


@pytest.mark.parametrize(("latents", "alphabet"), [(5, 3), (6, 4)])
def test_a_network_of_another_shape_is_refused(latents, alphabet):
    with pytest.raises(FormatError, match="the network codes"):
        make_tables(6, 3, network=make_network(latents, alphabet))


def another_network() -> bytes:
    network = make_network(6, hidden=3)
    return dataclasses.replace(network, bias=network.bias + 256).to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.__setitem__(1, (b"autoregressive", another_network())), "self-test fails"),
        (lambda s: s.__setitem__(1, (b"autoregressive", make_network(7).to_bytes())), "the network codes"),
        (lambda s: s.__setitem__(1, (b"autoregressive", s[1][1][:-1])), "bytes, not"),
        (lambda s: s.pop(1), "self-test"),
        (lambda s: s.__setitem__(3, (b"self-test", s[3][1][:20])), "self-test"),
    ],
)
def test_forged_networks_are_refused(change, message):
    (head, ladder), sections = take_apart(make_tables(6, network=make_network(6, hidden=3)))
    assert [kind for kind, _ in sections] == [b"independent", b"autoregressive", b"mlp", b"self-test"]
    change(sections)
    with pytest.raises(FormatError, match=message):
        Tables.from_bytes(forge(head, ladder, sections))


@pytest.mark.parametrize(("network", "width"), [(None, 0), (make_network(3, hidden=2), 0), (None, 2)])
def test_every_truncation_and_every_flipped_byte_is_a_format_error(network, width):
    data = make_tables(3, network=network, width=width).data
    for end in range(len(data)):
        with pytest.raises(FormatError):
            Tables.from_bytes(data[:end])
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 0x41
        with pytest.raises(FormatError):
            Tables.from_bytes(bytes(damaged))
    with pytest.raises(FormatError):
        Tables.from_bytes(data + b"\0")


@pytest.mark.parametrize("alphabet", [2, 5, 300])
def test_codebooks_come_back_with_them(alphabet):
    tables = make_tables(6, alphabet, width=3)
    again = Tables.from_bytes(tables.data)
    assert again.sha256 == tables.sha256
    symbols = make_codes(20, 6, alphabet).symbols()
    np.testing.assert_array_equal(again.decoder.decode(symbols), tables.decoder.decode(symbols))
    assert again.decoder.codebooks.embeddings.shape == (6, alphabet, 3)


def with_shape(content: bytes, *shape: int) -> bytes:
    return struct.pack("<III", *shape) + content[12:]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop(2), FormatError, "codebooks, and no vector decoder"),
        (lambda s: s.pop(1), FormatError, "the vector decoder takes 12 latents"),
        (lambda s: s.__setitem__(1, (b"codebooks", b"\1\0")), FormatError, "ends too early"),
        (lambda s: s.__setitem__(1, (b"codebooks", s[1][1][:-2])), FormatError, "bytes, not"),
        (lambda s: s.__setitem__(1, (b"codebooks", s[1][1] + b"\0\0")), FormatError, "bytes, not"),
        (lambda s: s.__setitem__(1, (b"codebooks", s[1][1][:-2] + b"\0\x7e")), FormatError, "not finite"),
        (lambda s: s.__setitem__(1, (b"codebooks", s[1][1][:12] + b"\0\x50" * 60)), FormatError, "self-test fails"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 6, 2, 5))), FormatError, "does not fit"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 12, 5, 1))), FormatError, "12 latents"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 6, 0, 2))), FormatError, "make no sense"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 6, 1, 2))), FormatError, "make no sense"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 6, 5, 0))), FormatError, "make no sense"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 0, 5, 2))), FormatError, "make no sense"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 4097, 5, 2))), LimitExceeded, "codebooks"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 6, 4097, 2))), LimitExceeded, "symbols"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 6, 5, 11_000))), LimitExceeded, "width"),
        (lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], 1, 4096, 65_536))), FormatError, "bytes, not"),
        (
            lambda s: s.__setitem__(1, (b"codebooks", with_shape(s[1][1], *[2**32 - 1] * 3))),
            LimitExceeded,
            "codebooks",
        ),
    ],
)
def test_forged_codebooks_are_refused(change, error, message):
    (head, ladder), sections = take_apart(make_tables(6, 5, width=2))
    assert [kind for kind, _ in sections] == [b"independent", b"codebooks", b"mlp", b"self-test"]
    change(sections)
    with pytest.raises(error, match=message):
        Tables.from_bytes(forge(head, ladder, sections))


def test_codebooks_of_another_alphabet_are_refused():
    decoder = make_tables(6, 5, width=2).decoder
    with pytest.raises(FormatError, match="codebooks are of 5 symbols, the entropy model of 4"):
        Tables((6,), make_tables(6, 4).entropy, decoder)


HEAD, SECTION = struct.Struct("<8sHHIII"), struct.Struct("<16sII")


def take_apart(tables: Tables) -> tuple[list, list[tuple[bytes, bytes]]]:
    """Return the fields of the head with the ladder, and the sections' kinds and contents."""
    data = tables.data
    head, at = list(HEAD.unpack_from(data)), HEAD.size
    ladder = struct.unpack_from(f"<{head[5]}I", data, at)
    at += 4 * head[5] + 4
    sections = []
    while at < len(data):
        kind, size, _ = SECTION.unpack_from(data, at)
        sections.append((kind.rstrip(b"\0"), data[at + SECTION.size : at + SECTION.size + size]))
        at += SECTION.size + size
    return [head, list(ladder)], sections


def forge(head: list, ladder: list[int], sections: list[tuple[bytes, bytes]]) -> bytes:
    """Put tables together again, all checksums right."""
    begin = HEAD.pack(*head[:2], len(sections), *head[3:]) + struct.pack(f"<{len(ladder)}I", *ladder)
    parts = [SECTION.pack(kind, len(content), crc(content)) + content for kind, content in sections]
    return begin + struct.pack("<I", crc(begin)) + b"".join(parts)


def test_tables_are_laid_out_as_the_format_says():
    tables = make_tables(6, 3)
    (head, ladder), sections = take_apart(tables)
    assert head == [b"\x89SCT\r\n\x1a\n", 1, 3, 6, 3, 3]
    assert ladder == [1, 3, 6]
    assert [kind for kind, _ in sections] == [b"independent", b"mlp", b"self-test"]
    assert forge(head, ladder, sections) == tables.data


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, r, s: s.append(s[0]), FormatError, "two sections called independent"),
        (lambda h, r, s: s.append((b"later\x1b", b"")), UnsupportedVersion, r"know \(later\\x1b\); update"),
        (lambda h, r, s: s.pop(0), FormatError, "no entropy model"),
        (lambda h, r, s: s.pop(), Truncated, "the self-test ends too early"),
        (lambda h, r, s: s.pop(1), FormatError, "self-test has"),
        (lambda h, r, s: s.append((b"self-test", s.pop()[1] + b"\0")), FormatError, "self-test has"),
        (lambda h, r, s: s.append((b"self-test", s.pop()[1] + b"\0" * 2)), FormatError, "self-test has"),
        (lambda h, r, s: s.append((b"self-test", s.pop()[1][:-4])), Truncated, "self-test ends too early"),
        (lambda h, r, s: s.append((b"self-test", b"\xff" * 4 + s.pop()[1])), FormatError, "self-test"),
        (lambda h, r, s: s.append((b"self-test", s.pop()[1][:-2] + b"\0\x7e")), FormatError, "self-test"),
        (lambda h, r, s: r.pop(), FormatError, "ladder|head of the tables"),
        (lambda h, r, s: r.__setitem__(0, 4), FormatError, r"ladder \(4, 3, 6\)"),
        (lambda h, r, s: h.__setitem__(0, b"\x89SCL\r\n\x1a\n"), FormatError, "not a decoder: it begins"),
        (lambda h, r, s: h.__setitem__(1, 3), UnsupportedVersion, "version 3, and this program reads 1"),
        (lambda h, r, s: h.__setitem__(3, 7), FormatError, "disagree"),
        (lambda h, r, s: h.__setitem__(4, 3), FormatError, "disagree"),
        (lambda h, r, s: h.__setitem__(5, 7), LimitExceeded, "rungs"),
    ],
)
def test_forged_tables_are_refused(change, error, message):
    (head, ladder), sections = take_apart(make_tables(6))
    change(head, ladder, sections)
    with pytest.raises(error, match=message):
        Tables.from_bytes(forge(head, ladder, sections))


@given(st.binary(max_size=100), st.integers(0, 40))
def test_foreign_bytes_are_a_format_error(data, keep):
    with pytest.raises(FormatError):
        Tables.from_bytes(make_tables(3).data[:keep] + data)


def test_the_name_of_tables_does_not_depend_on_the_order_of_sums(monkeypatch):
    """Processors sum float32 in different orders; all must give the same tables the same name."""
    codes = make_codes(9, 257)
    decoder = make_decoder(257, dim=40)
    entropy = IndependentModel.fit(codes)
    turned = np.random.default_rng(0).permutation(257)
    honest = VectorDecoder.decode

    def decode(self, symbols, dtype=np.float32):
        (weight, bias), last = self.layers
        other = VectorDecoder(self.centre[turned], self.scale[turned], ((weight[:, turned], bias), last))
        return honest(other, symbols[:, turned], dtype)

    symbols = codes.symbols()
    decoder.layers[0][0][:] = np.random.default_rng(1).normal(size=(4, 257))
    name, plain = Tables((257,), entropy, decoder).sha256, decoder.decode(symbols)
    monkeypatch.setattr(VectorDecoder, "decode", decode)
    assert not np.array_equal(decoder.decode(symbols), plain)
    again = Tables((257,), entropy, decoder)
    assert again.sha256 == name
    Tables.from_bytes(again.data)


def test_vectors_too_long_for_half_precision_still_pass_their_test():
    decoder = VectorDecoder.from_arrays(np.zeros(2), np.full(2, 1e6), [(np.array([[1, 2.0]]), np.zeros(1))])
    tables = Tables((2,), make_tables(2).entropy, decoder)
    assert Tables.from_bytes(tables.data).sha256 == tables.sha256


def test_a_machine_that_decodes_otherwise_is_found_out(monkeypatch):
    data = make_tables(6).data
    honest = stochcl.entropy.ans.encode_block
    monkeypatch.setattr(stochcl.entropy.tables, "encode_block", lambda codes, model: honest(codes, model) ^ 1)
    with pytest.raises(FormatError, match="self-test"):
        Tables.from_bytes(data)


@pytest.mark.parametrize("ladder", [(), (2,), (4, 2, 6), (0, 6), (2, 7), (2, 2, 6)])
def test_a_ladder_that_does_not_ascend_to_the_width_is_refused(ladder):
    with pytest.raises(FormatError, match="ladder"):
        Tables(ladder, make_tables(6).entropy)


def test_a_decoder_of_another_width_is_refused():
    with pytest.raises(FormatError, match="takes 5 latents"):
        Tables((6,), make_tables(6).entropy, make_decoder(5))


def test_tables_are_looked_for_in_order(tmp_path, monkeypatch):
    tables = make_tables(4)
    with pytest.raises(ModelMismatch, match=r"STOCHCL_MODELS"):
        find_tables(tables.sha256)
    assert find_tables(tables.sha256, [make_tables(5), tables]) is tables
    path = save_tables(tables, tmp_path)
    assert path.name == f"{tables.sha256}.tables"
    assert find_tables(tables.sha256, [tmp_path / "missing", path]).sha256 == tables.sha256
    monkeypatch.setenv("STOCHCL_MODELS", os.pathsep.join(["/nowhere", str(tmp_path)]))
    assert find_tables(tables.sha256).sha256 == tables.sha256


def test_what_is_given_goes_before_the_package_and_that_before_the_environment(tmp_path, monkeypatch):
    tables = make_tables(4)
    asked = []
    honest = stochcl.entropy.tables._parse
    monkeypatch.setattr(
        stochcl.entropy.tables, "_parse", lambda data, name, where: asked.append(where) or honest(data, name, where)
    )
    monkeypatch.setattr(stochcl.entropy.tables.resources, "files", lambda package: tmp_path / package)
    folders = {"given": tmp_path / "given", "package": tmp_path / "stochcl" / "tables", "environment": tmp_path / "e"}
    paths = {}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        paths[name] = save_tables(tables, folder)
    monkeypatch.setenv("STOCHCL_MODELS", str(folders["environment"]))
    for name, path in paths.items():
        assert find_tables(tables.sha256, [paths["given"]]).sha256 == tables.sha256
        assert ("stochcl/tables" if name == "package" else str(path.parent)) in asked[-1]
        path.unlink()
    with pytest.raises(ModelMismatch):
        find_tables(tables.sha256, [paths["given"]])


def test_damaged_tables_of_the_package_say_so(tmp_path, monkeypatch):
    tables = make_tables(4)
    monkeypatch.setattr(stochcl.entropy.tables.resources, "files", lambda package: tmp_path)
    (tmp_path / "tables").mkdir()
    save_tables(tables, tmp_path / "tables").write_bytes(b"x" + tables.data)
    with pytest.raises(FormatError, match="this decoder is damaged; install stochcl again"):
        find_tables(tables.sha256)


def test_a_file_of_the_right_name_that_holds_no_tables_is_a_format_error(tmp_path, monkeypatch):
    name = hashlib.sha256(b"of a later version").hexdigest()
    (tmp_path / f"{name}.tables").write_bytes(b"of a later version")
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    with pytest.raises(FormatError, match=rf"{name}\.tables: "):
        find_tables(name)


def test_a_file_too_large_for_tables_is_not_read(tmp_path, monkeypatch):
    tables = make_tables(4)
    path = save_tables(tables, tmp_path)
    monkeypatch.setattr(stochcl.entropy.tables, "MAX_TABLES", len(tables.data) - 1)
    with pytest.raises(ModelMismatch):
        find_tables(tables.sha256, [path])


def test_a_file_under_a_name_that_is_not_its_own_is_not_taken(tmp_path, monkeypatch):
    tables = make_tables(4)
    (tmp_path / f"{tables.sha256}.tables").write_bytes(make_tables(5).data)
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    with pytest.raises(ModelMismatch):
        find_tables(tables.sha256)


def test_tables_that_cannot_be_written_are_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: no such file"):
        save_tables(make_tables(4), tmp_path / "missing")
