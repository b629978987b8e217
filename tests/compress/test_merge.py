"""Joining and splitting: blocks move as they are, and only what a cut goes through is coded again."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.compress import Archive, Writer
from stochcl.compress.edit import check_alike, merge, stored_codes
from stochcl.compress.edit import split as write_part
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, fit_linear
from stochcl.errors import ChecksumMismatch, FormatError, ModelMismatch, OutputError, UsageError
from tests.compress.making import make_codes, make_header, make_names, make_tables, write

TABLES = make_tables(6)
CODES = make_codes(60, 6, names=make_names(60))


def blocks(path):
    """The bytes of every segment's blocks."""
    with Archive(path) as archive:
        return [segment.raw().blocks for segment in archive._segments]


def joined(paths, out, **options):
    archives = [Archive(path) for path in paths]
    check_alike(archives, [path.name for path in paths])
    merge(archives, out, **options)
    return out


def split(archive, outs, bounds):
    for out, (first, last) in zip(outs, pairwise(bounds), strict=True):
        write_part(archive, out, first, last)


def everything(path):
    """All rows, with what is stored beside them, after every byte has been checked."""
    with Archive(path) as archive:
        archive.verify()
        parts = list(stored_codes(archive))
        return Codes.concatenate(parts) if parts else None


def assert_same(found, expected):
    np.testing.assert_array_equal(found.packed, expected.packed)
    assert (found.names, found.labels) == (expected.names, expected.labels)
    if expected.uncertainty is None:
        assert found.uncertainty is None
    else:
        np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)


def made(rows, latents, alphabet, parts):
    extra = {
        "names": [f"{i % 3}/{i}\udcff" for i in range(rows)],
        "labels": [str(i % 3) for i in range(rows)],
        "uncertainty": np.arange(rows, dtype=np.float32),
    }
    return make_codes(rows, latents, alphabet, **{part: extra[part] for part in parts})


PARTS = st.sets(st.sampled_from(["names", "labels", "uncertainty"]))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 25), min_size=1, max_size=4), st.integers(1, 9), st.sampled_from([2, 5]),
    st.integers(1, 12), PARTS,
)  # fmt: skip
def test_what_is_joined_is_what_there_was_in_order(tmp_path_factory, sizes, latents, alphabet, rows, parts):
    folder = tmp_path_factory.mktemp("merge")
    codes, tables = made(sum(sizes), latents, alphabet, parts), make_tables(latents, alphabet)
    bounds = np.cumsum([0, *sizes])
    paths = [
        write(folder / f"{i}.bin", codes[a:b], tables, segment_rows=rows, skipped=[(f"bad{i}", "it is empty")])
        for i, (a, b) in enumerate(pairwise(bounds))
    ]
    out = joined(paths, folder / "out.bin")
    if sum(sizes):
        assert_same(everything(out), codes)
    assert blocks(out) == [block for path in paths for block in blocks(path)]
    with Archive(out) as archive:
        assert archive.skipped == [(f"bad{i}", "it is empty") for i in range(len(sizes))]
        assert archive.source_bytes == 100 * sum(sizes)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 40), st.integers(1, 9), st.sampled_from([2, 5]), st.integers(1, 12), PARTS,
    st.lists(st.integers(1, 39), max_size=3),
)  # fmt: skip
def test_what_is_split_is_what_there_was(tmp_path_factory, total, latents, alphabet, rows, parts, cuts):
    folder = tmp_path_factory.mktemp("split")
    codes = made(total, latents, alphabet, parts)
    path = write(folder / "a.bin", codes, make_tables(latents, alphabet), segment_rows=rows, skipped=[("bad", "why")])
    bounds = sorted({0, total, *(cut for cut in cuts if cut < total)})
    outs = [folder / f"{i}.bin" for i in range(len(bounds) - 1)]
    with Archive(path) as archive:
        split(archive, outs, bounds)
    before = blocks(path)
    source_bytes = 0
    for out, (a, b) in zip(outs, pairwise(bounds), strict=True):
        assert_same(everything(out), codes[a:b])
        whole = [i for i in range(len(before)) if a <= i * rows and min((i + 1) * rows, total) <= b]
        assert {before[i] for i in whole} <= set(blocks(out))
        with Archive(out) as archive:
            assert archive.skipped == ([("bad", "why")] if a == 0 else [])
            source_bytes += archive.source_bytes
    assert source_bytes == 100 * total
    assert_same(everything(joined(outs, folder / "again.bin")), codes)


