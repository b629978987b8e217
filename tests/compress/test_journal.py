import pytest

from stochcl.compress.journal import Journal, Record

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
    story = journal.read()
    assert (story.facts, story.records, story.rows) == ({"latents": 6}, RECORDS, 20)
    assert story.is_of({"latents": 6})
    assert not story.is_of({"latents": 7})


def test_a_torn_line_is_as_if_it_had_never_been_written(journal):
    data = journal.path.read_bytes()
    last = data.splitlines(keepends=True)[-1]
    for cut in range(1, len(last) + 1):
        journal.path.write_bytes(data[:-cut])
        story = journal.read()
        assert (story.facts, story.records) == ({"latents": 6}, RECORDS[: 2 if cut == 1 else 1])
        journal.start({"latents": 6}, RECORDS[:1])
        journal.append(RECORDS[1])
        journal.close()
        assert journal.path.read_bytes() == data


def test_a_damaged_line_ends_the_journal(journal):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + lines[1].replace(b"12", b"13") + lines[2])
    assert journal.read().records == []


@pytest.mark.parametrize("torn", [b"", b"\0" * 40])
def test_a_damaged_first_line_is_vouched_for_by_the_others(journal, torn):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(torn + b"\n" + lines[1] + lines[2])
    story = journal.read()
    assert (story.facts, story.records) == (None, RECORDS)
    assert story.is_of({"latents": 6})
    assert not story.is_of({"latents": 7})


def test_a_line_of_another_run_ends_the_journal(journal, tmp_path):
    other = Journal(tmp_path / "other")
    other.start({"latents": 7}, RECORDS)
    other.close()
    lines, others = (path.read_bytes().splitlines(keepends=True) for path in (journal.path, other.path))
    journal.path.write_bytes(lines[0] + lines[1] + others[2])
    assert journal.read().records == RECORDS[:1]


@pytest.mark.parametrize("data", [b"", b"nonsense\n", b"00000000 {}\n"])
def test_a_journal_of_which_nothing_is_left_is_nobodys(journal, data):
    journal.path.write_bytes(data)
    story = journal.read()
    assert (story.facts, story.run, story.records) == (None, None, [])
    assert not story.is_of({"latents": 6})


def test_removing_leaves_nothing(journal):
    journal.start({"latents": 6})
    journal.remove()
    assert not journal.path.exists()
