"""How much work and memory an archive may ask for, by its size: a file of kilobytes can hold work for hours.

What it can be asked for is legitimate (rows that are all alike cost next to nothing), so these are limits of the
caller and not of the format; docs/FORMAT.md has them. Work is counted in units of about 1/32 ns of one core: numpy
and constriction take 8 ns for a decision of independent symbols, and 20 ns + 0.03 ns a weight for one of a network.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.model import FITTED, OWN, EntropyModel, size_in_memory
from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stochcl.compress.segment import SegmentHead
    from stochcl.entropy.vectors import VectorDecoder

TRUSTED = "STOCHCL_TRUSTED"
"""The environment variable that lifts the limits for all archives of a process, and of those that it starts."""

_WORK, _WORK_PER_BYTE = 1 << 40, 1 << 18  # half a minute, and 8 seconds for every megabyte of the file
_MEMORY, _MEMORY_PER_BYTE = 1 << 33, 1 << 12
_DECISION = 1 << 8
_TEXT = 1 << 15
_ADVICE = (
    "; if you trust who made it, open it with trusted=True, set $STOCHCL_TRUSTED to 1, or call the command as "
    "`stochcl --trusted ...`"
)


class Limits:
    """What an archive of ``size`` bytes may ask for; nothing is refused where it is ``trusted``.

    By default that is so where the environment says it.
    """

    def __init__(self, size: int, trusted: bool | None = None) -> None:
        self._trusted = os.environ.get(TRUSTED, "") not in ("", "0") if trusted is None else trusted
        self._work, self._memory = _WORK + _WORK_PER_BYTE * size, _MEMORY + _MEMORY_PER_BYTE * size
        self._spent = 0
        self._counted: set[int] = set()

    def share(self, parts: int) -> None:
        """Let an archive that is one of several ask for its part of what does not depend on their sizes."""
        self._work -= _WORK - _WORK // parts

    def check_heads(self, heads: Iterable[SegmentHead], decisions: int) -> None:
        """Raise LimitExceeded if segments must take too long, whatever their models are."""
        texts = sum(head.rows * ((head.names.size > 0) + (head.labels.size > 0)) for head in heads)
        self._check_work(_DECISION * decisions * sum(head.rows for head in heads) + _TEXT * texts, "decoding it")

    def count(self, segment: int, head: SegmentHead, decisions: int, model: EntropyModel) -> None:
        """Count the decoding of a segment, the first time; raise LimitExceeded before it takes too long.

        A model that is the archive's own counts for each of its segments, as it may not be kept between them.
        """
        if segment not in self._counted:
            read = size_in_memory(model) if head.model in (OWN, FITTED) else 0
            spent = self._spent + head.rows * work_of_row(decisions, model) + _DECISION * read
            self._check_work(spent, "decoding it")
            self._counted.add(segment)
            self._spent = spent

    def check_vectors(self, rows: int, decoder: VectorDecoder | ResidualDecoder) -> None:
        """Raise LimitExceeded where the vectors of these rows take too long."""
        if isinstance(decoder, ResidualDecoder):
            products = decoder.words[0].shape[1] * (len(decoder.words) + decoder.dim)
        else:
            products = sum(weight.size for weight, _ in decoder.layers)
        self._check_work(rows * products, "making its vectors")

    def check_memory(self, rows: int, decoder: VectorDecoder | ResidualDecoder) -> None:
        """Raise LimitExceeded where one array of the vectors of these rows takes too much memory."""
        size = 4 * rows * decoder.dim
        if size > self._memory and not self._trusted:
            raise LimitExceeded(
                f"its vectors are {size:,} bytes, and more than {self._memory:,} are not allowed for a file of its "
                f"size; take them in parts{_ADVICE}"
            )

    def _check_work(self, work: int, what: str) -> None:
        if work > self._work and not self._trusted:
            raise LimitExceeded(f"{what} takes {work / self._work:,.1f} times as long as is allowed{_ADVICE}")


def work_of_row(decisions: int, model: EntropyModel) -> int:
    """Return the work of decoding one row: an array of all its decisions, and what a network makes of them."""
    if not isinstance(model, AutoregressiveModel):
        return _DECISION * decisions
    hidden = len(model.degrees)
    return decisions * (2 * _DECISION + decisions + 2 * hidden) + 128 * hidden
