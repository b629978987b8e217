"""Interruptions that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Put an interruption (Ctrl-C) off until it is asked for; a second one is not put off.

    Raised in the middle of a step it would leave weights, statistics and counter of different steps, and the
    checkpoint made of them would not go on as if nothing had happened.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    # Only the main thread may, and a program with a handler of its own keeps it.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
