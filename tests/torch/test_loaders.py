"""Codes in PyTorch's data loaders: the rows of the archive, once each, whoever reads them."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import stochcl
from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.errors import LabelsError, UsageError
from stochcl.torch import CodesDataset, CodesStream
from tests.compress.making import make_codes, make_names, make_tables, write

ROWS, LATENTS = 1003, 24


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    codes = make_codes(ROWS, LATENTS, names=make_names(ROWS))
    return write(tmp_path_factory.mktemp("a") / "a.bin", codes, make_tables(LATENTS), segment_rows=300)


@pytest.fixture(scope="module")
def archive(path):
    return stochcl.open(path)


def identified(path):
    """Options that make a label of every row's number, so that rows can be told apart."""
    return {"path": path, "labels": np.arange(ROWS), "output": "symbols"}


# The map-style data set


def test_rows_and_labels_are_the_archive_s(path, archive):
    data = CodesDataset(path)
    assert len(data) == ROWS
    assert data.classes == ("cat", "dog")
    x, y = data[5]
    np.testing.assert_array_equal(x, archive.to_vectors()[5])
    assert data.classes[int(y)] == archive.labels[5]
    x, _ = CodesDataset(path, output="symbols", latents=7)[-1]
    np.testing.assert_array_equal(x, archive.to_numpy(7)[-1])
    assert x.dtype == torch.uint8
    with pytest.raises(IndexError, match="no row 1,003"):
        data[ROWS]


def test_without_labels_a_row_is_a_tensor(path, archive):
    data = CodesDataset(path, labels=False, output="symbols")
    assert data.classes is None
    np.testing.assert_array_equal(torch.stack(data.__getitems__([9, 2, 9])), archive.to_numpy()[[9, 2, 9]])


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_loaders_give_every_row_once_shuffled(path, archive, keep_bytes, workers, context):
    if context == "spawn" and not keep_bytes:
        pytest.skip("starting processes takes seconds; once is enough")
    data = CodesDataset(**identified(path), keep_bytes=keep_bytes)
    data[3]  # opened before the workers are
    loader = DataLoader(
        data, batch_size=100, shuffle=True, num_workers=workers, multiprocessing_context=context,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    x, rows = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert rows.sort().values.tolist() == list(range(ROWS))
    assert rows.tolist() != list(range(ROWS))
    np.testing.assert_array_equal(x, archive.to_numpy()[rows])


def test_shuffling_decodes_every_block_once(path, monkeypatch):
    decoded = []
    decode = Archive._decode
    monkeypatch.setattr(Archive, "_decode", lambda self, group: decoded.extend(group) or decode(self, group))
    data = CodesDataset(path)
    for row in np.random.default_rng(0).permutation(ROWS).tolist():
        data[row]
    data.__getitems__([900, 2, 500])
    first = len(decoded)
    for row in range(ROWS):
        data[row]
    assert len(decoded) == first
    assert len(decoded) <= 2 * len(set(decoded))


def test_in_order_nothing_is_held(path):
    data = CodesDataset(path)
    for _ in DataLoader(data, batch_size=64):
        pass
    assert data._packed is None


@pytest.mark.parametrize("batch", [1, 7, 64, 2000])
def test_in_order_rows_are_read_ahead(path, archive, batch, monkeypatch):
    monkeypatch.setattr("stochcl.torch._AHEAD", 100)
    asked = []
    read = Archive._packed
    monkeypatch.setattr(Archive, "_packed", lambda self, index: asked.append(len(index)) or read(self, index))
    x, rows = (torch.cat(parts) for parts in zip(*DataLoader(CodesDataset(**identified(path)), batch), strict=True))
    assert rows.tolist() == list(range(ROWS))
    np.testing.assert_array_equal(x, archive.to_numpy())
    assert len(asked) == -(-ROWS // max(batch, 100 // batch * batch)) + 1  # and all of them at once, here


def test_it_is_pickled_without_what_it_holds(path):
    data = CodesDataset(path)
    data.__getitems__([900, 3])
    assert data._packed is not None
    small = pickle.dumps(CodesDataset(path, labels=False))
    again = pickle.loads(pickle.dumps(data))
    assert len(small) < 2000
    torch.testing.assert_close(again[17], data[17])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"output": "bits"}, UsageError, "output must be one of auto, symbols, vectors"),
        ({"latents": 99}, UsageError, "it has 24 latents, not 99"),
        ({"labels": [1, 2]}, LabelsError, "1,003 rows, and there are 2 labels"),
    ],
)
def test_what_does_not_fit_is_refused(path, options, error, said):
    for make in (CodesDataset, CodesStream):
        with pytest.raises(error, match=said):
            make(path, **options)


