"""Files whose checksums are right and whose content is not: every reader refuses them, and no command makes more."""

import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from stochcl import framing
from stochcl.compress import Archive, edit
from stochcl.compress.append import Appender, repair
from stochcl.compress.header import DICTIONARY
from stochcl.compress.index import Index
from stochcl.compress.salvage import salvage
from stochcl.compress.transcode import Transcoding
from stochcl.errors import FormatError, StochclError
from stochcl.framing import MAGIC, PROLOGUE, crc, pack_varints
from tests import independent_reader
from tests.compress.making import make_codes, make_names, make_tables, write

TABLES = make_tables(3)
CODES = make_codes(12, 3, names=make_names(12), uncertainty=np.arange(12, dtype=np.float32) / 4)


def made(path, version: int) -> bytes:
    """Return an archive with everything in it that is forged below."""
    write(path, CODES[:10], TABLES, version=version, segment_rows=6, skipped=[("a.jpg", "it is empty")])
    with Appender(path) as out:
        out.add(CODES[10:])
    return path.read_bytes()


def with_index(data: bytes, **changes) -> bytes:
    with Archive(io.BytesIO(data)) as archive:
        index = archive._index
    return data[: index.start] + unchecked(replace(index, **changes))


def unchecked(index: Index) -> bytes:
    """Write an index whose numbers the writer would refuse."""
    limit, framing.MAX_SOURCE = framing.MAX_SOURCE, 1 << 64
    try:
        return index.to_bytes()
    finally:
        framing.MAX_SOURCE = limit


def with_header(data: bytes, change) -> bytes:
    """Change the JSON of a header; all that follows moves, and its checksum stands at the end again."""
    version, size = data[8], PROLOGUE.unpack_from(data)[3]
    with Archive(io.BytesIO(data)) as archive:
        index = archive._index
    text = hashes = b""
    if version >= 3:
        hashes = data[20:84]
        text = zlib.decompressobj(-15, DICTIONARY).decompress(data[84 : 20 + size])
    text = change(text or data[20 : 20 + size])
    if hashes:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        text = hashes + deflater.compress(text) + deflater.flush()
    head = PROLOGUE.pack(MAGIC, version, 0, len(text), 0)[:-4]
    by, checksum = len(text) - size, crc(head, text)
    moved = replace(
        index,
        tables=(index.tables[0] + by, index.tables[1]),
        segments=tuple((at + by, segment) for at, segment in index.segments[:2]),
        rows=10,
        retired=(),
        start=index.retired[0][0] + by,
        header_crc=checksum,
    )
    body = data[20 + size : index.retired[0][0]]
    return head + checksum.to_bytes(4, "little") + text + body + moved.to_bytes()


def with_retired(data: bytes, change) -> bytes:
    with Archive(io.BytesIO(data)) as archive:
        index = archive._index
    ((at, size, _),) = index.retired
    part = change(data[at : at + size])
    assert len(part) == size
    changed = data[:at] + part + data[at + size :]
    return changed[: index.start] + replace(index, retired=((at, size, crc(part)),)).to_bytes()


def with_uncertainty(data: bytes, first: bytes) -> bytes:
    """Put bytes over the beginning of the last segment's uncertainty."""
    with Archive(io.BytesIO(data)) as archive:
        index = archive._index
    at, head = index.segments[-1]
    start = at + head.parts_at + head.table.size + head.names.size + head.labels.size
    part = first if data[8] > 1 else first.ljust(head.entropy.size, b"\0")
    forged = head.with_parts([b"", data[start - head.names.size : start], b"", part], 0)
    chunk = (
        forged.start + data[start - head.names.size : start] + part + data[start + head.entropy.size : index.start]
    )
    segments = (*index.segments[:-1], (at, forged))
    return data[:at] + chunk + replace(index, segments=segments, start=at + len(chunk)).to_bytes()


def in_json(**changes):
    return lambda text: json.dumps(json.loads(text) | changes).encode()


def steps(exponent: int, least: int, value: int = 255) -> bytes:
    return struct.pack("<b", exponent) + pack_varints([least]) + zlib.compress(bytes([value] * 2))


def pairs(value: bytes) -> bytes:
    return zlib.compress(value)


