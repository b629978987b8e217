"""Small files that ask for hours or for all memory: refused before the work, unless they are trusted."""

import io
import pickle
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from stochcl.codes import Codes
from stochcl.compress import Archive, FolderArchive, open_archive
from stochcl.compress import segment as limits
from stochcl.compress.export import export
from stochcl.compress.index import iterate_skipped, pack_skipped
from stochcl.compress.segment import write_segment
from stochcl.compress.segment_writer import StreamWriter
from stochcl.compress.sharded import Manifest, Shard, sha256_of, write_manifest
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, Candidate
from stochcl.entropy.tables import Tables
from stochcl.entropy.vectors import ResidualDecoder, VectorDecoder
from stochcl.errors import LimitExceeded
from tests.compress.making import make_header, make_network, make_tables, write


def repeated(path, codes: Codes, tables: Tables, times: int, **options):
    """Write an archive whose one segment is there many times."""
    write(path, codes, tables, segment_rows=1 << 18, **options)
    with Archive(path, tables=[tables], trusted=True) as archive:
        index = archive._index
    ((at, head),) = index.segments
    data = path.read_bytes()
    segments = tuple((at + i * head.size, head) for i in range(times))
    changed = replace(index, rows=times * head.rows, segments=segments, start=at + times * head.size)
    path.write_bytes(data[:at] + data[at : index.start] * times + changed.to_bytes())
    return path


def constant(rows: int, latents: int, **extra) -> tuple[Codes, Tables]:
    codes = Codes.from_symbols(np.zeros((rows, latents), np.uint8), **extra)
    return codes, Tables((latents,), IndependentModel.fit(codes))


def test_a_megabyte_that_decodes_for_minutes_is_refused_when_it_is_opened(tmp_path):
    codes, tables = constant(1 << 18, 64)
    path = repeated(tmp_path / "a", codes, tables, 600)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(LimitExceeded, match=r"times as long .* trusted=True"):
        Archive(path)
    with Archive(path, trusted=True) as archive:
        assert (archive[[0, len(archive) - 1]].symbols() == 0).all()
        assert len(pickle.loads(pickle.dumps(archive))) == 600 << 18


def test_the_environment_lifts_the_limits(tmp_path, monkeypatch):
    codes, tables = constant(1 << 18, 64)
    path = repeated(tmp_path / "a", codes, tables, 600)
    monkeypatch.setenv(limits.TRUSTED, "0")
    with pytest.raises(LimitExceeded):
        open_archive(path)
    monkeypatch.setenv(limits.TRUSTED, "1")
    open_archive(path).close()
    with pytest.raises(LimitExceeded):
        open_archive(path, trusted=False)


def test_names_that_are_empty_count_too(tmp_path):
    codes, tables = constant(1 << 16, 1, names=[""] * (1 << 16))
    path = repeated(tmp_path / "a", codes, tables, 2500)
    assert path.stat().st_size < 1_500_000
    with pytest.raises(LimitExceeded, match="times as long"):
        Archive(path)


def test_a_wide_network_is_counted_before_it_decodes(tmp_path, monkeypatch):
    codes, _ = constant(1 << 12, 64)
    tables = Tables((64,), IndependentModel.nearest(np.full((64, 1), 0.5)))
    network = replace(make_network(64, hidden=4096), levels=np.ones(2, np.uint16))
    path = write(tmp_path / "a", codes, tables, fitted=[network], segment_rows=1 << 12)
    with Archive(path) as archive:
        assert [segment.head.model for segment in archive._segments] == [FITTED]
    monkeypatch.setattr(limits, "_WORK", 1 << 30)
    monkeypatch.setattr(limits, "_WORK_PER_BYTE", 1)
    monkeypatch.setattr("stochcl.compress.segment.decode_blocks", None)
    with Archive(path) as archive:
        for read in (archive.to_numpy, archive.verify, lambda: archive[5]):
            with pytest.raises(LimitExceeded, match="times as long"):
                read()


def test_rows_that_are_read_again_are_not_counted_again(tmp_path, monkeypatch):
    codes, tables = constant(1000, 16)
    path = write(tmp_path / "a", codes, tables, segment_rows=100)
    monkeypatch.setattr(limits, "_WORK", 2 * 1000 * 16 << 8)
    with Archive(path) as archive:
        for _ in range(30):
            archive._cache.put(0, np.zeros(0, np.uint8), 1 << 40)  # whatever was decoded is dropped
            archive.to_numpy()


