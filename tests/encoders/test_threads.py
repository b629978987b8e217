"""Chunks side by side: the codes of one thread, and PyTorch's setting as it was."""

import threading

import numpy as np
import pytest
import torch

from stochcl.encoders.inference import side_by_side


@pytest.fixture
def cores():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 64, 65, 200, 300])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_codes_do_not_depend_on_how_many_cores_there_are(codec, rng, cores, size, precision):
    codec = codec.with_precision(precision)
    pixels = rng.integers(0, 256, (size, codec.size, codec.size, 3), np.uint8)
    cores(1)
    one = codec.encode_prepared(pixels)
    for count in (2, 3, 5):
        cores(count)
        many = codec.encode_prepared(pixels)
        assert torch.get_num_threads() == count
        np.testing.assert_array_equal(many.codes.packed, one.codes.packed)
        np.testing.assert_array_equal(many.codes.uncertainty, one.codes.uncertainty)
        np.testing.assert_array_equal(many.features, one.features)


@pytest.mark.parametrize(
    ("count", "chunks", "threads", "each"),
    [(1, 4, 1, 1), (2, 4, 2, 1), (3, 4, 2, 1), (8, 4, 4, 2), (8, 1, 1, 8), (8, 2, 2, 4)],
)
def test_cores_are_shared_out_and_never_more_than_there_are(cores, count, chunks, threads, each):
    cores(count)
    seen, met = set(), threading.Barrier(threads, timeout=10)

    def run(starts):
        if threads > 1 and starts[0] < threads:
            met.wait()  # so many are under way at a time
        seen.add((threading.current_thread().name, torch.get_num_threads()))

    side_by_side(run, range(chunks), count)
    assert {found for _, found in seen} == {each}
    assert len({name for name, _ in seen}) == threads
    assert torch.get_num_threads() == count


def test_an_error_leaves_the_setting_as_it_was(cores):
    def run(starts):
        raise ValueError(f"chunk {starts[0]}")

    cores(2)
    with pytest.raises(ValueError, match="chunk 0"):
        side_by_side(run, range(4), 2)
    assert torch.get_num_threads() == 2


def test_several_at_a_time_leave_the_setting_as_it_was(cores):
    cores(4)
    callers = [threading.Thread(target=side_by_side, args=(lambda starts: None, range(8), 4)) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert torch.get_num_threads() == 4
