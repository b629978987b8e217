"""Salvaging damaged archives, and undoing interrupted appends."""

import io
import os
import random
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stochcl.compress.segment
from stochcl.compress import Archive, Writer, segment
from stochcl.compress.append import repair
from stochcl.compress.salvage import salvage
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import save_tables
from stochcl.errors import FormatError, OutputError, SourceError, UsageError
from stochcl.files import WriteLock
from stochcl.framing import BLOCK
from tests.compress.making import (
    make_chain,
    make_codes,
    make_header,
    make_names,
    make_network,
    make_residual_tables,
    make_tables,
    write,
)
from tests.making import every

ROWS = 120
NAMES = make_names(ROWS)


def rows_by_name(archive) -> dict:
    """Everything that belongs to each row."""
    codes = archive[:]
    uncertainty = [None] * len(codes) if codes.uncertainty is None else codes.uncertainty
    return {
        name: (row.tobytes(), label, bits)
        for name, row, label, bits in zip(codes.names, codes.packed, codes.labels, uncertainty, strict=True)
    }


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(segment, "_BLOCK_BITS", 100)


@pytest.fixture(params=["embedded", "outside", "fitted", "own table", "network"])
def made(request, tmp_path):
    """An archive of three segments of several blocks each, with names, labels and uncertainty, and its tables."""
    kind = request.param
    tables = make_tables(6, network=make_network(6)) if kind == "network" else make_tables(6)
    extra = {"names": NAMES, "labels": ["a", "b", ""] * (ROWS // 3), "uncertainty": np.arange(ROWS) / 8}
    codes = make_chain(ROWS, 6, **extra) if kind in ("network", "fitted") else make_codes(ROWS, 6, **extra)
    if kind == "own table":
        codes = replace(codes, packed=np.zeros_like(codes.packed))
        codes = replace(codes, packed=codes.packed | np.arange(ROWS, dtype=np.uint8)[:, None] % 2 * 4)
    fitted = [IndependentModel.fit(make_codes(50, 6, seed=5)), make_network(6)] if kind == "fitted" else []
    path = write(
        tmp_path / "a", codes, tables, embed=kind != "outside", segment_rows=40, step=40, fitted=fitted,
        skipped=[("bad.jpg", "it is bad")],
    )  # fmt: skip
    return path, tables


def saved(path, tables, data=None, **options):
    """Salvage an archive, whose bytes may be changed before, and check what comes of it against the whole one."""
    out = path.with_name("out")
    whole = rows_by_name(Archive(path, tables=[tables]))
    damaged = path
    if data is not None:
        damaged = path.with_name("damaged")
        damaged.write_bytes(data)
    done = salvage(damaged, out, tables=[tables], force=True, **options)
    with Archive(out, tables=[tables]) as archive:
        archive.verify()
        found = rows_by_name(archive)
        assert archive.header == Archive(path, tables=[tables]).header
    named = {name: row for name, row in found.items() if name}
    assert len(named) == done.rows - done.unnamed
    for name, (packed, label, uncertainty) in named.items():
        assert packed == whole[name][0]
        assert label == whole[name][1] or (done.unlabelled and not label)
        assert uncertainty == whole[name][2] or done.uncertainty_lost
    assert done.bytes == out.stat().st_size
    return done, found


def test_of_a_whole_archive_everything_is_saved_as_it_is(made):
    path, tables = made
    done, _ = saved(path, tables)
    assert (done.rows, done.rows_lost, done.lost, done.recoded, done.complete) == (ROWS, 0, [], 0, True)
    assert path.with_name("out").read_bytes() == path.read_bytes()
    assert Archive(path.with_name("out")).skipped == [("bad.jpg", "it is bad")]


def test_wherever_a_byte_is_wrong_all_other_rows_are_saved(made):
    path, tables = made
    data = path.read_bytes()
    archive = Archive(path, tables=[tables])
    heads = archive._index.segments
    block = max(head.rows_per_block for _, head in heads)
    behind = heads[0][0] if not archive._index.fitted else archive._index.fitted[0][0]
    for at in range(archive._header_size, len(data), 19):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        if any(offset <= at < offset + size for offset, size in archive._index.fitted):
            with suppress(FormatError):  # all of its segments may be coded with this model
                saved(path, tables, changed)
            continue
        done, _ = saved(path, tables, changed)
        inside = [(offset, head) for offset, head in heads if offset <= at < offset + head.size]
        if at < behind or at >= archive._index.start:  # tables are found elsewhere, and an index is not needed
            least = ROWS
        elif at >= inside[0][0] + inside[0][1].block_offsets[0]:
            least = ROWS - block
        elif at < inside[0][0] + inside[0][1].parts_at:
            least = ROWS  # the index has the head too
        elif at < inside[0][0] + inside[0][1].parts_at + inside[0][1].table.size:
            least = ROWS - inside[0][1].rows
        else:
            least = ROWS  # codes survive without their names, labels and uncertainty
        assert done.rows >= least, at
        healed = at < behind or any(at < offset + head.parts_at for offset, head in inside)
        assert done.complete <= healed, at
        if done.rows_lost is not None:
            assert done.rows + done.rows_lost == ROWS


def test_what_is_lost_is_named(tmp_path):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(ROWS, 6, names=NAMES), tables, segment_rows=40)
    offset, head = Archive(path)._index.segments[1]
    start = offset + int(head.block_offsets[1])
    data = bytearray(path.read_bytes())
    data[start + BLOCK.size] ^= 1
    path.write_bytes(data)
    done = salvage(path, tmp_path / "out")
    assert done.lost == [(start, start + BLOCK.size + 4 * head.words[1])]
    assert (done.rows_lost, done.recoded) == (head.rows_of(1), 40 - head.rows_of(1))
    names = Archive(tmp_path / "out").names
    first = 40 + head.rows_per_block
    assert tuple(names) == (*NAMES[:first], *NAMES[first + head.rows_of(1) :])


@pytest.mark.parametrize("seed", range(24))
def test_bytes_that_are_missing_or_came_between_cost_only_what_they_hit(made, seed):
    path, tables = made
    data = path.read_bytes()
    archive = Archive(path, tables=[tables])
    rng = random.Random(seed)
    at = rng.randrange(archive._index.segments[0][0], archive._index.start)
    if seed % 2:
        changed = data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    else:
        changed = data[:at] + data[at + rng.randrange(1, 40) :]
    done, _ = saved(path, tables, changed)
    assert done.rows >= 40
    assert done.rows_lost is None
    assert done.lost


def test_an_unfinished_archive_gives_its_finished_segments(tmp_path):
    tables = make_tables(6)
    codes = make_codes(ROWS, 6, names=NAMES)
    writer = Writer(tmp_path / "a", make_header(tables), tables, embed_tables=True, segment_rows=40)
    writer.add(codes[:110])
    writer.close()
    done = salvage(tmp_path / "a.partial", tmp_path / "out")
    assert (done.segments, done.rows, done.lost, done.complete) == (2, 80, [], True)
    assert Archive(tmp_path / "out")[:].packed.tobytes() == codes[:80].packed.tobytes()
    with (tmp_path / "a.partial").open("ab") as file:
        file.write(b"SEGMtorn")
    done = salvage(tmp_path / "a.partial", tmp_path / "out", force=True)
    assert (done.rows, done.rows_lost, done.complete) == (80, None, False)


def test_every_truncation_gives_what_is_before_it(tmp_path):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(ROWS, 6, names=NAMES), tables, segment_rows=40, embed=False)
    data, archive = path.read_bytes(), Archive(path, tables=[tables])
    ends = [offset + head.size for offset, head in archive._index.segments]
    cut = tmp_path / "cut"
    for end in range(0, len(data), 11):
        cut.write_bytes(data[:end])
        whole = 40 * sum(e <= end for e in ends)
        try:
            done = salvage(cut, tmp_path / "out", tables=[tables], force=True)
        except FormatError:
            assert not whole
            continue
        assert whole <= done.rows <= whole + 40


