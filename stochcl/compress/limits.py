"""Limits on the work and memory that an archive may need for its size: a small file can hold hours of work.

Such a file is legitimate (identical rows cost almost nothing), so these are limits of the reader, not of the format;
docs/FORMAT.md lists them. Work is counted in units of about 1/32 ns of one core: numpy and constriction take 8 ns for
a decision of independent symbols, and 20 ns + 0.03 ns a weight for one of a network.
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
"""Environment variable that lifts the limits for all archives of a process and its children."""

_WORK, _WORK_PER_BYTE = 1 << 40, 1 << 18  # half a minute, plus 8 seconds per megabyte of the file
_MEMORY, _MEMORY_PER_BYTE = 1 << 33, 1 << 12
_DECISION = 1 << 8
_TEXT = 1 << 15
_ADVICE = (
    "; if you trust who made it, open it with trusted=True, set $STOCHCL_TRUSTED to 1, or call the command as "
    "`stochcl --trusted ...`"
)


class Limits:
    """Limits for an archive of ``size`` bytes; none if ``trusted``.

    The environment variable sets the default of ``trusted``.
    """

    def __init__(self, size: int, trusted: bool | None = None) -> None:
        self._trusted = os.environ.get(TRUSTED, "") not in ("", "0") if trusted is None else trusted
        self._work, self._memory = _WORK + _WORK_PER_BYTE * size, _MEMORY + _MEMORY_PER_BYTE * size
        self._spent = 0
        self._counted: set[int] = set()

    def share(self, parts: int) -> None:
        """Divide the fixed part of the work limit among the shards of a folder."""
        self._work -= _WORK - _WORK // parts

    def check_heads(self, heads: Iterable[SegmentHead], decisions: int) -> None:
        """Raise LimitExceeded if segments take too long with any model."""
        texts = sum(head.rows * ((head.names.size > 0) + (head.labels.size > 0)) for head in heads)
        self._check_work(_DECISION * decisions * sum(head.rows for head in heads) + _TEXT * texts, "decoding it")

    def count(self, segment: int, head: SegmentHead, decisions: int, model: EntropyModel) -> None:
        """Count the work of decoding a segment, once; raise LimitExceeded before it is too much.

        A model stored in the archive counts for each of its segments, because it may not stay cached.
        """
        if segment not in self._counted:
            read = size_in_memory(model) if head.model in (OWN, FITTED) else 0
            spent = self._spent + head.rows * work_of_row(decisions, model) + _DECISION * read
            self._check_work(spent, "decoding it")
            self._counted.add(segment)
            self._spent = spent

    def check_vectors(self, rows: int, decoder: VectorDecoder | ResidualDecoder) -> None:
        """Raise LimitExceeded if decoding the vectors of these rows takes too long."""
        if isinstance(decoder, ResidualDecoder):
            products = decoder.words[0].shape[1] * (len(decoder.words) + decoder.dim)
        else:
            products = sum(weight.size for weight, _ in decoder.layers)
        self._check_work(rows * products, "making its vectors")

    def check_memory(self, rows: int, decoder: VectorDecoder | ResidualDecoder) -> None:
        """Raise LimitExceeded if an array of these rows' vectors takes too much memory."""
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
    """Return the work of decoding one row: its decisions, plus the units of a network."""
    if not isinstance(model, AutoregressiveModel):
        return _DECISION * decisions
    hidden = len(model.degrees)
    return decisions * (2 * _DECISION + decisions + 2 * hidden) + 128 * hidden
