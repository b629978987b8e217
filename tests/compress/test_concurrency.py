"""One archive, many readers: threads, processes that were forked or spawned, workers of a DataLoader."""

import inspect
import io
import multiprocessing
import os
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import stochcl.compress.archive
from stochcl.compress import Archive
from stochcl.compress.append import Appender
from stochcl.compress.bytes import RemoteReader
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.errors import FormatError
from tests.compress.making import make_chain, make_codes, make_names, make_network, make_tables, write

ROWS = 3000

# Python 3.12 warns of any fork beside threads, which numerical libraries have, too.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module", params=["independent", "network"])
def made(request, tmp_path_factory):
    """An archive of several segments of several blocks, and its codes."""
    path = tmp_path_factory.mktemp("made") / "a"
    extra = {"names": make_names(ROWS), "uncertainty": np.arange(ROWS) % 100}
    if request.param == "independent":
        codes = make_codes(ROWS, 100, **extra)
        return write(path, codes, make_tables(100), segment_rows=1300), codes
    codes = make_chain(ROWS, 24, **extra)
    tables = Tables((24,), IndependentModel.fit(codes), None, make_network(24, hidden=10))
    return write(path, codes, tables, segment_rows=700), codes


@pytest.fixture
def forgetful(monkeypatch):
    """Caches that hold one block and one segment's names, so that readers are always in each other's way."""
    monkeypatch.setattr(stochcl.compress.archive, "_CACHED_BYTES", 1)
    monkeypatch.setattr("stochcl.compress.columns._CACHED_BYTES", 1)


def check(archive, codes, seed, times=40):
    """Read rows here and there, and compare all that belongs to them."""
    rng = np.random.default_rng(seed)
    for _ in range(times):
        rows = rng.integers(0, len(codes), rng.integers(1, 4))
        found, expected = archive[rows], codes[rows]
        np.testing.assert_array_equal(found.packed, expected.packed)
        np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
        assert found.names == expected.names
        assert found.labels == tuple(name[:3] for name in expected.names)
    return os.getpid()


# A process that is spawned imports all anew, which takes seconds: once is enough.
started = pytest.mark.parametrize(
    ("made", "method"), [("independent", "fork"), ("network", "fork"), ("network", "spawn")], indirect=["made"]
)


@pytest.mark.usefixtures("forgetful")
def test_threads(made):
    path, codes = made
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Archive(path) as archive, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: check(archive, codes, seed), range(8)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("buffering", [-1, 0])
def test_threads_that_share_a_file_object(made, buffering):
    path, codes = made
    with path.open("rb", buffering=buffering) as file, ThreadPoolExecutor(8) as pool:
        archive = Archive(file)
        list(pool.map(lambda seed: check(archive, codes, seed), range(8)))


def in_process(archive, codes, seed):
    return check(archive, codes, seed)


@started
def test_processes(made, method):
    path, codes = made
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    with Archive(path) as archive:
        check(archive, codes, 0, 3)  # something is open and kept already
        with multiprocessing.get_context(method).Pool(2) as pool:
            done = pool.starmap(in_process, [(archive, codes, seed) for seed in range(4)])
        check(archive, codes, 1, 3)
    assert os.getpid() not in done