def test_without_its_header_nothing_can_be_done(tmp_path):
    path = write(tmp_path / "a", make_codes(9, 6), make_tables(6))
    data = path.read_bytes()
    path.write_bytes(data[:30] + b"?" + data[31:])
    with pytest.raises(FormatError, match="without its header nothing of an archive can be salvaged"):
        salvage(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_nothing_is_intact_nothing_is_written(tmp_path):
    path = write(tmp_path / "a", make_codes(9, 6), make_tables(6))
    offset = Archive(path)._index.segments[0][0]
    path.write_bytes(path.read_bytes()[:offset] + b"\0" * 100)
    with pytest.raises(FormatError, match="nothing behind its header is intact, so nothing was written"):
        salvage(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_an_empty_archive_is_saved(tmp_path):
    path = write(tmp_path / "a", make_codes(0, 6), make_tables(6))
    done = salvage(path, tmp_path / "out")
    assert (done.rows, done.complete) == (0, True)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_without_tables_segments_are_kept_unchecked(tmp_path):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(ROWS, 6, names=NAMES), tables, segment_rows=40)
    data = bytearray(path.read_bytes())
    data[Archive(path)._index.tables[0] + 40] ^= 1
    path.write_bytes(data)
    done = salvage(path, tmp_path / "out")
    assert (done.tables, done.rows, done.unchecked, done.complete) == ("lost", ROWS, ROWS, False)
    with Archive(tmp_path / "out", tables=[tables]) as archive:
        archive.verify()
        assert not archive._index.tables[1]
    done = salvage(path, tmp_path / "again", tables=[tables])
    assert (done.tables, done.unchecked) == ("elsewhere", 0)
    Archive(tmp_path / "again").verify()  # which has them again


def test_rows_with_a_table_of_their_own_are_saved_without_the_decoding_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "_BLOCK_BITS", 20)
    tables = make_tables(6)
    codes = replace(make_codes(ROWS, 6, names=NAMES), packed=np.arange(ROWS, dtype=np.uint8)[:, None] % 2 * 4)
    path = write(tmp_path / "a", codes, tables, embed=False, segment_rows=40)
    offset, head = Archive(path, tables=[tables])._index.segments[1]
    assert head.table.size
    assert len(head.words) > 1
    data = bytearray(path.read_bytes())
    data[offset + int(head.block_offsets[0]) + BLOCK.size] ^= 1
    path.write_bytes(data)
    done = salvage(path, tmp_path / "out")
    assert (done.tables, done.rows, done.recoded) == ("lost", ROWS - head.rows_of(0), 40 - head.rows_of(0))
    with Archive(tmp_path / "out", tables=[tables]) as archive:
        archive.verify()


