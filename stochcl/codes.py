"""Codes, the value that all parts of stochcl exchange."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray


MAX_ALPHABET = 4096
"""Maximum number of values of a latent."""


def bits_per_symbol(alphabet: int) -> int:
    """Return the binary decisions per symbol of this alphabet, ``ceil(log2 alphabet)``.

    Examples
    --------
    >>> [bits_per_symbol(k) for k in (2, 3, 4, 256)]
    [1, 2, 2, 8]
    """
    if not 2 <= alphabet <= MAX_ALPHABET:
        raise ValueError(f"an alphabet has 2 to {MAX_ALPHABET} symbols, not {alphabet}")
    return (alphabet - 1).bit_length()


def symbol_dtype(alphabet: int) -> type[np.uint8] | type[np.uint16]:
    """Return the dtype of this alphabet's symbols: uint8 up to 256 values, else uint16."""
    return np.uint8 if alphabet <= 256 else np.uint16


@dataclass(frozen=True, eq=False)
class Codes:
    """Discrete latents of N images, packed, one row per image, with optional names, labels and uncertainty.

    Parameters
    ----------
    packed : ndarray of uint8, shape (N, ceil(latents * bits / 8))
        The rows' binary decisions, most significant bit first within a byte. A symbol is
        ``bits_per_symbol(alphabet)`` decisions, most significant first; unused bits at a row's end are 0.
    latents : int
        D, the number of latents per row.
    alphabet : int
        K, the number of values per latent (2 for Bernoulli latents).
    names : sequence of str, optional
        One per row: POSIX path relative to the source; bytes that are not UTF-8 as surrogate escapes. A tuple, or,
        for rows from an archive, a view that reads them on demand.
    labels : sequence of str, optional
        One per row; an empty string for a row without. As ``names``.
    uncertainty : ndarray of float32, shape (N,), optional
        Posterior entropy of each row, in bits; for residual codes, of the first word.

    Raises
    ------
    ValueError
        If the shapes do not agree.

    Examples
    --------
    >>> codes = Codes.from_symbols([[1, 0, 1], [0, 0, 1]], names=["a.png", "b.png"])
    >>> len(codes), codes.latents, codes.packed.tolist()
    (2, 3, [[160], [32]])
    >>> codes[1:].symbols().tolist()
    [[0, 0, 1]]
    """

    packed: NDArray[np.uint8]
    latents: int
    alphabet: int = 2
    names: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    uncertainty: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        width = -(-self.latents * bits_per_symbol(self.alphabet) // 8)
        if self.packed.dtype != np.uint8 or self.packed.ndim != 2 or self.packed.shape[1] != width:
            raise ValueError(
                f"{self.latents} latents of {self.alphabet} values pack into uint8 rows of {width} bytes, "
                f"not {self.packed.dtype} of shape {self.packed.shape}"
            )
        for field in ("names", "labels", "uncertainty"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.packed):
                raise ValueError(f"{len(self.packed)} rows but {len(value)} {field}")

    @classmethod
    def from_symbols(
        cls,
        symbols: ArrayLike,
        *,
        alphabet: int = 2,
        names: Iterable[str] | None = None,
        labels: Iterable[str] | None = None,
        uncertainty: ArrayLike | None = None,
    ) -> Codes:
        """Pack integer symbols of shape (N, D).

        Raises
        ------
        ValueError
            If a symbol is not an integer, lies outside ``0 .. alphabet - 1``, or ``symbols`` is not two-dimensional.
        """
        bits_per_symbol(alphabet)
        array = np.asarray(symbols)
        if array.ndim != 2:
            raise ValueError(f"symbols have shape (N, D), not {array.shape}")
        if array.size and array.dtype.kind not in "iub":  # 0.9 would silently become 0
            raise ValueError(f"symbols are integers, not {array.dtype}")
        if array.size and (array.min() < 0 or array.max() >= alphabet):
            raise ValueError(f"symbols lie in 0..{alphabet - 1}; found {array.min()}..{array.max()}")
        decisions = symbols_to_decisions(array.astype(symbol_dtype(alphabet)), alphabet)
        return cls(
            packed=np.packbits(decisions, axis=1),
            latents=array.shape[1],
            alphabet=alphabet,
            names=None if names is None else tuple(names),
            labels=None if labels is None else tuple(map(label_text, labels)),
            uncertainty=None if uncertainty is None else np.asarray(uncertainty, dtype=np.float32),
        )

    def __len__(self) -> int:
        return len(self.packed)

    def __repr__(self) -> str:
        parts = [name for name in ("names", "labels", "uncertainty") if getattr(self, name) is not None]
        beside = f", with {', '.join(parts)}" if parts else ""
        return f"<Codes: {len(self):,} rows of {self.latents:,} latents of {self.alphabet:,} values{beside}>"

    @property
    def decisions_per_row(self) -> int:
        """Binary decisions per row: latents times bits per symbol."""
        return self.latents * bits_per_symbol(self.alphabet)

    def decisions(self) -> NDArray[np.uint8]:
        """Return the binary decisions, 0 or 1, shape (N, decisions_per_row), uint8."""
        return np.unpackbits(self.packed, axis=1, count=self.decisions_per_row)

    def symbols(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Return the symbols, shape (N, D), uint8 (uint16 for alphabets above 256)."""
        return decisions_to_symbols(self.decisions(), self.alphabet)

    def __getitem__(self, rows: int | np.integer | slice | Sequence[int] | NDArray[np.generic]) -> Codes:
        """Return the chosen rows as ``Codes``; an integer gives one row.

        Raises
        ------
        IndexError
            If there is no such row, or rows are chosen by anything other than an integer, a slice, a list of
            integers, or a mask of all rows.
        """
        # numpy raises its IndexError and handles negative indices
        index = np.arange(len(self))[[int(rows)] if isinstance(rows, int | np.integer) else rows]
        if index.ndim != 1:
            raise IndexError("rows are chosen by an integer, a slice, a list of integers, or a mask of all rows")

        def take(values: Sequence[str] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[i] for i in index)

        return replace(
            self,
            packed=self.packed[index],
            names=take(self.names),
            labels=take(self.labels),
            uncertainty=None if self.uncertainty is None else self.uncertainty[index],
        )

    def prefix(self, latents: int) -> Codes:
        """Keep the first ``latents`` latents of every row: also a code if the model is nested.

        Raises
        ------
        ValueError
            If ``latents`` is not in ``1 .. self.latents``.
        """
        if not 1 <= latents <= self.latents:
            raise ValueError(f"a prefix has 1 to {self.latents} latents, not {latents}")
        kept = latents * bits_per_symbol(self.alphabet)
        packed = self.packed[:, : -(-kept // 8)].copy()
        if kept % 8:
            packed[:, -1] &= np.uint8(0xFF << (8 - kept % 8) & 0xFF)
        return replace(self, packed=packed, latents=latents)

    @staticmethod
    def concatenate(parts: Sequence[Codes]) -> Codes:
        """Join codes of the same shape, row after row; names, labels and uncertainty are kept if all parts have them.

        Raises
        ------
        ValueError
            If ``parts`` is empty or their latents or alphabets differ.
        """
        if not parts:
            raise ValueError("nothing to concatenate")
        first = parts[0]
        if any((p.latents, p.alphabet) != (first.latents, first.alphabet) for p in parts):
            raise ValueError("codes of different shapes cannot be joined")

        def join(field: str) -> tuple[str, ...] | None:
            values = [getattr(p, field) for p in parts]
            return None if any(v is None for v in values) else tuple(s for v in values for s in v)

        uncertainties = [p.uncertainty for p in parts if p.uncertainty is not None]
        return replace(
            first,
            packed=np.concatenate([p.packed for p in parts]),
            names=join("names"),
            labels=join("labels"),
            uncertainty=np.concatenate(uncertainties) if len(uncertainties) == len(parts) else None,
        )


def plain_label(label: Any) -> Any:
    """Return the number in an array or tensor without dimensions; return anything else unchanged.

    Examples
    --------
    >>> plain_label(np.array(3)), plain_label("cat")
    (3, 'cat')
    """
    return label.item() if getattr(label, "shape", None) == () and hasattr(label, "item") else label


_MOST_WHOLE = 2**53  # larger floats stand for several whole numbers


def label_text(label: Any) -> str:
    """Return a label as text, empty for None, NaN, masked, a negative class number or blanks.

    Text is kept: a class may be called ``nan``, ``NA`` or ``-1``. A whole float is written as 2, not 2.0.

    Examples
    --------
    >>> [label_text(label) for label in ("cat", 3, 2.0, "nan", None, float("nan"), np.ma.masked, -1, " ")]
    ['cat', '3', '2', 'nan', '', '', '', '', '']
    """
    if label is np.ma.masked:
        return ""
    label = plain_label(label)
    if isinstance(label, bytes):
        label = label.decode("utf-8", "surrogateescape")
    if isinstance(label, str):
        return label if label.strip() else ""
    if label is None or (isinstance(label, int) and label < 0):
        return ""
    try:
        missing = bool(label != label)  # noqa: PLR0124 - NaN and NaT are not
    except (TypeError, ValueError):  # pandas.NA has no truth value
        missing = True
    if isinstance(label, float) and label.is_integer() and abs(label) < _MOST_WHOLE:
        label = int(label)
    return "" if missing else str(label)


def symbols_to_decisions(symbols: NDArray[np.integer], alphabet: int) -> NDArray[np.uint8]:
    """Write symbols, shape (N, D), as decisions, shape (N, D * bits), most significant first, uint8."""
    bits = bits_per_symbol(alphabet)
    if bits == 1:
        return np.ascontiguousarray(symbols, dtype=np.uint8)
    shifts = np.arange(bits - 1, -1, -1, dtype=symbols.dtype)
    decisions = (symbols[:, :, None] >> shifts) & 1
    return decisions.astype(np.uint8).reshape(len(symbols), symbols.shape[1] * bits)


def decisions_to_symbols(decisions: NDArray[np.uint8], alphabet: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Invert :func:`symbols_to_decisions`; the caller must refuse symbols outside the alphabet."""
    bits = bits_per_symbol(alphabet)
    if bits == 1:
        return decisions
    dtype = symbol_dtype(alphabet)
    grouped = decisions.reshape(len(decisions), decisions.shape[1] // bits, bits)
    symbols = np.zeros(grouped.shape[:2], dtype=dtype)
    for b in range(bits):
        symbols <<= 1
        symbols |= grouped[:, :, b]
    return symbols


def folder_label(name: str, level: int = 1) -> str:
    """Return the label in a name: its first folder, or an empty string without one.

    ``level`` selects a deeper folder; negative levels count from the file, -1 being the innermost.

    Examples
    --------
    >>> folder_label("cats/old/tom.jpg"), folder_label("tom.jpg")
    ('cats', '')
    >>> folder_label("train/cats/tom.jpg", 2), folder_label("train/cats/tom.jpg", -1)
    ('cats', 'cats')
    """
    if level == 1:
        folder, slash, _ = name.partition("/")
        return folder if slash else ""
    folders = name.split("/")[:-1]
    at = level - 1 if level > 0 else level
    return folders[at] if -len(folders) <= at < len(folders) else ""


def pick(codes: Codes, columns: Sequence[int]) -> Codes:
    """Keep these latents of every row."""
    chosen = Codes.from_symbols(codes.symbols()[:, list(columns)], alphabet=codes.alphabet)
    return replace(codes, packed=chosen.packed, latents=chosen.latents)
