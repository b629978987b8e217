import pytest

from stochcl.compress.segment_writer import Record
from stochcl.compress.writer import Journal

RECORDS = [
    Record(100, 1, 10, 12, 1000, [("a\udcff.png", "it is empty")]),
    Record(200, 2, 10, 22, 1000, []),
]


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.start({"latents": 6})
    for record in RECORDS:
        journal.append(record)
    journal.close()
    yield journal
    journal.close()


def test_facts_and_records_come_back(journal):
    assert journal.read() == ({"latents": 6}, RECORDS)


def test_a_torn_line_is_as_if_it_had_never_been_written(journal):
    data = journal.path.read_bytes()
    last = data.splitlines(keepends=True)[-1]
    for cut in range(1, len(last) + 1):
        journal.path.write_bytes(data[:-cut])
        assert journal.read() == ({"latents": 6}, RECORDS[:1])
        journal.append(RECORDS[1])
        journal.close()
        assert journal.path.read_bytes() == data


def test_a_damaged_line_ends_the_journal(journal):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + lines[1].replace(b"12", b"13") + lines[2])
    assert journal.read() == ({"latents": 6}, [])


@pytest.mark.parametrize("data", [b"", b"nonsense\n", b"00000000 {}\n"])
def test_a_journal_without_facts_is_damaged(journal, data):
    journal.path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        journal.read()


def test_removing_leaves_nothing(journal):
    journal.read()
    journal.remove()
    assert not journal.path.exists()