def test_a_fitted_model_that_is_lost_takes_only_its_own_segments_along(tmp_path):
    tables = make_tables(6)
    models = [IndependentModel.fit(make_codes(50, 6, seed=s)) for s in (1, 2)]
    models[0] = IndependentModel.nearest(np.full((6, 1), 0.01))
    models[1] = IndependentModel.nearest(np.full((6, 1), 0.99))
    zeros, ones = (make_codes(1000, 6, names=[f"{n}{i}" for i in range(1000)]) for n in "01")
    zeros, ones = replace(zeros, packed=zeros.packed * 0), replace(ones, packed=ones.packed * 0 + 0xFC)
    with Writer(
        tmp_path / "a", make_header(tables), tables, embed_tables=True, segment_rows=1000, fitted=models
    ) as writer:
        writer.add(zeros)
        writer.add(ones)
    index = Archive(tmp_path / "a")._index
    assert [head.number for _, head in index.segments] == [0, 1]
    data = bytearray((tmp_path / "a").read_bytes())
    data[index.fitted[0][0] + 20] ^= 1
    for end in (None, -1):  # with the index and without it
        (tmp_path / "b").write_bytes(data[:end])
        done = salvage(tmp_path / "b", tmp_path / "out", force=True)
        with Archive(tmp_path / "out") as archive:
            archive.verify()
            assert archive[:].packed.tobytes() == ones.packed.tobytes()
            assert [head.number for _, head in archive._index.segments] == [0]
        assert done.rows == 1000


