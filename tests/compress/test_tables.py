import os

import pytest

from stochcl.compress import Tables, find_tables, save_tables
from stochcl.errors import FormatError, ModelMismatch, OutputError
from tests.compress.making import make_decoder, make_tables


@pytest.mark.parametrize(("alphabet", "decoder"), [(2, True), (5, False), (300, True)])
def test_tables_come_back_under_the_same_name(alphabet, decoder):
    tables = make_tables(6, alphabet, decoder=decoder)
    again = Tables.from_bytes(tables.data)
    assert again.sha256 == tables.sha256
    assert again.ladder == tables.ladder
    assert (again.decoder is None) == (not decoder)


def test_every_truncation_and_every_flipped_byte_is_a_format_error():
    data = make_tables(3).data
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


def test_a_machine_that_decodes_otherwise_is_found_out(monkeypatch):
    data = make_tables(6).data
    import stochcl.compress.tables as module

    honest = module.encode_block
    monkeypatch.setattr(module, "encode_block", lambda codes, model: honest(codes, model) ^ 1)
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


def test_a_file_under_a_name_that_is_not_its_own_is_not_taken(tmp_path, monkeypatch):
    tables = make_tables(4)
    (tmp_path / f"{tables.sha256}.tables").write_bytes(make_tables(5).data)
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    with pytest.raises(ModelMismatch):
        find_tables(tables.sha256)


def test_tables_that_cannot_be_written_are_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        save_tables(make_tables(4), tmp_path / "missing")