DEEP = b"[" * 500 + b"]" * 500
ODD = {
    "1e999 in the header": lambda d: with_header(d, lambda text: text.replace(b'"size":8', b'"size":1e999')),
    "a long number": lambda d: with_header(d, lambda text: text.replace(b'"size":8', b'"size":' + b"9" * 4000)),
    "500 lists": lambda d: with_header(d, lambda text: text.replace(b'"size":8', b'"size":' + DEEP)),
    "500 lists in a key that is not known": lambda d: with_header(d, lambda text: text[:-1] + b',"x":' + DEEP + b"}"),
    "selection null": lambda d: with_header(d, in_json(selection=None)),
    "UTF-16": lambda d: with_header(d, lambda text: text.decode().encode("utf-16")),
    "UTF-8": lambda d: with_header(d, lambda text: text.replace(b'"test"', '"tést"'.encode())),
    "source bytes": lambda d: with_index(d, source_bytes=(1 << 64) - 1 if d[8] == 1 else (1 << 63) - 1),
    "source bytes just above": lambda d: with_index(d, source_bytes=framing.MAX_SOURCE + 1),
    "junk retired": lambda d: with_retired(d, lambda part: bytes(len(part))),
    "a retired index of other rows": lambda d: with_retired(d, other_index),
    "no JSON skipped": lambda d: with_index(d, skipped=pairs(b"not JSON")),
    "not deflated": lambda d: with_index(d, skipped=b"x"),
    "numbers skipped": lambda d: with_index(d, skipped=pairs(b'[["a",1]]')),
    "a form feed among the skipped": lambda d: with_index(d, skipped=pairs(b'[["a","b"],\x0c["a","b"]]')),
    "a high uncertainty": lambda d: with_uncertainty(d, steps(8, 255) if d[8] > 1 else struct.pack("<e", -1)),
    "an uncertainty of its own kind": lambda d: with_uncertainty(
        d, steps(12, 1 << 60) if d[8] > 1 else struct.pack("<e", float("nan"))
    ),
    "an infinite uncertainty": lambda d: with_uncertainty(
        d, steps(13, 0) if d[8] > 1 else struct.pack("<e", float("inf"))
    ),
}


def other_index(part: bytes) -> bytes:
    """Change the rows in an index, and seal it and its trailer again."""
    chunk, trailer = part[: -framing.TRAILER.size], list(framing.TRAILER.unpack(part[-framing.TRAILER.size :]))
    chunk = bytearray(chunk)
    chunk[framing.CHUNK.size] ^= 1
    trailer[2] = crc(bytes(chunk))
    return bytes(chunk) + framing.TRAILER.pack(*trailer)


def append(path, copy):
    copy.write_bytes(path.read_bytes())
    with Appender(copy) as out:
        out.add(CODES[:1])


EDITS = {
    "append": append,
    "merge": lambda a, b: edit.merge([Archive(a), Archive(a)], b),
    "split": lambda a, b: edit.split(Archive(a), b, 3, 11),
    "transcode": lambda a, b: Transcoding(Archive(a), embed=True).write(b, 3),
    "fewer latents": lambda a, b: Transcoding(Archive(a), embed=True).write(b, 2),
    "labels": lambda a, b: Transcoding(Archive(a), embed=True, labels=lambda names: ("x",) * len(names)).write(b, 3),
    "salvage": salvage,
}


@pytest.fixture(scope="module", params=[1, 2, 3])
def sound(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("odd") / "a", request.param)


@pytest.mark.parametrize("what", ODD)
def test_both_readers_refuse_it(sound, what):
    data = ODD[what](sound)
    with pytest.raises(FormatError):
        Archive(io.BytesIO(data)).verify()
    with pytest.raises((ValueError, LookupError, zlib.error, struct.error, RecursionError)):
        independent_reader.Archive(data)


@pytest.mark.parametrize("how", EDITS)
def test_a_sound_one_is_edited_to_sound_ones(sound, how, tmp_path):
    (tmp_path / "a").write_bytes(sound)
    EDITS[how](tmp_path / "a", tmp_path / "b")
    with Archive(tmp_path / "b") as archive:
        archive.verify()
    independent_reader.Archive((tmp_path / "b").read_bytes())


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("what", ODD)
def test_an_edit_refuses_it_or_makes_a_sound_one(sound, what, how, tmp_path):
    (tmp_path / "a").write_bytes(ODD[what](sound))
    try:
        EDITS[how](tmp_path / "a", tmp_path / "b")
    except StochclError:
        assert how == "append" or not (tmp_path / "b").exists()
        return
    finally:
        assert not (tmp_path / "b.lock").exists()
    if how == "append" and "uncertainty" in what:  # append neither reads nor copies the rows that are there
        return
    with Archive(tmp_path / "b") as archive:
        archive.verify()


def test_repair_refuses_an_odd_state_to_go_back_to(sound, tmp_path):
    path = tmp_path / "a"
    with Archive(io.BytesIO(sound)) as archive:
        (start, size, _), end = archive._index.retired[0], archive._index.start
    path.write_bytes(sound[:end])
    assert repair(path).bytes == start + size
    odd = with_index(sound[: start + size], source_bytes=framing.MAX_SOURCE + 1)
    path.write_bytes(odd + sound[start + size : end])
    with pytest.raises(FormatError, match="no earlier state"):
        repair(path)
