"""Reports on archives: images, bytes by part, bits per image, reductions, and the drift of new rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress.header import Embedder
from stochcl.entropy.model import code_lengths
from stochcl.entropy.tables import is_packaged
from stochcl.errors import for_caller
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.api.encode import CodecBase
    from stochcl.compress import ArchiveBase
    from stochcl.data import Failure


_FLOAT = 4  # bytes of a float32


def skipped_json(skipped: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return names and reasons of unreadable images as JSON types."""
    return [{"name": escape_name(name), "reason": reason} for name, reason in skipped]


def external_tables_note(kept: Path | None) -> tuple[str, ...]:
    """Return the line about the location of an archive's external tables."""
    if kept is None:
        return ()
    return (f"decoder    {escape_name(kept)}; keep it beside the archive, or in a folder of $STOCHCL_MODELS",)


@dataclass(frozen=True)
class Report:
    """The figures of one archive.

    Parameters
    ----------
    path : str
    images : int
    skipped : tuple of (name, reason)
        Images that could not be read.
    bytes : int
        Size of the file.
    parts : dict
        The file's bytes by purpose: codes, tables, names, index, header, and, if stored, labels and uncertainty.
    external_bytes : int
        Size of the decoder, if it is not in the archive.
    decoder_ships : bool
        Whether such a decoder comes with stochcl.
    source_bytes, pixel_bytes, feature_bytes : int
        Sizes to compare with: the images in their source, raw pixels at the encoder's input size, float32
        features.
    model, model_sha256 : str
    latents, model_latents : int
        Number of latents of these codes, and of the model.
    precision : str
        Precision of the encoder's arithmetic.
    runtime : str
        Runtime of the encoder; empty if unknown.
    size : int or None
        Side of the preprocessed images in pixels; None for vectors.
    seconds : float or None
        Duration of compressing, if it was just done.
    encoded : int
        Images encoded in that time; fewer than ``images`` after resuming.
    notes : tuple of str
        Lines to print with the figures.
    warnings : tuple of str
        Warnings from compressing.
    vectors : bool
        Whether rows are from a matrix rather than images.
    rate : float or None
        Maximum bits per image that was asked for.
    damaged : tuple of Failure
        Damaged but readable images, if compressing was just done.
    embedder : Embedder or None
        Embedder of the vectors that were compressed, if known.
    target : dict or None
        The quality that was asked for: its ``goal``, and what the chosen width reaches.
    drift : dict or None
        For newly encoded rows: the bits of their first latents, and the expectation from training.
    """

    path: str
    images: int
    skipped: tuple[tuple[str, str], ...]
    bytes: int
    parts: dict[str, int]
    external_bytes: int
    decoder_ships: bool
    source_bytes: int
    pixel_bytes: int
    feature_bytes: int
    model: str
    model_sha256: str
    latents: int
    model_latents: int
    precision: str
    runtime: str = ""
    size: int | None = None
    seconds: float | None = None
    encoded: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    vectors: bool = False
    rate: float | None = None
    damaged: tuple[Failure, ...] = ()
    embedder: Embedder | None = None
    drift: dict[str, Any] | None = None
    target: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", tuple(map(for_caller, self.warnings)))

    @classmethod
    def of(cls, archive: ArchiveBase, path: str, *, seconds: float | None = None, encoded: int = 0) -> Report:
        """Take the figures from an open archive."""
        header, images = archive.header, len(archive)
        return cls(
            path=path, images=images, skipped=tuple(archive.skipped), bytes=archive.size, parts=archive.parts(),
            external_bytes=archive.external_bytes, decoder_ships=is_packaged(archive.header.tables_sha256),
            source_bytes=archive.source_bytes, pixel_bytes=images * header.input_bytes,
            feature_bytes=images * header.feature_dim * _FLOAT, model=header.model, model_sha256=header.model_sha256,
            latents=header.latents, model_latents=header.model_latents, precision=header.precision,
            runtime=header.runtime, size=header.size, embedder=Embedder.of(header.embedder), seconds=seconds,
            encoded=encoded, vectors=not header.preprocess and 0 < header.feature_dim * _FLOAT == header.input_bytes,
        )  # fmt: skip

    @property
    def unit(self) -> str:
        """The noun for a row."""
        return "row" if self.vectors else "image"

    @property
    def codes_bits_per_image(self) -> float:
        """Bits of the codes alone per image: the rate."""
        return self._per_image(self.parts["codes"])

    @property
    def bits_per_image(self) -> float:
        """Bits of the whole file per image."""
        return self._per_image(self.bytes)

    def _per_image(self, amount: int) -> float:
        return amount * 8 / self.images if self.images else 0.0

    @property
    def reduction(self) -> dict[str, float]:
        """How many times smaller the file is than source, pixels and features."""
        compared = {"source": self.source_bytes, "pixels": self.pixel_bytes, "features": self.feature_bytes}
        return {name: value / self.bytes for name, value in compared.items()}

    @property
    def images_per_second(self) -> float | None:
        """Images encoded per second, if compressing was just done."""
        return self.encoded / self.seconds if self.seconds else None

    def to_json(self, command: str) -> dict[str, Any]:
        """Return the figures as JSON types, under the keys that all commands share."""
        speed = self.images_per_second
        return {
            "schema": f"stochcl.{command}/0", "path": escape_name(self.path), "images": self.images,
            "skipped": skipped_json(self.skipped), "bytes": self.bytes,
            "bits_per_image": round(self.bits_per_image, 3), "parts": self.parts,
            "external_bytes": self.external_bytes,
            "reduction": {name: round(value, 3) for name, value in self.reduction.items()},
            "model": {"name": escape_name(self.model), "sha256": self.model_sha256, "latents": self.model_latents},
            "latents": self.latents, "precision": self.precision, "runtime": escape_name(self.runtime) or None,
            **({} if self.size is None else {"size": self.size}),
            **({} if self.embedder is None else {"embedder": self.embedder.to_json()}),
            **({} if self.target is None else {"target": self.target}),
            **({} if self.drift is None else {"drift": self.drift}),
            **({} if speed is None else {"images_per_second": round(speed, 1)}),
            **({} if not self.damaged else {"damaged": skipped_json((f.name, f.reason) for f in self.damaged)}),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return the figures for people."""
        width = plural(self.latents, "latent")
        if self.latents != self.model_latents:
            width += f" of {self.model_latents:,}"
        unit, side = self.unit, "" if self.size is None else f", {self.size} x {self.size} pixels"
        asked = "" if self.rate is None else f" (asked for at most {self.rate:,g})"
        rate = f"codes take {self.codes_bits_per_image:,.1f} bits per {unit}{asked}"
        out = [
            f"{escape_name(self.path)}: {plural(self.images, unit)}, {rate}",
            f"  model      {escape_name(self.model)} ({self.model_sha256[:12]}), {width}, {self.precision}{side}",
            f"  file       {self.bytes:>12,} bytes  {self.bits_per_image:>10,.1f} bits per {unit}, of which",
        ]
        if self.embedder is not None:
            lengths = {True: ", of length one", False: ", of any length"}.get(self.embedder.normalised, "")  # type: ignore[arg-type]
            out.insert(2, f"  embedder   {self.embedder}, vectors of {self.embedder.width:,} numbers{lengths}")
        for key, part in self.parts.items():
            if key == "tables" and not part and self.external_bytes:
                continue  # the decoder has its own line below
            name = "decoder" if key == "tables" else key
            size = f"{part:>{22 - max(10, len(name))},} bytes"
            out.append(f"  {name:<10} {size}  {self._per_image(part):>10,.1f} bits per {unit}")
        if self.external_bytes:
            where = "ships with stochcl" if self.decoder_ships else "kept outside the archive"
            out.append(f"  decoder, {self.external_bytes / 1000:,.0f} kB, {where} (not counted)")
        said = {
            "source": f"the source files ({self.source_bytes:,} bytes)",
            "pixels": f"raw pixels at the model's input size ({self.pixel_bytes:,} bytes)",
            "features": f"its decoded vectors as float32 ({self.feature_bytes:,} bytes)",
        }
        if self.vectors:  # vectors have no pixels, and are their own features
            said = {
                "source": f"the rows as they are stored ({self.source_bytes:,} bytes)",
                "features": f"float32 rows ({self.feature_bytes:,} bytes)",
            }
        reduction = {name: value for name, value in self.reduction.items() if name in said}
        out += [f"  {_times(value)} than {said[name]}" for name, value in reduction.items() if value]
        if self.skipped:
            out.append(f"  skipped    {plural(len(self.skipped), unit)} that could not be read")
        if self.images_per_second:
            out.append(f"  speed      {self.images_per_second:,.0f} {unit}s per second")
        return out + [f"  {note}" for note in self.notes]


@dataclass(frozen=True)
class Edit:
    """The result of changing an archive.

    Parameters
    ----------
    report : Report
        The figures of the written archive.
    before : tuple of (int, int)
        Images and bytes before.
    facts : dict
        Other facts, as JSON types.
    notes : tuple of str
        Other lines for people.
    skipped : tuple of (name, reason)
        Images that could not be read this time.
    """

    report: Report
    before: tuple[int, int]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(for_caller, self.notes)))

    def to_json(self, command: str) -> dict[str, Any]:
        """Return the figures as JSON types, with those from before."""
        images, size = self.before
        before = {"images": images, "bytes": size, "bits_per_image": round(_bits(images, size), 3)}
        return self.report.to_json(command) | {"before": before} | self.facts

    def lines(self) -> list[str]:
        """Return the figures for people."""
        images, size = self.before
        unit = self.report.unit
        before = f"  before     {size:>12,} bytes  {_bits(images, size):>10,.1f} bits per {unit}"
        if images != self.report.images:
            before += f", {plural(images, unit)}"
        return [*self.report.lines(), before, *(f"  {note}" for note in self.notes)]


def _bits(images: int, size: int) -> float:
    return size * 8 / images if images else 0.0


def _times(reduction: float) -> str:
    """Return how many times smaller, or larger, a file is, in words.

    Examples
    --------
    >>> _times(58.04), _times(0.25)
    ('   58.0 times smaller', '    4.0 times larger')
    """
    smaller = reduction >= 1
    return f"{reduction if smaller else 1 / reduction:>7,.1f} times {'smaller' if smaller else 'larger'}"


# Drift: the bits of new rows' codes compared with what the model expects of rows like its training rows

_DECISIONS = 12  # most decisions per word, so that all words can be enumerated
_LEAST = 0.5  # bits; if all words are equally frequent, the deviation is almost 0
_FEWER = 0.5  # ratio of the rows' own entropy to their bits; images of one class of CIFAR-10 have 0.6


@dataclass(frozen=True, eq=False)
class Drift:
    """Bits of the first word of some rows, compared with what the model expects.

    The first word is the value of the first latents: the cluster of a row. Later latents give the position in the
    cluster, and cost as much for rows of any kind. (Detecting digits among CIFAR-10 with the default model: AUROC
    0.83 by the length of 8 latents, 0.48 by that of all 256; with `fast` 0.96 and 0.33.) The model expects its own
    entropy, which is the mean of rows like those it was fitted to.

    Parameters
    ----------
    latents : int
        Latents per word.
    lengths : ndarray of float64, shape (W,)
        Bits of every possible word under the model.
    counts : ndarray of int64, shape (W,)
        Number of rows with each word.
    """

    latents: int
    lengths: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, codec: CodecBase, width: int) -> Self | None:
        """Return the drift of no rows yet, at this width; None if a code is narrower than a word."""
        bits = bits_per_symbol(codec.alphabet)
        latents = min(codec.config.ladder[0], _DECISIONS // bits)
        if not 1 <= latents <= width:
            return None
        words = np.array(list(product(range(codec.alphabet), repeat=latents)), np.uint16)
        model = codec.tables.candidates(latents)[-1].model
        lengths = code_lengths(Codes.from_symbols(words, alphabet=codec.alphabet), model).astype(np.float64)
        return cls(latents, lengths, np.zeros(len(lengths), np.int64))

    def plus(self, codes: Codes) -> Self:
        """Return the drift with these rows added."""
        symbols = codes.prefix(self.latents).symbols().astype(np.int64)
        words = np.ravel_multi_index(tuple(symbols.T), (codes.alphabet,) * self.latents)
        return replace(self, counts=self.counts + np.bincount(words, minlength=len(self.counts)))

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self | None:
        """Return the drift of several parts together, or None without parts."""
        return replace(parts[0], counts=np.sum([part.counts for part in parts], axis=0)) if parts else None

    @property
    def rows(self) -> int:
        """Number of rows counted."""
        return int(self.counts.sum())

    @property
    def bits(self) -> float:
        """Mean bits of a row's first word under the model."""
        return float(self.counts @ self.lengths) / max(1, self.rows)

    @property
    def own_bits(self) -> float:
        """Mean bits with these rows' own frequencies: their entropy with the Miller-Madow correction."""
        shares = self.counts[self.counts > 0] / max(1, self.rows)
        return float(-(shares @ np.log2(shares)) + (len(shares) - 1) / (2 * max(1, self.rows) * np.log(2)))

    @property
    def expected(self) -> tuple[float, float]:
        """The mean that the model expects, and the standard deviation of a row."""
        shares = 2.0**-self.lengths
        shares /= shares.sum()  # some words are impossible unless the alphabet is a power of two
        mean = float(shares @ self.lengths)
        return mean, float(np.sqrt(shares @ (self.lengths - mean) ** 2))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        mean, deviation = self.expected
        values = {"bits": self.bits, "expected": mean, "deviation": deviation, "own_bits": self.own_bits}
        return {"rows": self.rows, "latents": self.latents} | {name: round(one, 3) for name, one in values.items()}

    def finding(self, unit: str) -> str | None:
        """Describe how rows differ from training rows; None if they do not, or are too few to tell."""
        mean, deviation = self.expected
        take = f"the first {self.latents} latents of these {unit}s take {self.bits:.1f} bits"
        if self.rows < len(self.counts):  # a few photographs also lie in few clusters
            return None
        if self.bits - mean > max(deviation, _LEAST):
            return f"{take}, and of the model's training {unit}s {mean:.1f}"
        if self.own_bits < _FEWER * self.bits:
            return f"{take}, and with their own frequencies {self.own_bits:.1f}: they lie in few of its clusters"
        return None