def test_splitting_between_segments_codes_nothing_again(tmp_path, monkeypatch):
    path = write(tmp_path / "a.bin", CODES, TABLES, segment_rows=10)
    outs = [tmp_path / "1.bin", tmp_path / "2.bin"]
    import stochcl.compress.segment_writer as gathering

    with monkeypatch.context() as patch, Archive(path) as archive:
        patch.setattr(gathering, "write_segment", None)
        split(archive, outs, [0, 20, 60])
        merge([Archive(out) for out in outs], tmp_path / "again.bin")
    assert blocks(tmp_path / "again.bin") == blocks(path)


def fitted_archive(path, seed):
    """An archive whose codes are worth a model of their own."""
    codes = Codes.from_symbols(np.repeat(make_codes(300, 3, seed=seed).symbols(), 2, axis=1))
    models = [IndependentModel.fit(codes[:3]), fit_linear(codes, seed=seed)]
    with Writer(
        path, make_header(TABLES), TABLES, embed_tables=True, fitted=models, names=False, segment_rows=100
    ) as out:
        out.add(codes)
    return path, codes


def test_fitted_models_go_along_under_new_numbers(tmp_path):
    a, first = fitted_archive(tmp_path / "a", 0)
    b, second = fitted_archive(tmp_path / "b", 1)
    out = joined([a, b, a], tmp_path / "out.bin")
    assert_same(everything(out), Codes.concatenate([first, second, first]))
    with Archive(out) as archive:
        heads = [head for _, head in archive._index.segments]
        assert {head.model for head in heads} == {FITTED}
        assert [head.number for head in heads] == [0] * 3 + [1] * 3 + [0] * 3
        assert len(archive._index.fitted) == 2  # equal ones once, unused ones not at all
        outs = [tmp_path / "1", tmp_path / "2"]
        split(archive, outs, [0, 350, 900])
    assert_same(everything(outs[0]), Codes.concatenate([first, second[:50]]))
    assert_same(everything(outs[1]), Codes.concatenate([second[50:], first]))


def test_an_archive_that_was_appended_to_is_whole_again(tmp_path):
    from tests.compress.test_append import append

    path = write(tmp_path / "a.bin", CODES[:25], TABLES)
    append(path, CODES[25:])
    out = joined([path], tmp_path / "out.bin")
    assert_same(everything(out), CODES)
    with Archive(out) as archive:
        assert not archive._index.retired


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model_sha256": "cd" * 32}, ModelMismatch, "it was made by another model than a.bin"),
        ({"precision": "bf16"}, UsageError, "its encoder ran at another precision.*with the same"),
        ({"preprocess": {"size": 8, "fit": "pad"}}, UsageError, "its images were prepared in another way"),
        ({"latents": 3}, UsageError, "it has another number of latents than a.bin, .*transcode --latents"),
        ({"selection": (0, 1, 2, 3, 4, 5)}, UsageError, "it has other latents of the model"),
        ({"input_bytes": 1}, UsageError, "its inputs have another size"),
    ],
)
def test_archives_that_do_not_go_together_are_refused(tmp_path, change, error, said):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    b = tmp_path / "b.bin"
    header = replace(make_header(TABLES), **change)
    with Writer(b, header, TABLES, embed_tables=True) as out:
        out.add(CODES.prefix(header.latents))
    with pytest.raises(error, match=rf"^b\.bin: {said}"):
        joined([a, b], tmp_path / "out.bin")


def test_other_tables_are_refused(tmp_path):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    b = write(tmp_path / "b.bin", CODES, make_tables(6, decoder=False))
    with pytest.raises(ModelMismatch, match=r"^b\.bin: it has another decoder than a\.bin"):
        joined([a, b], tmp_path / "out.bin")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("names", None, "its rows have no names, and those of a.bin have"),
        ("labels", ("x",) * 60, "its rows have stored labels, and those of a.bin do not"),
        ("uncertainty", np.zeros(60, np.float32), "its rows have uncertainty"),
    ],
)
def test_rows_with_and_without_do_not_mix(tmp_path, field, value, said):
    a = write(tmp_path / "a.bin", CODES, TABLES)
    b = write(tmp_path / "b.bin", replace(CODES, **{field: value}), TABLES)
    with pytest.raises(UsageError, match=rf"^b\.bin: {said}"):
        joined([a, b], tmp_path / "out.bin")


