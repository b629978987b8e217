"""What should be said of a source: which files it left out, and how many bits its 16-bit images use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.data.names import LABEL_ENDINGS, is_image_name
from stochcl.data.pixels import FULL_DEPTH, LEAST_DEPTH, OWN_DEPTH, depth_used
from stochcl.data.preprocess import quiet_pillow
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable


SAMPLED = 64
"""Images that say which depth those of a source have, at most."""

SAMPLED_BYTES = 256 << 20
_WIDE_ENDINGS = (".png", ".tif", ".tiff", ".apng")


def may_be_16_bit(name: str) -> bool:
    """Tell by its name whether an image may be one of 16 bits whose range its format does not say."""
    return name.lower().endswith(_WIDE_ENDINGS) or not is_image_name(name)


def common_depth(files: Iterable[bytes]) -> tuple[int, str]:
    """Return the bits that 16-bit greyscale images use together, and what is to be said of that.

    They are those of the greatest value in any of them; where there are none, each image that comes has its own.
    """
    with quiet_pillow():
        used = [bits for bits in map(depth_used, files) if bits is not None]
    if not any(used):
        return OWN_DEPTH, ""
    depth = max(*used, LEAST_DEPTH)
    dark = sum(0 < bits <= depth - _DARKER for bits in used)
    looked, white = f"of {plural(len(used), 'image')} looked at", (1 << depth) - 1
    if dark:
        return depth, (
            f"16-bit images here have different ranges: {dark:,} {looked} use a sixteenth of the others' and come "
            f"out nearly black where {white:,} is white; --depth {OWN_DEPTH} gives each its own range"
        )
    if depth < FULL_DEPTH:
        return depth, (
            f"16-bit images here use {depth} bits: no value {looked} is above {white:,}, which becomes white "
            "(recorded in the archive; --depth 16 has 65,535 white)"
        )
    return depth, ""


_DARKER = 4  # bits


def ending_of(name: str) -> str:
    """Return the ending of a name in lower case, or an empty string where it has none.

    Examples
    --------
    >>> ending_of("a.b/c.JPG_large"), ending_of("a.b/c")
    ('.jpg_large', '')
    """
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def counted(others: Counter[str]) -> str:
    """Say how many files there are by the endings of their names.

    Examples
    --------
    >>> from collections import Counter
    >>> counted(Counter({".txt": 2, "": 1}))
    '3 files whose names end otherwise (2 .txt, 1 without an ending)'
    """
    parts = [f"{count:,} {escape_name(ending) or 'without an ending'}" for ending, count in others.most_common(4)]
    more = ", ..." if len(others) > 4 else ""
    names = "name ends" if others.total() == 1 else "names end"
    return f"{plural(others.total(), 'file')} whose {names} otherwise ({', '.join(parts)}{more})"


def remark_on_others(others: Counter[str] | None, unlabelled: int) -> str:
    """Say which files of a source were left out, and which option reads them; some may label images without one."""
    if not others:
        return ""
    beside = [ending for ending in LABEL_ENDINGS if 2 * others[ending] >= unlabelled > 0]
    advice = ["--any-name takes those that hold images"]
    if beside:
        advice.append(f"--label-files={beside[0][1:]} takes the {beside[0]} file beside an image for its label")
    return f"left out {counted(others)}; {', '.join(advice)}"
