"""What is said of an archive: images, bytes by part, bits per image, the three reductions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stochcl.compress.header import Embedder
from stochcl.entropy.tables import is_packaged
from stochcl.errors import for_caller
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stochcl.compress import ArchiveBase
    from stochcl.data import Failure


_FLOAT = 4  # bytes of a float32


def skipped_json(skipped: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return names and reasons of images that could not be read as JSON types."""
    return [{"name": escape_name(name), "reason": reason} for name, reason in skipped]


def external_tables_note(kept: Path | None) -> tuple[str, ...]:
    """Return the line that says where the external tables of an archive are."""
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
        Of the file.
    parts : dict
        The file's bytes by what they are for: codes, tables, names, index, header, and, where it is stored,
        uncertainty.
    external_bytes : int
        Of the decoder, if it is not in the archive.
    decoder_ships : bool
        Whether such a decoder comes with stochcl.
    source_bytes, pixel_bytes, feature_bytes : int
        What the file is compared with: the images in their source, raw pixels at the encoder's input size,
        float32 features.
    model, model_sha256 : str
    latents, model_latents : int
        Width of these codes, and of the model's.
    precision : str
        Of the encoder's arithmetic.
    runtime : str
        What computed it; empty where nothing says so.
    seconds : float or None
        What compressing took, if it has just been done.
    encoded : int
        Images encoded in that time; fewer than ``images`` after a resumption.
    notes : tuple of str
        Lines that are to be said beside the figures.
    warnings : tuple of str
        What somebody who compressed these images should know.
    vectors : bool
        Whether rows of a matrix were compressed rather than images.
    rate : float or None
        Bits per image that the codes were to take at most, if a rate was asked for.
    damaged : tuple of Failure
        Images that are damaged and could be read all the same, where compressing has just been done.
    embedder : Embedder or None
        What made the vectors that were compressed, where that is known.
    target : dict or None
        The quality that was asked for, where one was: its ``goal``, and what the chosen width has.
    drift : dict or None
        Where rows were just encoded: the bits of their first latents, and those expected of rows like training's.
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
            runtime=header.runtime, embedder=Embedder.of(header.embedder), seconds=seconds, encoded=encoded,
            vectors=not header.preprocess and 0 < header.feature_dim * _FLOAT == header.input_bytes,
        )  # fmt: skip

    @property
    def unit(self) -> str:
        """What a row stands for."""
        return "row" if self.vectors else "image"

    @property
    def codes_bits_per_image(self) -> float:
        """Bits of the codes alone, by images: the rate."""
        return self._per_image(self.parts["codes"])

    @property
    def bits_per_image(self) -> float:
        """Bits of the whole file, by images."""
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
        """Images encoded a second, if compressing has just been done."""
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
        unit = self.unit
        asked = "" if self.rate is None else f" (asked for at most {self.rate:,g})"
        rate = f"codes take {self.codes_bits_per_image:,.1f} bits per {unit}{asked}"
        out = [
            f"{escape_name(self.path)}: {plural(self.images, unit)}, {rate}",
            f"  model      {escape_name(self.model)} ({self.model_sha256[:12]}), {width}, {self.precision}",
            f"  file       {self.bytes:>12,} bytes  {self.bits_per_image:>10,.1f} bits per {unit}, of which",
        ]
        if self.embedder is not None:
            lengths = {True: ", of length one", False: ", of any length"}.get(self.embedder.normalised, "")  # type: ignore[arg-type]
            out.insert(2, f"  embedder   {self.embedder}, vectors of {self.embedder.width:,} numbers{lengths}")
        for key, part in self.parts.items():
            if key == "tables" and not part and self.external_bytes:
                continue  # a line of its own says where the decoder is
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
        if self.vectors:  # which are their own features, and have no pixels
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
    """What has become of an archive.

    Parameters
    ----------
    report : Report
        The figures of what was written.
    before : tuple of (int, int)
        Images and bytes that there were.
    facts : dict
        What else there is to say, as JSON types.
    notes : tuple of str
        And for people.
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
    """Say how many times smaller, or larger, a file is.

    Examples
    --------
    >>> _times(58.04), _times(0.25)
    ('   58.0 times smaller', '    4.0 times larger')
    """
    smaller = reduction >= 1
    return f"{reduction if smaller else 1 / reduction:>7,.1f} times {'smaller' if smaller else 'larger'}"