def test_tables_are_embedded_where_one_has_them(tmp_path):
    a = write(tmp_path / "a.bin", CODES[:30], TABLES, embed=False)
    b = write(tmp_path / "b.bin", CODES[30:], TABLES)
    assert_same(everything(joined([a, b], tmp_path / "out.bin")), CODES)
    outs = [tmp_path / "1.bin", tmp_path / "2.bin"]
    with Archive(tmp_path / "out.bin") as archive:
        split(archive, outs, [0, 1, 60])
    assert [everything(out).names for out in outs] == [CODES.names[:1], CODES.names[1:]]


def test_what_is_damaged_is_not_carried_over(tmp_path):
    path = write(tmp_path / "a.bin", CODES, TABLES, segment_rows=10)
    with Archive(path) as archive:
        offset, head = archive._index.segments[3]
    data = bytearray(path.read_bytes())
    for place in (offset + 14, offset + head.parts_at, offset + head.size - 1, offset + int(head.block_offsets[0])):
        damaged = bytearray(data)
        damaged[place] ^= 1
        (tmp_path / "b.bin").write_bytes(damaged)
        with pytest.raises(FormatError, match=r"b\.bin: "):
            joined([tmp_path / "b.bin"], tmp_path / "out.bin")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "b.bin"]


def test_an_interrupted_merge_goes_on_to_the_same_bytes(tmp_path):
    paths = [write(tmp_path / f"{i}.bin", CODES[i * 20 : i * 20 + 20], TABLES, segment_rows=6) for i in range(3)]
    whole = joined(paths, tmp_path / "whole.bin").read_bytes()
    out = tmp_path / "out.bin"
    for rows in (6, 20, 32, 60):

        def stop(done, total, rows=rows):
            if done >= rows:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            joined(paths, out, progress=stop)
        with pytest.raises(UsageError, match="begun with another source"):
            joined(paths[::-1], out, resume=True)
        assert joined(paths, out, resume=True).read_bytes() == whole
        out.unlink()


def test_a_full_disk_is_an_output_error(tmp_path, monkeypatch):
    import stochcl.compress.writer as writing

    path = write(tmp_path / "a.bin", CODES, TABLES, segment_rows=6)

    def fail(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_all", fail)
    with pytest.raises(OutputError, match="no space left on device"):
        joined([path], tmp_path / "out.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_checksums_of_parts_are_looked_at(tmp_path):
    path = write(tmp_path / "a.bin", CODES, TABLES)
    with Archive(path) as archive:
        (segment,) = archive._segments
        head = segment.head
        other = replace(head, names=replace(head.names, crc=head.names.crc ^ 1))
        with pytest.raises((ChecksumMismatch, FormatError)):
            replace(segment, head=other).raw()


@pytest.mark.parametrize("journal", [None, b"", b"12345678 {"])
def test_a_run_that_ended_before_it_had_begun_is_begun(tmp_path, journal):
    path = write(tmp_path / "a.bin", CODES, TABLES)
    whole = joined([path], tmp_path / "whole.bin").read_bytes()
    out = tmp_path / "out.bin"
    (tmp_path / "out.bin.partial").write_bytes(whole[:30])
    if journal is not None:
        (tmp_path / "out.bin.partial.journal").write_bytes(journal)
    assert joined([path], out, resume=True).read_bytes() == whole
    assert not list(tmp_path.glob("*.partial*"))


def test_a_journal_that_was_lost_is_not_begun_anew_over_what_is_there(tmp_path):
    path = write(tmp_path / "a.bin", CODES, TABLES)
    whole = joined([path], tmp_path / "whole.bin").read_bytes()
    partial = tmp_path / "out.bin.partial"
    partial.write_bytes(whole)
    with pytest.raises(UsageError, match="its journal cannot be read"):
        joined([path], tmp_path / "out.bin", resume=True)
    assert partial.read_bytes() == whole