def test_shards_share_what_a_file_may_ask_for(tmp_path, monkeypatch):
    codes, tables = constant(1 << 12, 64)
    shards = []
    for i in range(4):
        path = write(tmp_path / f"{i}.bin", codes, tables, segment_rows=1 << 12)
        shards.append(Shard(path.name, len(codes), 1, path.stat().st_size, sha256_of(path), 100 * len(codes)))
    write_manifest(tmp_path, Manifest(tuple(shards), "test", "ab" * 32))
    monkeypatch.setattr(limits, "_WORK", 2 * (1 << 12) * 64 << 8)
    monkeypatch.setattr(limits, "_WORK_PER_BYTE", 1)
    Archive(tmp_path / "0.bin").to_numpy()
    with FolderArchive(tmp_path) as folder, pytest.raises(LimitExceeded):
        folder.to_numpy()
    with FolderArchive(tmp_path, trusted=True) as folder:
        assert pickle.loads(pickle.dumps(folder)).to_numpy().shape == (4 << 12, 64)


def wide(dim: int) -> VectorDecoder:
    return VectorDecoder.from_arrays(np.zeros(1), np.ones(1), [(np.ones((dim, 1)), np.zeros(dim))])


def test_vectors_of_64_gigabytes_are_not_asked_for(tmp_path):
    codes, _ = constant(1 << 18, 1)
    tables = Tables((1,), IndependentModel.fit(codes), wide(1 << 16))
    path = repeated(tmp_path / "a", codes, tables, 1)
    with Archive(path) as archive:
        with pytest.raises(LimitExceeded, match=r"68,719,476,736 bytes.* in parts"):
            archive.to_vectors()
        assert archive.decoder.decode(archive[:5].symbols()).shape == (5, 1 << 16)


def test_vectors_that_take_hours_are_not_made(tmp_path, monkeypatch):
    codes, _ = constant(1000, 1)
    tables = Tables((1,), IndependentModel.fit(codes), wide(1 << 10))
    path = write(tmp_path / "a", codes, tables)
    monkeypatch.setattr(limits, "_WORK", 1000 << 9)
    monkeypatch.setattr(limits, "_WORK_PER_BYTE", 1)
    with Archive(path) as archive:
        for read in (archive.to_vectors, lambda: export(archive, tmp_path / "b.npz")):
            with pytest.raises(LimitExceeded, match="making its vectors"):
                read()
        export(archive, tmp_path / "b.npz", vectors=False)
    with Archive(path, trusted=True) as archive:
        assert archive.to_vectors().shape == (1000, 1 << 10)


def test_a_list_of_millions_of_skipped_images_is_refused():
    count = 1 << 22
    packed = zlib.compress(b"[" + b",".join([b'["",""]'] * count) + b"]", 9)
    assert len(packed) < 60_000
    with pytest.raises(LimitExceeded):
        for _ in iterate_skipped(packed):
            pass


def test_the_writer_keeps_to_the_number_of_skipped_images(monkeypatch):
    monkeypatch.setattr("stochcl.compress.index._MAX_PAIRS", 10)
    pairs = [(f"{i}.jpg", "it is empty") for i in range(30)]
    assert list(iterate_skipped(pack_skipped(pairs[:10]))) == pairs[:10]
    found = list(iterate_skipped(pack_skipped(pairs)))
    assert found == [*pairs[:9], ("...", "21 more could not be read")]


def test_deflated_tables_hold_no_more_numbers_than_memory_has_room_for():
    width, dim = 1 << 14, 1 << 14
    head = struct.pack("<III", width, dim, 1) + bytes([1])
    with pytest.raises(LimitExceeded, match="integers"):
        ResidualDecoder.from_bytes(head + bytes(100))


def test_what_is_written_here_of_ordinary_codes_is_far_from_the_limits(tmp_path):
    """A million images of 256 bits at the rate of a hundredth, named: the kind that is easiest to take for a bomb."""
    size = (1 << 20) * 3
    bound = limits.Limits(size)
    codes, _ = constant(1 << 14, 256)
    head, _ = write_segment(codes, [Candidate(make_tables(256).entropy)])
    bound.check_heads([replace(head, names=replace(head.names, size=1))] * 64, 256)
    network = make_network(256, hidden=512)
    for segment in range(64):
        bound.count(segment, head, 256, network)


def test_an_outline_of_a_stream_is_opened(tmp_path):
    codes, tables = constant(10, 4)
    out = io.BytesIO()
    with StreamWriter(out, make_header(tables), tables, embed_tables=True) as writer:
        writer.add(codes)
    with Archive(writer.outline()) as outline, Archive(io.BytesIO(out.getvalue())) as archive:
        assert outline.parts() == archive.parts()
