"""Merge and split archives: copy whole segments unchanged, and recode only segments at a cut."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.compress.columns import ids_of
from stochcl.compress.header import Embedder, check_embedder
from stochcl.compress.segment import RawSegment, StoredSegment, as_version
from stochcl.compress.writer import Writer
from stochcl.entropy.model import FITTED, EntropyModel, unpack_model
from stochcl.errors import FormatError, ModelMismatch, UsageError
from stochcl.framing import crc
from stochcl.messages import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stochcl.codes import Codes
    from stochcl.compress.archive import Archive
    from stochcl.files import PathLike


def stored_names(archive: Archive, segment: int) -> tuple[str, ...]:
    """Return the names of one segment's rows, empty if not stored; other segments are not read."""
    with archive._errors:
        stored = archive._segments[segment]
        stored.check_head()
        return stored.texts("names") or ()


def stored_codes(archive: Archive, first: int = 0, last: int | None = None, rows: int = 16_384) -> Iterator[Codes]:
    """Yield rows of an archive in order, ``rows`` at a time, with only what is stored beside them.

    (Indexing an archive also derives labels from names.) Holds one segment in memory.
    """
    for low, high, segment in _segments(archive, first, last):
        with archive._errors:
            names, labels, uncertainty = segment.beside()
        end = high if last is None else min(high, last)
        for start in range(max(low, first), end, rows):
            stop = min(start + rows, end)
            here = slice(start - low, stop - low)
            yield archive.header.codes(
                archive._packed(np.arange(start, stop)), names and names[here], labels and labels[here],
                None if uncertainty is None else uncertainty[here],
            )  # fmt: skip


_SAME = {
    "model_sha256": "it was made by another model",
    "model_latents": "its model has another width",
    "tables_sha256": "it has another decoder",
    "alphabet": "its latents have another alphabet",
    "latents": "it has another number of latents",
    "selection": "it has other latents of the model",
    "precision": "its encoder ran at another precision",
    "preprocess": "its images were prepared in another way",
    "feature_dim": "its features have another width",
    "input_bytes": "its inputs have another size",
}
"""Header fields that must be equal in joined archives, and how an error describes a difference."""

_ADVICE = {
    "latents": "`stochcl transcode --latents` makes them alike",
    "precision": "compress both with the same --precision",
    "preprocess": "compress both with the same --size, --fit and --depth",
}
_MODEL = ("model_sha256", "model_latents", "tables_sha256", "alphabet", "feature_dim")
_PARTS = {"names": "names", "labels": "stored labels", "entropy": "uncertainty"}


@contextmanager
def rewriting(*args: Any, useless: type[BaseException] = FormatError, **options: Any) -> Iterator[Writer]:
    """Open a Writer whose rows come from archives; if one is damaged, discard what was written."""
    with Writer(*args, **options) as writer:
        try:
            yield writer
            writer.finish()
        except useless:
            writer.discard()
            raise


def facts_of(archives: Sequence[Archive], **options: Any) -> dict[str, Any]:
    """Return the facts that an interrupted rewrite of these archives must share to be resumed."""
    ends = [[archive.size, crc(archive._reader.read(archive.size - 32, 32))] for archive in archives]
    return {"source": ends, "options": options}


def has_part(archive: Archive, part: str) -> bool:
    """Return whether ``names``, ``labels`` or ``entropy`` are stored; False for an archive without rows."""
    return archive._stored(part)


def is_embedded(archive: Archive) -> bool:
    """Return whether an archive holds its decoding tables."""
    return archive._index.tables[1] > 0


def check_alike(archives: Sequence[Archive], names: Sequence[str]) -> None:
    """Raise unless these archives can be joined; ``names`` are for the message."""
    first = archives[0].header
    for archive, name in zip(archives, names, strict=True):
        for field, said in _SAME.items():
            if getattr(archive.header, field) != getattr(first, field):
                kind = ModelMismatch if field in _MODEL else UsageError
                advice = f"; {_ADVICE[field]}" if field in _ADVICE else ""
                raise kind(f"{name}: {said} than {names[0]}, so that they do not go into one archive{advice}.")
    known = [(Embedder.of(archive.header.embedder), name) for archive, name in zip(archives, names, strict=True)]
    for embedder, name in known:
        first_known, than = next((pair for pair in known if pair[0] is not None), known[0])
        check_embedder(name, embedder, first_known, than)
    pairs = ((archive, name) for archive, name in zip(archives, names, strict=True) if len(archive))
    filled = [({part: has_part(archive, part) for part in _PARTS}, name) for archive, name in pairs]
    for has, name in filled[1:]:
        for part, said in _PARTS.items():
            if has[part] != filled[0][0][part]:
                which = ("have", "do not") if has[part] else ("have no", "have")
                msg = f"{name}: its rows {which[0]} {said}, and those of {filled[0][1]} {which[1]}"
                raise UsageError(
                    f"{msg}; `stochcl transcode` makes them alike (--no-names, --no-uncertainty, --labels)."
                )