def forked(run):
    """Run something in a forked child that inherits all this process has; return what it says."""
    read, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = run() or "done"
        except BaseException as exc:
            said = f"{type(exc).__name__}: {exc}"
        os.write(write_end, said.encode()[:4000])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_a_thread_reads_inherits_no_lock(made):
    """The child has only the thread that forked: a lock that another one held would be held for ever."""
    path, codes = made
    with Archive(path) as archive:
        check(archive, codes, 0, 5)
        held, go_on = threading.Event(), threading.Event()
        caches = [archive._cache, archive._entropies, archive._columns["names"]._cache]

        def hold():
            for cache in caches:
                cache._lock.acquire()
            held.set()
            go_on.wait(60)
            for cache in caches:
                cache._lock.release()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        try:
            assert forked(lambda: check(archive, codes, 1, 5) and None) == "done"
        finally:
            go_on.set()
            thread.join()
        check(archive, codes, 2, 5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("which", ["tables", "_of_tables", "_columns", "_has_labels", "decoder"])
def test_a_fork_while_a_thread_computes_a_property_waits_for_nobody(made, monkeypatch, which):
    """Up to Python 3.11 functools.cached_property holds a lock meanwhile, which the child would inherit."""
    path, codes = made
    held, go_on, main = threading.Event(), threading.Event(), os.getpid()
    compute = inspect.getattr_static(Archive, which)._compute

    def slow(archive):
        if os.getpid() == main and threading.current_thread() is thread:
            held.set()
            go_on.wait(60)
        return compute(archive)

    monkeypatch.setattr(inspect.getattr_static(Archive, which), "_compute", slow)
    with Archive(path) as archive:
        thread = threading.Thread(target=lambda: getattr(archive, which))
        thread.start()
        try:
            assert held.wait(60)
            assert forked(lambda: check(archive, codes, 1, 5) and None) == "done"
        finally:
            go_on.set()
            thread.join()
        check(archive, codes, 2, 5)


def test_nothing_uses_the_property_that_has_a_lock():
    root = Path(stochcl.__file__).parent
    users = [
        path.name for path in root.rglob("*.py") if re.search(r"functools.*cached_prop", path.read_text("utf-8"))
    ]
    assert users == ["lazy.py"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_remote_reader_that_a_thread_waits_for_is_free_in_a_child(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    tables, codes = make_tables(6), make_codes(60, 6)
    path = write(tmp_path / "a", codes, tables)
    held, go_on, fetch = threading.Event(), threading.Event(), RemoteReader._fetch

    def slow(reader, start, end):
        if threading.current_thread() is not threading.main_thread():
            held.set()
            go_on.wait(60)
        return fetch(reader, start, end)

    monkeypatch.setattr(RemoteReader, "_fetch", slow)
    with Archive(f"file://{path}") as archive:
        thread = threading.Thread(target=archive._reader._fetch, args=(0, 9))
        thread.start()
        held.wait(60)
        try:
            assert forked(lambda: None if (archive[:].packed == codes.packed).all() else "other rows") == "done"
        finally:
            go_on.set()
            thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_file_object_has_one_position_for_parent_and_child(made):
    path, codes = made
    with path.open("rb") as file:
        archive = Archive(file)
        assert "by its path" in forked(lambda: check(archive, codes, 0, 1) and None)
        check(archive, codes, 0, 5)
    archive = Archive(io.BytesIO(path.read_bytes()))
    assert forked(lambda: check(archive, codes, 0, 5) and None) == "done"


def test_an_archive_comes_back_from_pickle_with_what_it_was_given(made):
    path, codes = made
    tables = Archive(path).tables
    archive = Archive(path, tables=[tables])
    again = pickle.loads(pickle.dumps(archive))
    archive.close()
    check(again, codes, 0, 5)
    assert pickle.loads(pickle.dumps(again[7:9])).names == codes.names[7:9]
    again.close()
    with pytest.raises(TypeError, match="by its path"):
        pickle.dumps(Archive(io.BytesIO(path.read_bytes())))


class Rows:
    """A data set as a training loop has it: an archive that was opened before its workers began."""

    def __init__(self, archive):
        self.archive = archive

    def __len__(self):
        return len(self.archive)

    def __getitem__(self, row):
        codes = self.archive[row]
        return row, codes.packed[0], codes.names[0], codes.labels[0]


# On a single core torch warns of more workers than one; it is their number that is tested.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@started
def test_workers_of_a_data_loader(made, method):
    data = pytest.importorskip("torch.utils.data")
    path, codes = made
    with Archive(path) as archive:
        archive[0]
        loader = data.DataLoader(
            data.Subset(Rows(archive), range(0, ROWS, 7)),
            batch_size=50,
            shuffle=True,
            num_workers=2,
            multiprocessing_context=method,
        )
        seen = []
        for rows, packed, names, labels in loader:
            expected = codes[rows.numpy()]
            np.testing.assert_array_equal(packed.numpy(), expected.packed)
            assert tuple(names) == expected.names
            assert [name[:3] for name in names] == list(labels)
            seen += rows.tolist()
    assert sorted(seen) == list(range(0, ROWS, 7))


def test_a_pickle_opens_no_other_archive(tmp_path):
    tables, codes = make_tables(6), make_codes(60, 6)
    path = write(tmp_path / "a", codes[:30], tables)
    other = write(tmp_path / "b", codes[10:40], tables)  # of the same header
    narrow = write(tmp_path / "c", codes[:30].prefix(3), tables)
    with Archive(path) as archive:
        pickled = pickle.dumps(archive)
    assert pickle.dumps(archive) == pickled  # also a closed one
    for foreign in (other, narrow):
        before = path.read_bytes()
        path.write_bytes(foreign.read_bytes())
        with pytest.raises(FormatError, match="another file"):
            pickle.loads(pickled)
        path.write_bytes(before)
    for i in range(30, 60, 10):
        with Appender(path) as out:
            out.add(codes[i : i + 10])
        with pickle.loads(pickled) as again:  # it is the same archive, which has grown
            np.testing.assert_array_equal(again.to_numpy(), codes[: i + 10].symbols())