def test_outputs_that_are_there_are_not_touched(tmp_path):
    path = write(tmp_path / "a", make_codes(9, 6), make_tables(6))
    data = path.read_bytes()
    (tmp_path / "link").hardlink_to(path)
    (tmp_path / "out").write_bytes(b"mine")
    for out, message in (
        ("a", "would replace the source"), ("link", "would replace the source"), ("out", "force=True"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            salvage(path, tmp_path / out)
    with pytest.raises(UsageError, match="would replace the source"):
        salvage(path, tmp_path / "link", force=True)
    with pytest.raises(UsageError, match="this is a folder"):
        salvage(path, tmp_path, force=True)
    with pytest.raises(SourceError, match="there is no such file"):
        salvage(tmp_path / "none", tmp_path / "out", force=True)
    assert (path.read_bytes(), (tmp_path / "out").read_bytes()) == (data, b"mine")


def fail_fsync(monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_failed_fsync_is_an_error_and_the_old_output_is_still_there(tmp_path, monkeypatch):
    path = write(tmp_path / "a", make_codes(9, 6), make_tables(6))
    (tmp_path / "out").write_bytes(b"old")
    fail_fsync(monkeypatch)
    with pytest.raises(OutputError, match="it cannot be written: input/output error"):
        salvage(path, tmp_path / "out", force=True)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_full_disk_is_an_error_and_the_old_output_is_still_there(tmp_path, monkeypatch):
    path = write(tmp_path / "a", make_codes(ROWS, 6, names=NAMES), make_tables(6))
    (tmp_path / "out").write_bytes(b"old")
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OutputError, match="it cannot be written: file too large"):
            salvage(path, tmp_path / "out", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("blocks", ["whole", "damaged"])
@pytest.mark.parametrize("which", ["names", "labels", "entropy"])
def test_codes_survive_without_what_stands_beside_them(tmp_path, monkeypatch, which, blocks, version):
    monkeypatch.setattr(stochcl.compress.segment, "_BLOCK_BITS", 300)
    codes = make_codes(300, 8, names=make_names(300), labels=["x", "y"] * 150, uncertainty=np.arange(300) / 8)
    path = write(tmp_path / "a", codes, make_tables(8), segment_rows=100, version=version)
    data = bytearray(path.read_bytes())
    with Archive(path) as archive:
        offset, head = archive._index.segments[1]
    at = offset + head.parts_at
    for name in ("table", "names", "labels", "entropy"):
        if name == which:
            data[at] ^= 1
        at += getattr(head, name).size
    if blocks == "damaged":
        data[at + 14] ^= 1  # the first block
    path.write_bytes(data)
    done = salvage(path, tmp_path / "b")
    lost = head.rows_per_block if blocks == "damaged" else 0
    kept = np.r_[0:100, 100 + lost : 300]
    with Archive(tmp_path / "b") as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols()[kept])
        names = ["" if which == "names" and 100 <= i < 200 else codes.names[i] for i in kept]
        labels = ["" if which == "labels" and 100 <= i < 200 else codes.labels[i] for i in kept]
        assert (list(archive.names), list(archive.labels)) == (names, labels)
        assert (archive.uncertainty is None) == (which == "entropy")
    rows = 100 - lost
    assert (done.unnamed, done.unlabelled) == (rows * (which == "names"), rows * (which == "labels"))
    assert (done.rows, done.rows_lost, done.uncertainty_lost) == (300 - lost, lost, which == "entropy")
    assert not done.complete
    assert done.lost


# Repair


@pytest.fixture
def appended():
    """An archive that was appended to, and where the earlier one ends."""
    data = (Path(__file__).parents[1] / "golden" / "appended.bin").read_bytes()
    offset, size, _ = Archive(io.BytesIO(data))._index.retired[-1]
    return data, offset + size


def test_repair_goes_back_from_anywhere_in_an_append(appended, tmp_path):
    data, end = appended
    path = tmp_path / "a"
    rows = len(Archive(io.BytesIO(data[:end])))
    for cut in sorted({*range(end + 1, len(data), every(4)), len(data) - 1}):
        path.write_bytes(data[:cut])
        assert len(Archive(path)) == rows
        done = repair(path)
        assert (done.rows, done.bytes, done.cut) == (rows, end, cut - end)
        assert path.read_bytes() == data[:end]


def test_repair_leaves_what_it_cannot_better(appended, tmp_path):
    data, end = appended
    path = tmp_path / "a"
    for state in (data, data[:end]):
        path.write_bytes(state)
        with pytest.raises(UsageError, match="nothing to repair: it ends as a complete archive does"):
            repair(path)
        assert path.read_bytes() == state
    start = Archive(io.BytesIO(data))._index.start
    first = Archive(io.BytesIO(data[:end]))._index.start
    for state, message in (
        (data[: end - 1], "stochcl verify --salvage"),  # never finished
        (data[: first + 5] + b"?" + data[first + 6 : start], "stochcl verify --salvage"),  # damaged before
        (data[: start + 20] + b"?" + data[start + 21 :], "the index is damaged"),  # not interrupted
        (data[:25] + b"?" + data[26:-1], "the header is damaged"),
    ):
        path.write_bytes(state)
        with pytest.raises(FormatError, match=message):
            repair(path)
        assert path.read_bytes() == state
    with pytest.raises(SourceError, match="there is no such file"):
        repair(tmp_path / "none")


def test_repair_finds_an_end_far_back(appended, tmp_path):
    data, end = appended
    path = tmp_path / "a"
    path.write_bytes(data[:end] + b"SCL\x89END" * 500_000)
    assert repair(path).bytes == end


def test_repair_that_fails_leaves_the_file(appended, tmp_path, monkeypatch):
    data, _ = appended
    path = tmp_path / "a"
    path.write_bytes(data[:-1])
    fail_fsync(monkeypatch)
    with pytest.raises(OutputError, match="it cannot be written: input/output error"):
        repair(path)
    monkeypatch.undo()


def test_repair_waits_for_nobody(appended, tmp_path):
    pytest.importorskip("fcntl")
    data, _ = appended
    path = tmp_path / "a"
    path.write_bytes(data[:-1])
    with WriteLock(path, "a"), pytest.raises(OutputError, match="is writing to it"):
        repair(path)
    assert path.read_bytes() == data[:-1]


def test_tables_beside_the_archive_are_found(tmp_path):
    tables = make_tables(8)
    path = write(tmp_path / "a", make_codes(40, 8), tables, embed=False)
    save_tables(tables, tmp_path)
    saved = salvage(path, tmp_path / "b")
    assert (saved.tables, saved.unchecked, saved.rows) == ("elsewhere", 0, 40)


def test_deflated_tables_in_the_archive_are_known_by_their_name(tmp_path):
    """Their name is the hash of what they are before deflation, not of the bytes in the file."""
    codes, tables = make_codes(40, 7), make_residual_tables()
    path = write(tmp_path / "a", codes, tables)
    saved = salvage(path, tmp_path / "b")
    assert (saved.tables, saved.unchecked, saved.rows) == ("intact", 0, 40)
    with Archive(tmp_path / "b") as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())