def merge(
    archives: Sequence[Archive], path: PathLike, *, embed: bool = False, force: bool = False, resume: bool = False,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Write all rows of archives, in this order, as one archive; no row is recoded."""
    models, numbers = _fitted_of(archives)
    headers = [archive.header for archive in archives]

    def shared(field: str, otherwise: str | None) -> Any:
        value = getattr(headers[0], field)
        return value if all(getattr(header, field) == value for header in headers) else otherwise

    header = replace(
        headers[0], source_kind=shared("source_kind", "mixed"), runtime=shared("runtime", "mixed"),
        ids=_common_ids(archives), embedder=shared("embedder", None), version=max(h.version for h in headers),
    )  # fmt: skip
    holder = next((archive for archive in archives if is_embedded(archive)), archives[0])
    total, done = sum(len(archive) for archive in archives), 0
    with rewriting(
        path, header, holder.tables, embed_tables=embed or is_embedded(holder), fitted=models,
        force=force, resume=resume, facts=facts_of(archives),
    ) as writer:  # fmt: skip
        if not writer.position:
            for archive in archives:
                for name, reason in archive.skipped:
                    writer.skip(name, reason)
        for archive, mapping in zip(archives, numbers, strict=True):
            move_rows(writer, archive, at=done, numbers=mapping, progress=lambda rows: progress(rows, total))
            done += len(archive)


def _common_ids(archives: Sequence[Archive]) -> dict[str, str] | None:
    """Return the column of ids that all archives with rows share, of an integer type that holds all; or None."""
    found = [archive.header.ids for archive in archives if len(archive)] or [archives[0].header.ids]
    if all(ids == found[0] for ids in found):
        return found[0]
    known = [ids_of(archive.header) for archive in archives if len(archive)]
    columns, kinds = {ids and ids[0] for ids in known}, [ids[1] for ids in known if ids]
    if len(columns) > 1 or len(kinds) < len(known) or not all("int" in kind for kind in kinds):
        return None
    kind = np.result_type(*kinds)  # no integer type holds those of int64 and uint64
    return {"column": str(columns.pop()), "type": kind.name} if kind.kind in "iu" else None


def split(
    archive: Archive, path: PathLike, first: int, last: int, *, force: bool = False, progress: Progress = silent
) -> None:
    """Write rows ``first`` to ``last`` of an archive as a new archive.

    Segments that are only partly inside are recoded. The skipped images go with the first row.
    """
    models, (mapping,) = _fitted_of([archive], first, last)
    with rewriting(
        path, archive.header, archive.tables, embed_tables=is_embedded(archive), fitted=models, force=force,
        useless=BaseException,
    ) as writer:  # fmt: skip
        for name, reason in () if first else archive.skipped:
            writer.skip(name, reason)
        move_rows(
            writer, archive, first, last, numbers=mapping, progress=lambda rows: progress(first + rows, len(archive))
        )


def _fitted_of(
    archives: Sequence[Archive], first: int = 0, last: int | None = None
) -> tuple[list[EntropyModel], list[dict[int, int]]]:
    """Return the fitted models that the segments of these rows use, and for each archive a map to new numbers."""
    models: list[EntropyModel] = []
    known: dict[tuple[str, bytes], int] = {}
    numbers = []
    for archive in archives:
        used = sorted({s.head.number for _, _, s in _segments(archive, first, last) if s.head.model == FITTED})
        mapping = {}
        for number in used:
            with archive._errors:
                model = archive._fitted_model(number)
            key = model.kind, model.to_bytes()
            if key not in known:
                known[key] = len(models)
                models.append(model)
            mapping[number] = known[key]
        numbers.append(mapping)
    return models, numbers


def _segments(archive: Archive, first: int, last: int | None) -> Iterator[tuple[int, int, StoredSegment]]:
    """Yield first row, end row and segment, for every segment with some of these rows."""
    last = len(archive) if last is None else last
    for (low, high), segment in zip(pairwise(archive._starts.tolist()), archive._segments, strict=True):
        if low < last and high > first:
            yield low, high, segment


def move_rows(
    writer: Writer, archive: Archive, first: int = 0, last: int | None = None, *, at: int = 0,
    numbers: dict[int, int] | None = None, change: Callable[[RawSegment], RawSegment] = lambda segment: segment,
    progress: Callable[[int], None] = lambda done: None,
) -> None:  # fmt: skip
    """Copy rows of an archive to a writer: whole segments unchanged, others recoded."""
    last = len(archive) if last is None else last
    bytes_of, rows = archive.source_bytes, max(1, len(archive))
    for low, high, stored in _segments(archive, first, last):
        start, stop = max(low, first, first + writer.position - at), min(high, last)
        if start >= stop:
            continue
        if (start, stop) == (low, high):
            with archive._errors:
                segment = as_version(stored.raw(), writer.header.version)
                if segment.parts[0]:
                    unpack_model(segment.parts[0], archive.header.latents, archive.header.alphabet)
            if stored.head.model == FITTED and numbers is not None:
                segment = segment.having(number=numbers[stored.head.number])
            share = bytes_of * high // rows - bytes_of * low // rows
            writer.add_segment(change(segment), source_bytes=share)
        else:
            for codes in stored_codes(archive, start, stop):
                shares = [bytes_of * row // rows for row in range(start, start + len(codes) + 1)]
                writer.add(codes, sizes=[b - a for a, b in pairwise(shares)])
                start += len(codes)
        progress(at + stop - first)
