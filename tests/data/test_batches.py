"""Batches: the same for any number of threads, in order, bounded ahead, and over when the consumer is."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.data import Entry, Failure, ImageSource, Preprocess
from stochcl.data.source import LOOK_AHEAD
from stochcl.errors import ImageError, SourceError, UsageError

SMALL = Preprocess(2)


class Counted(ImageSource):
    """Images of one shade each, decoded from nothing; some fail; it counts what was asked for."""

    kind = "counted"

    def __init__(self, total, failing=(), broken_at=None):
        self.entries = [Entry(f"{i:04d}", i, 0) for i in range(total)]
        self.rejected = []
        self.failing = set(failing)
        self.broken_at = broken_at
        self.asked = set()
        self.threads = set()

    def _image(self, i, preprocess):
        self.asked.add(i)
        self.threads.add(threading.current_thread().name)
        if i == self.broken_at:
            raise SourceError("the disk is gone")
        if i in self.failing:
            raise ImageError("it is bad")
        return np.full((preprocess.size, preprocess.size, 3), i % 256, np.uint8)

    def _read(self, i):
        raise NotImplementedError


def decoding_threads():
    return [t for t in threading.enumerate() if t.name.startswith("stochcl-decode")]


@given(
    total=st.integers(0, 70),
    batch_size=st.integers(1, 40),
    workers=st.integers(0, 4),
    start=st.integers(0, 80),
    failing=st.sets(st.integers(0, 69)),
)
@settings(deadline=None, max_examples=60)
def test_every_row_once_in_order(total, batch_size, workers, start, failing):
    source = Counted(total, failing)
    batches = list(source.batches(SMALL, batch_size=batch_size, workers=workers, start=start))
    assert [i for b in batches for i in b.rows] == list(range(start, total))
    good = [i for i in range(start, total) if i not in failing]
    assert [n for b in batches for n in b.names] == [f"{i:04d}" for i in good]
    assert [int(p[0, 0, 0]) for b in batches for p in b.images] == good
    assert [f for b in batches for f in b.failures] == [
        Failure(f"{i:04d}", "it is bad") for i in range(start, total) if i in failing
    ]
    assert sum(sum(b.sizes) for b in batches) == sum(good)
    for batch in batches:
        assert batch.images.shape == (len(batch.names), 2, 2, 3)
        assert batch.images.dtype == np.uint8
        assert len(batch.rows) <= batch_size
    assert not decoding_threads()


def test_one_worker_is_the_calling_thread():
    for workers in (0, 1):
        source = Counted(10)
        list(source.batches(SMALL, batch_size=4, workers=workers))
        assert source.threads == {threading.current_thread().name}


def test_without_threads_nothing_is_decoded_ahead():
    source = Counted(100)
    batches = source.batches(SMALL, batch_size=10)
    assert source.asked == set()
    next(batches)
    assert source.asked == set(range(10))
    batches.close()


def test_the_look_ahead_is_bounded():
    source = Counted(1000)
    batches = source.batches(SMALL, batch_size=10, workers=3)
    for taken in range(1, 6):
        next(batches)
        time.sleep(0.02)  # time enough to run ahead, were that allowed
        assert max(source.asked) < 10 * (taken + LOOK_AHEAD)
    batches.close()


def test_closing_ends_the_threads():
    source = Counted(100_000)
    batches = source.batches(SMALL, batch_size=10_000, workers=3)
    next(batches)
    batches.close()
    assert not decoding_threads()
    assert len(source.asked) < 100_000


def test_closing_waits_for_one_image_a_thread():
    gate = threading.Event()

    class Slow(Counted):
        def _image(self, i, preprocess):
            if i >= 16:
                gate.wait(10)
            return super()._image(i, preprocess)

    source = Slow(64)
    batches = source.batches(SMALL, batch_size=16, workers=2)
    next(batches)
    threading.Timer(0.1, gate.set).start()  # when the batches have been closed
    batches.close()
    assert len(source.asked) <= 16 + 2


def test_an_exception_of_the_consumer_ends_the_threads():
    batches = Counted(1000).batches(SMALL, batch_size=10, workers=3)
    next(batches)
    assert decoding_threads()
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    assert not decoding_threads()


def test_a_source_that_fails_raises_and_ends_the_threads():
    for workers in (0, 3):
        with pytest.raises(SourceError, match="the disk is gone"):
            list(Counted(1000, broken_at=500).batches(SMALL, batch_size=10, workers=workers))
    assert not decoding_threads()


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"workers": -1}, {"start": -1}])
def test_numbers_out_of_range_are_refused_at_once(numbers):
    with pytest.raises(UsageError, match="at least 1"):
        Counted(3).batches(SMALL, **numbers)
