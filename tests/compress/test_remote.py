"""Archives behind URLs: the same rows, a part of the bytes, other processes, and errors that say what to do."""

import multiprocessing
import pickle
import subprocess
import sys

import fsspec
import numpy as np
import pytest

import stochcl
from stochcl.compress import bytes as remote
from stochcl.errors import MissingExtraError, SourceError, Truncated, UsageError
from tests.compress.making import make_codes, make_names, make_tables, write
from tests.serving import served


@pytest.fixture
def data(tmp_path):
    codes = make_codes(4000, 256, names=make_names(4000))
    return codes, write(tmp_path / "a.bin", codes, make_tables(256)).read_bytes()


@pytest.fixture
def url(data):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/a.bin", data[1])
    yield "memory://bucket/a.bin"
    memory.rm_file("/bucket/a.bin")


@pytest.fixture
def fetched(monkeypatch):
    ranges = []
    fetch = remote.RemoteReader._fetch
    monkeypatch.setattr(remote.RemoteReader, "_fetch", lambda self, a, b: ranges.append((a, b)) or fetch(self, a, b))
    return ranges


def test_rows_are_those_of_the_file(data, url):
    codes, _ = data
    with stochcl.open(url) as archive:
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())
        assert archive.names == codes.names
        assert archive[[17, 3]].names == (codes.names[17], codes.names[3])
        archive.verify()


def test_local_urls_are_read_and_pickled(data, tmp_path):
    archive = pickle.loads(pickle.dumps(stochcl.open(f"file://{tmp_path / 'a.bin'}")))
    np.testing.assert_array_equal(archive[5:9].symbols(), data[0][5:9].symbols())


def test_one_row_takes_a_part_of_the_file(data, url, fetched, monkeypatch):
    monkeypatch.setattr(remote, "_PAGE", 4096)
    size = len(data[1])
    archive = stochcl.open(url)
    archive[1234]
    assert sum(b - a for a, b in fetched) < size / 3
    before = len(fetched)
    archive[1234]
    assert len(fetched) == before
    archive.to_numpy()
    assert sum(b - a for a, b in fetched) < 1.5 * size
    assert len({a for a, _ in fetched}) == len(fetched), "a page was read twice"


def symbols_of(archive):
    return archive[100:104].symbols().tolist()


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_it_goes_to_other_processes(data, tmp_path, how):
    archive = stochcl.open(f"file://{tmp_path / 'a.bin'}")
    archive[0]
    with multiprocessing.get_context(how).Pool(1) as pool:
        assert pool.apply(symbols_of, (archive,)) == symbols_of(archive)


def test_what_is_not_there_or_cut_short_is_said(data, url):
    with pytest.raises(SourceError, match=r"memory://gone\.bin: there is no such file"):
        stochcl.open("memory://gone.bin")
    fsspec.filesystem("memory").pipe_file("/bucket/cut.bin", data[1][:-100])
    with pytest.raises(Truncated, match=r"memory://bucket/cut\.bin: "):
        stochcl.open("memory://bucket/cut.bin")
    archive = stochcl.open(url)
    archive.close()
    with pytest.raises(ValueError, match="closed"):
        archive[0]


@pytest.mark.parametrize(("url", "extra"), [("s3://b/c.bin", "s3"), ("gs://b/c.bin", "gs")])
def test_the_missing_extra_is_named(monkeypatch, url, extra):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'stochcl\[{extra}\]'"):
        stochcl.open(url)


def test_an_unknown_protocol_is_a_usage_error():
    with pytest.raises(UsageError, match="no protocol nowhere://"):
        stochcl.open("nowhere://a/b")


def test_fsspec_is_imported_for_urls_only(tmp_path, data):
    code = f"import stochcl, sys; len(stochcl.open({str(tmp_path / 'a.bin')!r})); print('fsspec' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize(("ranges", "lengths"), [(True, True), (False, True), (False, False), (True, False)])
def test_servers_without_ranges_or_lengths_give_the_whole(data, tmp_path, ranges, lengths):
    codes, _ = data
    with served(tmp_path, ranges=ranges, lengths=lengths) as url, stochcl.open(f"{url}/a.bin") as archive:
        assert archive[17].names == (codes.names[17],)
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())
        archive.verify()
        again = pickle.loads(pickle.dumps(archive))
        np.testing.assert_array_equal(again[5:9].symbols(), codes[5:9].symbols())


@pytest.mark.parametrize("lengths", [True, False])
def test_a_server_without_ranges_is_asked_once(data, tmp_path, lengths):
    asked = []
    with served(tmp_path, ranges=False, lengths=lengths, asked=asked) as url, stochcl.open(f"{url}/a.bin") as archive:
        opened = len(asked)
        archive.to_numpy()
        archive[17]
    assert len(asked) == opened <= 3  # which includes what asks for the size
