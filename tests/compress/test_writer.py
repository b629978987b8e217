"""Writing archives: what goes in comes back, and what cannot be written is said so."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from stochcl.codes import Codes
from stochcl.compress import Archive, Writer
from stochcl.entropy.model import INDEPENDENT as PREFIX
from stochcl.entropy.model import OWN
from stochcl.errors import OutputError, UsageError
from tests.compress.making import Stop, make_codes, make_header, make_names, make_tables, partials, write

TABLES = make_tables(6)
CODES = make_codes(40, 6, names=make_names(40), labels=["x"] * 40, uncertainty=np.linspace(0, 6, 40))


def test_rows_names_labels_and_uncertainty_come_back(tmp_path):
    with Archive(write(tmp_path / "a", CODES, TABLES)) as archive:
        codes = archive[:]
    np.testing.assert_array_equal(codes.packed, CODES.packed)
    assert codes.names == CODES.names
    assert codes.labels == CODES.labels
    np.testing.assert_allclose(codes.uncertainty, CODES.uncertainty, atol=1 / 64)


@pytest.mark.parametrize("step", [1, 7, 16, 40])
def test_the_bytes_do_not_depend_on_how_rows_arrive(tmp_path, step):
    whole = write(tmp_path / "whole", CODES, TABLES, segment_rows=16).read_bytes()
    assert write(tmp_path / "parts", CODES, TABLES, segment_rows=16, step=step).read_bytes() == whole


def test_an_archive_without_rows(tmp_path):
    with Archive(write(tmp_path / "a", CODES[:0], TABLES)) as archive:
        archive.verify()
        assert len(archive) == 0
        assert archive.to_numpy().shape == (0, 6)
        assert archive.to_vectors().shape == (0, 3)
        assert archive.names is None


def test_names_are_left_out_where_they_are_not_wanted(tmp_path):
    with Archive(write(tmp_path / "a", CODES, TABLES, names=False)) as archive:
        assert archive.names is None
        assert archive.labels == CODES.labels
        assert archive.parts()["names"] < 30


def test_a_table_of_its_own_is_embedded_exactly_when_it_repays_itself(tmp_path):
    odd = Codes.from_symbols(np.zeros((3000, 6), np.uint8))  # the tables expect something else
    few, many = odd[:20], odd
    with Archive(write(tmp_path / "few", few, TABLES)) as a, Archive(write(tmp_path / "many", many, TABLES)) as b:
        assert a._index.segments[0][1].model == PREFIX
        assert b._index.segments[0][1].model == OWN
        np.testing.assert_array_equal(b[:].packed, many.packed)
        b.verify()


@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_are_all_the_same_come_back(tmp_path, first):
    symbols = np.zeros((16_384, 16), np.uint8)
    symbols[0] = first  # coded last: what comes before it must not be for nothing
    with Archive(write(tmp_path / "a", Codes.from_symbols(symbols), make_tables(16))) as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), symbols)


def test_a_resumption_with_blocks_of_the_usual_size(tmp_path):
    """Their numbers of words take two bytes each in a segment's head."""
    tables, codes = make_tables(300), make_codes(1500, 300)
    whole = write(tmp_path / "whole", codes, tables, segment_rows=600).read_bytes()
    header = make_header(tables)
    with suppress(Stop), Writer(tmp_path / "a", header, tables, embed_tables=True, segment_rows=600) as writer:
        writer.add(codes[:1300], sizes=[100] * 1300)
        assert writer.rows == 1300
        raise Stop
    with Writer(tmp_path / "a", header, tables, embed_tables=True, segment_rows=600, resume=True) as writer:
        assert (writer.position, writer.rows) == (1200, 1200)
        assert max(writer.segments[0][1].words) > 127
        writer.add(codes[1200:], sizes=[100] * 300)
    assert (tmp_path / "a").read_bytes() == whole


def test_the_first_image_that_could_not_be_read_is_known(tmp_path):
    with Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer:
        writer.skip("one", "it is empty", position=0)
        writer.skip("two", "it is cut short", position=5)
        assert writer.first_skip == ("one", "it is empty")
        writer.add(CODES[:10], positions=range(1, 11))
        assert writer.first_skip == ("one", "it is empty")


@pytest.mark.parametrize("version", [1, 2])
def test_what_an_interruption_keeps_is_exact(tmp_path, version):
    """Uncertainty loses digits in a segment, and would lose others in the next."""
    rng = np.random.default_rng(0)
    codes = replace(CODES, uncertainty=rng.random(40).astype(np.float32) * np.repeat([1e-2, 1, 30, 500], 10))
    header = replace(make_header(TABLES), version=version)

    def add(path, rows, stop=False):
        with suppress(KeyboardInterrupt), Writer(path, header, TABLES, embed_tables=True, resume=True) as writer:
            writer.add(codes[writer.position : rows])
            if stop:
                raise KeyboardInterrupt

    add(tmp_path / "whole", 40)
    for rows in (7, 12, 33):
        add(tmp_path / "a", rows, stop=True)
    add(tmp_path / "a", 40)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_existing_output_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already; pass force=True"):
        write(path, CODES, TABLES)
    assert path.read_bytes() == b"precious"
    write(path, CODES, TABLES, force=True)
    Archive(path).verify()