# The stream


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_workers_and_ranks_share_the_rows(path, archive, workers, context):
    seen, symbols = [], archive.to_numpy()
    for rank in range(3):
        if context == "spawn" and rank:
            continue
        stream = CodesStream(**identified(path), batch_size=64, seed=1, rank=rank, world=3, chunk=50, window=2)
        loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context)
        given = list(loader)
        assert len(given) == stream.batches(workers)
        assert sum(len(rows) for _, rows in given) == stream.rows
        for x, rows in given:
            np.testing.assert_array_equal(x, symbols[rows])
            seen += rows.tolist()
    assert len(set(seen)) == len(seen)
    if context != "spawn":
        assert sorted(seen) == list(range(ROWS))


def rows_of(stream, **options):
    return [int(row) for _, row in DataLoader(stream, batch_size=None, **options)]


def test_order_depends_on_seed_and_epoch_alone(path):
    stream = CodesStream(**identified(path), seed=4)
    first = rows_of(stream)
    assert first == rows_of(stream) == rows_of(CodesStream(**identified(path), seed=4))
    stream.set_epoch(1)
    second = rows_of(stream)
    assert sorted(second) == sorted(first)
    assert second != first != rows_of(CodesStream(**identified(path), seed=5))
    assert sum(abs(a - b) == 1 for a, b in pairwise(first)) < ROWS / 20


def test_workers_that_live_on_see_the_epoch(path):
    stream = CodesStream(**identified(path), seed=4)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    first = [int(row) for _, row in loader]
    stream.set_epoch(1)
    assert [int(row) for _, row in loader] != first


def test_unshuffled_rows_come_in_order(path):
    assert rows_of(CodesStream(**identified(path), shuffle=False)) == list(range(ROWS))


def test_even_ranks_give_equally_many_rows_and_leave_out_others_every_epoch(path):
    left = []
    for epoch in range(3):
        seen = []
        for rank in range(3):
            stream = CodesStream(**identified(path), rank=rank, world=3, chunk=50, even=True)
            stream.set_epoch(epoch)
            assert stream.rows == 300
            seen += rows_of(stream)
        assert len(set(seen)) == len(seen) == 900
        left.append(set(range(ROWS)) - set(seen))
    assert left[0] != left[1] != left[2]


def test_ranks_that_are_not_there_are_refused(path):
    with pytest.raises(UsageError, match="rank 3 of 3"):
        CodesStream(path, rank=3, world=3)
    with pytest.raises(UsageError, match="go together"):
        CodesStream(path, rank=0)
    with pytest.raises(UsageError, match="chunk, window and batch_size"):
        CodesStream(path, chunk=0)


def test_rank_and_world_are_those_of_the_running_group(path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        stream = CodesStream(**identified(path), seed=2)
        assert (stream.rank, stream.world) == (rank, 2)
        seen += rows_of(stream)
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("loader", [CodesDataset, CodesStream])
def test_rows_without_a_label_have_no_class(tmp_path, loader):
    codes = Codes.from_symbols(np.eye(5, 12, dtype=np.uint8), labels=["b", "", "a", "nan", ""])
    path = write(tmp_path / "a.bin", codes, make_tables(12))
    options = {"shuffle": False} if loader is CodesStream else {}
    data = loader(path, **options)
    assert data.classes == ("a", "b", "nan")
    assert [int(y) for _, y in data] == [1, -1, 0, 2, -1]
    with pytest.raises(LabelsError, match="2 of 5 rows have no label, the first of them row 1"):
        loader(path, unlabelled="refuse")
    with pytest.raises(UsageError, match="keep or refuse"):
        loader(path, unlabelled="skip")
    given = [[None, float("nan"), "x", torch.tensor(7), -1], [0, None, torch.tensor(2), -1, 1], [0.5, None, 1, 2, 3]]
    for labels, numbers in zip(given, ([-1, -1, 1, 0, -1], [0, -1, 2, -1, 1], [0.5, np.nan, 1, 2, 3]), strict=True):
        np.testing.assert_array_equal([float(y) for _, y in loader(path, labels=labels, **options)], numbers)
        with pytest.raises(LabelsError, match="no label"):
            loader(path, labels=labels, unlabelled="refuse")
    assert loader(path, labels=np.arange(5), unlabelled="refuse", **options).classes is None
