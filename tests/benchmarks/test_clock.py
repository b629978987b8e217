import pytest

from stochcl.benchmarks.clock import COLUMNS, Times, interleave, lines, ratio, row


def test_work_is_done_in_rounds_after_one_that_is_not_measured():
    order, told = [], []
    times = interleave(
        {name: lambda name=name: order.append(name) for name in "abc"}, 2, progress=lambda *said: told.append(said)
    )
    assert "".join(order) == "abcabcabc"
    assert {name: (len(t.core), len(t.wall)) for name, t in times.items()} == dict.fromkeys("abc", (2, 2))
    assert told[0] == (0, 9, "a")
    assert told[-1] == (8, 9, "c")


def test_the_device_is_waited_for_before_and_after():
    order = []
    interleave({"a": lambda: order.append("a")}, 1, wait=lambda: order.append("w"))
    assert "".join(order) == "wawwaw"


def test_memory_is_what_the_first_round_adds():
    held = []
    times = interleave({"little": lambda: None, "much": lambda: held.append(bytearray(b"x" * (64 << 20)))}, 1)
    assert times["much"].peak_bytes > 60 << 20
    assert times["little"].peak_bytes < 8 << 20


def test_ratios_are_taken_within_rounds():
    times = {"a": Times([1, 2, 3], [4, 4, 4]), "b": Times([1, 1, 1], [0, 0, 0]), "c": Times([4, 4, 2], [8, 4, 2])}
    assert ratio(times, ["a", "b"], "c") == {"median": 0.75, "low": 0.5, "high": 2.0}
    assert ratio(times, ["a"], "c", "wall") == {"median": 1.0, "low": 0.5, "high": 2.0}


def test_a_row_is_of_one_image():
    found = row("stage", Times([0.2, 0.4, 0.3], [1.0, 1.0, 1.0], 5_000_000), 100)
    assert (found["core_ms_each"], found["core_ms_each_low"], found["core_ms_each_high"]) == (3.0, 2.0, 4.0)
    assert found["each_per_core_second"] == pytest.approx(333.3)
    assert found["each_per_second"] == 100
    shown = lines({"rows": [found]})[0]
    assert len(shown) == len(COLUMNS)
    assert shown == ("stage", "3.000", "2.000", "4.000", "10.000", "333", "100", "5.0")