def test_a_name_that_cannot_be_is_an_output_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name, message in [
        ("x" * 300, "file name too long"),
        ("x" * 250, "file name too long"),  # fits, but not with .partial after it
        ("file/a", "the folder to write to does not exist"),
    ]:
        with pytest.raises(OutputError, match=message):
            write(tmp_path / name, CODES, TABLES)
        assert partials(tmp_path) == ["file"]


def test_a_folder_as_output_is_refused(tmp_path):
    with pytest.raises(UsageError, match="this is a folder"):
        write(tmp_path, CODES, TABLES, force=True)


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="folder to write to does not exist"):
        write(tmp_path / "missing" / "a", CODES, TABLES)


def test_codes_of_another_shape_are_refused(tmp_path):
    with (
        Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True) as writer,
        pytest.raises(ValueError, match="6 latents of 2 values"),
    ):
        writer.add(make_codes(3, 5))


def test_finishing_twice_and_closing_inside_are_no_error(tmp_path):
    with Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True) as writer:
        writer.add(CODES)
        writer.finish()
    with Archive(tmp_path / "a") as archive:
        assert len(archive) == 40
    with Writer(tmp_path / "b", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer:
        writer.add(CODES[:10])
        writer.close()
        with pytest.raises(ValueError, match="closed"):
            writer.add(CODES[:10])
    assert partials(tmp_path) == ["a", "b.partial", "b.partial.journal"]


@pytest.mark.parametrize("field", ["names", "labels", "uncertainty"])
def test_rows_with_and_without_do_not_mix(tmp_path, field):
    for first, second in [(CODES, replace(CODES, **{field: None})), (replace(CODES, **{field: None}), CODES)]:
        with (
            suppress(Stop),
            Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer,
        ):
            writer.add(first[:15])
            writer.add(replace(CODES, names=None, labels=None, uncertainty=None)[:0])  # no rows, no matter
            with pytest.raises(ValueError, match="with and without names, labels or uncertainty"):
                writer.add(second[15:])
            raise Stop
        with (
            suppress(Stop),
            Writer(
                tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10, resume=True
            ) as writer,
        ):
            with pytest.raises(ValueError, match="with and without names, labels or uncertainty"):
                writer.add(second[10:])
            raise Stop
        for name in partials(tmp_path):
            (tmp_path / name).unlink()


def test_positions_and_sizes_may_be_arrays(tmp_path):
    with Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True, segment_rows=10) as writer:
        writer.add(CODES, positions=np.arange(40) * 2, sizes=np.arange(40))
        assert writer.position == 79
    with Archive(tmp_path / "a") as archive:
        assert archive.source_bytes == 780


@pytest.mark.parametrize(
    "options", [{"positions": range(39)}, {"sizes": [1]}, {"sizes": []}, {"positions": range(39), "sizes": range(39)}]
)
def test_positions_and_sizes_are_one_a_row(tmp_path, options):
    with (
        Writer(tmp_path / "a", make_header(TABLES), TABLES, embed_tables=True) as writer,
        pytest.raises(ValueError, match=r"zip|positions"),
    ):
        writer.add(CODES, **options)


def test_tables_that_the_header_does_not_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the header names"):
        Writer(tmp_path / "a", make_header(TABLES), make_tables(5), embed_tables=True)
    assert partials(tmp_path) == []


@pytest.mark.parametrize("segment_rows", [10, 100])
def test_every_further_interruption_keeps_what_those_before_kept(tmp_path, segment_rows):
    """Rows that waited are written anew over those of the run before, and full segments over both."""
    header, position = make_header(TABLES), 0
    for rows in (4, 7, 9, 13, 25, 28, 38):
        with (
            suppress(KeyboardInterrupt),
            Writer(
                tmp_path / "a", header, TABLES, embed_tables=True, segment_rows=segment_rows, resume=True
            ) as writer,
        ):
            assert writer.position == position
            writer.add(CODES[position:rows], sizes=[100] * (rows - position))
            position = rows
            raise KeyboardInterrupt
    with Writer(tmp_path / "a", header, TABLES, embed_tables=True, segment_rows=segment_rows, resume=True) as writer:
        writer.add(CODES[position:], sizes=[100] * (40 - position))
    whole = write(tmp_path / "whole", CODES, TABLES, segment_rows=segment_rows)
    assert (tmp_path / "a").read_bytes() == whole.read_bytes()


def test_a_full_segment_after_an_interruption_outlives_a_kill(tmp_path):
    header, options = make_header(TABLES), {"embed_tables": True, "segment_rows": 10, "resume": True}
    with suppress(KeyboardInterrupt), Writer(tmp_path / "a", header, TABLES, **options) as writer:
        writer.add(CODES[:4])
        raise KeyboardInterrupt
    with suppress(Stop), Writer(tmp_path / "a", header, TABLES, **options) as writer:
        writer.add(CODES[4:35])
        raise Stop  # keeps nothing but full segments, as a kill does
    with suppress(Stop), Writer(tmp_path / "a", header, TABLES, **options) as writer:
        assert writer.position == 30
        raise Stop
