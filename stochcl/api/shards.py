"""Compress to a folder of shards, archives of a fixed number of images that can be made anywhere in any order."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from stochcl.api.compress import Compression, CompressOptions, Encoded, unwritable
from stochcl.api.models import portable_name
from stochcl.api.source import check_source_fits_model, no_readable_error, strict_error
from stochcl.api.summary import Drift, Report
from stochcl.compress import Archive, Header, Writer, open_archive
from stochcl.compress.sharded import MANIFEST, Manifest, Shard, read_manifest, sha256_of, write_manifest
from stochcl.data import Failure, ImageSource, MatrixSource, SubsetSource, open_source, open_sources
from stochcl.data.open import JoinedSource, ListSource
from stochcl.entropy.tables import keep_tables
from stochcl.errors import EnvironmentFault, FormatError, OutputError, SourceError, UsageError
from stochcl.files import ROOM, WriteLock, replacing, sync_folder, writing
from stochcl.framing import PROLOGUE
from stochcl.messages import Progress, escape_name, plural
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from stochcl.api.encode import CodecBase
    from stochcl.api.source import Source

    ShardSource = ImageSource | MatrixSource
    Run = Callable[["Plan", list[int], CodecBase, ShardSource], Iterable[tuple[int, "Made"]]]


class Made(NamedTuple):
    """A shard's entry, its skipped images with reasons, and what was encoded if it was made in this run."""

    shard: Shard
    skipped: list[tuple[str, str]]
    encoded: Encoded = Encoded()


@dataclass(frozen=True)
class ShardInput:
    """The images of a shard: paths and digests of the sources that hold them, and positions in these.

    ``rejected`` are the rejected images of all sources, given only for the first shard, which records them.
    """

    sources: tuple[str, ...]
    listings: tuple[str, ...]
    rows: range
    rejected: tuple[Failure, ...] = ()

    def to_json(self) -> str:
        """Return the inputs as ASCII JSON."""
        values = vars(self) | {"rows": [self.rows.start, self.rows.stop]}
        return json.dumps(values | {"rejected": [[failure.name, failure.reason] for failure in self.rejected]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        rejected = tuple(Failure(name, reason) for name, reason in values["rejected"])
        return cls(tuple(values["sources"]), tuple(values["listings"]), range(*values["rows"]), rejected)


def shard_inputs(source: Source, parts: Iterator[tuple[int, range]]) -> Iterator[ShardInput | None]:
    """Yield the inputs of each shard, by number and positions; None if the whole source must be listed."""
    digests: dict[int, str] = {}
    for number, rows in parts:
        if not isinstance(source, JoinedSource) or any(isinstance(one, ListSource) for one in source.sources):
            yield None
            continue
        which, within = source.within(rows)
        for i in which:
            digests[i] = digests.get(i) or source.sources[i].listing()
        yield ShardInput(
            tuple(str(source.sources[i].path) for i in which),
            tuple(digests[i] for i in which),
            within,
            () if number else tuple(source.rejected),
        )


def open_shard_input(inputs: ShardInput, held: dict[str, ImageSource], options: CompressOptions) -> SubsetSource:
    """Open a shard's sources, and return its images; ``held`` caches the sources of the previous shard.

    Raises SourceError if a source cannot be read or has changed.
    """
    opened: dict[str, ImageSource] = {}
    for path, digest in zip(inputs.sources, inputs.listings, strict=True):
        source = held.get(path) or open_source(path, options)
        check_listing(source, digest)
        opened[path] = source  # type: ignore[assignment]  # a matrix has another digest
    held.clear()
    held.update(opened)
    part = SubsetSource(JoinedSource([opened[path] for path in inputs.sources]), inputs.rows)
    part.rejected = list(inputs.rejected)
    return part


def check_listing(source: Source, digest: str) -> None:
    """Raise SourceError if a worker finds another source than the command did."""
    if source.listing() != digest:
        raise SourceError(
            f"{escape_name(source.path)}: a worker sees other files there, or other times or sizes; all machines "
            "must see the same files, and none may change during the run."
        )


SHARD_IMAGES = 100_000
"""Images per shard: a few megabytes of codes, and the minutes of work that a lost worker costs."""

_PLAN = "plan.json"  # facts of the run, until the manifest has them
_WORK = ".work-"
_CONTINUE = f"; complete shards are kept: {ROOM}repeat the command to continue"
_KEPT_OPTIONS = {
    "names": "choice of --no-names", "uncertainty": "choice of --uncertainty", "strict": "choice of --strict",
    "self_contained": "choice of --self-contained", "label_level": "--label-level",
}  # fmt: skip
_DIFFERING = {
    "source": "source (images were added, removed or changed)", "images": "source (images were added or removed)",
    "kind": "source", "shard_images": "--shard-images", "model": "model",
    "header": "model, --latents, --precision, --size or --fit", "device": "--device",
} | _KEPT_OPTIONS  # fmt: skip
"""Facts that must match to keep existing shards, in a user's words."""


@dataclass(frozen=True)
class Plan:
    """A complete description of a run, from which a worker elsewhere can make any shard.

    Paths are absolute. ``facts`` must match to keep existing shards.
    """

    sources: tuple[str, ...]
    folder: str
    model: str
    device: str
    precision: str
    shard_images: int
    options: CompressOptions
    facts: dict[str, Any]

    @property
    def header(self) -> Header:
        """The header of every shard."""
        data = bytes.fromhex(self.facts["header"])
        return Header.from_bytes(data[: PROLOGUE.size], data[PROLOGUE.size :])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return max(1, -(-int(self.facts["images"]) // self.shard_images))

    def rows(self, number: int) -> range:
        """Return the positions in the source of a shard's images."""
        start = number * self.shard_images
        return range(start, min(start + self.shard_images, int(self.facts["images"])))

    def file(self, number: int) -> Path:
        """Return the path of a shard."""
        return Path(self.folder, f"shard-{number:0{max(5, len(str(self.shards - 1)))}}.bin")

    def work(self, name: str) -> Path:
        """Return a temporary folder, which the run removes at its end."""
        return Path(self.folder, f"{_WORK}{name}")


def compress_to_folder(
    codec: CodecBase, sources: Sequence[str | Path], folder: str | Path, options: CompressOptions, *, model: str,
    shard_images: int | None = None, run: Run | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:  # fmt: skip
    """Compress a source to a folder of shards, then write their manifest, which makes it one archive.

    The rows' order, their codes and the folder's files do not depend on which worker makes which shard when. Shards
    that an earlier run of the same request finished are kept. Every worker must find the sources, and ``model`` (what
    ``codec`` was loaded from) under the same names. ``run`` makes the shards of some numbers and yields each; by
    default in this process.

    Raises
    ------
    SourceError, ImageError, OutputError
    UsageError
        If the folder holds something else, or shards of another model, source or option, without ``options.force``.
    """
    started, folder = time.monotonic(), Path(folder)
    _check_request(options, codec, shard_images)
    codec = codec.with_size(options.size)
    plan_sources = tuple(str(source) if is_url(source) else str(Path(source).absolute()) for source in sources)
    images = open_planned(plan_sources, codec, options)
    if options.strict and images.rejected:
        raise strict_error(images, images.rejected[0])
    work = Compression(codec, images, options, started=started)
    options = replace(options, depth=work.preprocess.depth)  # the same for all shards
    plan = _plan(codec, images, plan_sources, folder, options, model, shard_images or SHARD_IMAGES)
    try:
        with _locked(plan), writing(folder, advice=_CONTINUE):
            _take_folder(plan, force=options.force)
            encoded, kept = _make_shards(plan, codec, images, run or run_here, progress)
    except (KeyboardInterrupt, EnvironmentFault) as exc:
        exc.add_note(f"Shards that are complete are kept in {escape_name(folder)}: repeat the command to continue.")
        raise
    note = f"shards     {plural(plan.shards, 'file')}" + (f", {kept:,} of them from an earlier run" if kept else "")
    with open_archive(folder, tables=[codec.tables]) as archive:
        return replace(work.report(archive, str(folder), encoded), notes=(note,))


def _check_request(options: CompressOptions, codec: CodecBase, shard_images: int | None) -> None:
    options.check(codec)
    if options.target is not None:
        raise UsageError("--target chooses a width from one source; compress to one archive, or give --latents.")
    if options.rate is not None:
        raise UsageError(
            "--rate needs all codes at once, and shards are written one by one; omit it, then run `stochcl merge` "
            "and `stochcl transcode --rate`."
        )
    if shard_images is not None and shard_images < 1:
        raise UsageError(f"--shard-images must be at least 1, got {shard_images}.")


def _make_shards(
    plan: Plan, codec: CodecBase, images: ShardSource, run: Run, progress: Progress
) -> tuple[Encoded, int]:
    """Make the missing shards and the manifest; return what was encoded, and the number of earlier shards."""
    made = {number: done for number in range(plan.shards) if (done := _finished(plan, number, codec)) is not None}
    todo = [number for number in range(plan.shards) if number not in made]
    count = sum(len(plan.rows(number)) for number in made)
    progress(count, len(images))
    for number, shard in run(plan, todo, codec, images) if todo else ():
        made[number] = shard
        count += len(plan.rows(number))
        progress(count, len(images))
    _commit(plan, codec, images, [made[number] for number in range(plan.shards)])
    new = [made[number].encoded for number in todo]
    encoded = Encoded(
        sum(one.rows for one in new),
        [failure for one in new for failure in one.damaged],
        any(one.labelled for one in new),
        Drift.total([one.drift for one in new if one.drift is not None]),
    )
    return encoded, plan.shards - len(todo)


def open_planned(sources: Sequence[str], codec: CodecBase, options: CompressOptions) -> ShardSource:
    """Open a plan's sources, which must be the same on every machine."""
    source = open_sources(sources, options)
    check_source_fits_model(source, codec)
    return source


def _plan(
    codec: CodecBase, source: ShardSource, sources: tuple[str, ...], folder: Path, options: CompressOptions,
    model: str, shard_images: int,
) -> Plan:  # fmt: skip
    work = Compression(codec, source, options)
    facts = {
        "kind": source.kind, "source": source.listing(), "images": len(source), "shard_images": shard_images,
        "model": codec.model.sha256, "header": work.header(work.width).to_bytes().hex(), "device": codec.device_type,
    } | {name: getattr(options, name) for name in _KEPT_OPTIONS}  # fmt: skip
    return Plan(
        sources=sources, folder=str(folder.absolute()), model=portable_name(model), device=codec.device_type,
        precision=codec.precision, shard_images=shard_images, options=options, facts=json.loads(json.dumps(facts)),
    )  # fmt: skip


# The folder


def _locked(plan: Plan) -> WriteLock:
    """Make the folder, and lock it for this run."""
    folder = Path(plan.folder)
    shown = escape_name(folder)
    with writing(folder, "the folder"):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{shown}: this is a file; shards go to a folder: name another.")
        if not folder.parent.is_dir():
            raise OutputError(f"{shown}: its parent folder does not exist; make that first.")
        if any(Path(source) == folder or folder in Path(source).parents for source in plan.sources):
            raise UsageError(f"{shown}: the source lies in this folder; name another.")
        folder.mkdir(exist_ok=True)
        return WriteLock(folder, shown)


def _take_folder(plan: Plan, *, force: bool) -> None:
    """Start in the folder, or take over an earlier run of the same plan."""
    folder = Path(plan.folder)
    shown = escape_name(folder)
    with writing(folder, "the folder"):
        facts = _facts_of(folder)
        if facts is None and any(path.name != ".lock" for path in folder.iterdir()):
            raise UsageError(f"{shown}: this folder holds other files; name a new or empty folder.")
        if facts is not None and facts != plan.facts and not force:
            raise _differs(shown, facts, plan.facts)
        if facts is None or force:
            _clear(folder)
            with replacing(folder / _PLAN) as file:
                file.write(json.dumps({"facts": plan.facts}).encode())
        _clear_work(folder)


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """Return the facts of an earlier run; None if there was none, {} if they are unreadable."""
    if (folder / MANIFEST).exists():
        try:
            return read_manifest(folder)[0].facts
        except FormatError:
            return {}
    if (folder / _PLAN).exists():
        try:
            facts = json.loads((folder / _PLAN).read_bytes())["facts"]
        except (ValueError, KeyError, TypeError):
            return {}
        return facts if isinstance(facts, dict) else {}
    return None


def _differs(shown: str, there: dict[str, Any], asked: dict[str, Any]) -> UsageError:
    names = [name for name in _DIFFERING if there.get(name) != asked[name]]
    if "model" in names or "source" in names:  # these imply the others
        names = [name for name in names if name not in ("header", "images", "kind")]
    said = " and another ".join(_DIFFERING[name] for name in names) or "request"
    return UsageError(
        f"{shown}: its shards were made with another {said}; repeat the command that began it, name another "
        "folder, or pass --force to make all again."
    )


def _clear(folder: Path) -> None:
    """Remove the files of earlier runs, the manifest first, because without its shards it is no archive."""
    for path in [folder / MANIFEST, *sorted(folder.glob("shard-*.bin")), *folder.glob("*.tables"), folder / _PLAN]:
        path.unlink(missing_ok=True)
    sync_folder(folder)


def _clear_work(folder: Path) -> None:
    """Remove what killed workers left."""
    for path in folder.glob(f"{_WORK}*"):
        shutil.rmtree(path, ignore_errors=True)


# Shards


def run_here(plan: Plan, numbers: list[int], codec: CodecBase, source: ShardSource) -> Iterator[tuple[int, Made]]:
    """Make shards one after another in this process."""
    for number in numbers:
        yield number, make_shard(plan, number, codec, source)


def make_shard(
    plan: Plan, number: int, codec: CodecBase, source: ShardSource, *, part: ShardSource | None = None
) -> Made:
    """Encode a shard's images and write its archive, which appears complete under its name.

    ``part`` is its images, if they are not taken from the source. Two workers may make the same shard at once, if
    the first was thought lost: both write the same bytes.
    """
    options, path = plan.options, plan.file(number)
    if part is None:
        rows = plan.rows(number)
        part = source.at(np.arange(rows.start, rows.stop))
    with (
        writing(path),
        tempfile.TemporaryDirectory(prefix=_WORK, dir=plan.folder, ignore_cleanup_errors=True) as work,
    ):
        try:
            with Writer(
                Path(work, path.name), plan.header, codec.tables, embed_tables=options.self_contained,
                names=options.names, uncertainty=options.uncertainty,
            ) as writer:  # fmt: skip
                for failure in () if number else part.rejected:
                    writer.skip(failure.name, failure.reason)
                encoded = Compression(codec, part, options).encode(writer)
        except OutputError as exc:  # name the shard, not the temporary folder, from which nothing is kept
            raise unwritable(path, exc, _CONTINUE) from exc
        Path(work, path.name).replace(path)
    sync_folder(path.parent)
    return shard_entry(plan, number, codec)._replace(encoded=encoded)


def shard_entry(plan: Plan, number: int, codec: CodecBase) -> Made:
    """Return a finished shard's entry in the manifest, and its skipped images."""
    path = plan.file(number)
    with Archive(path, tables=[codec.tables]) as archive:
        shard = Shard(
            file=path.name, images=len(archive), blocks=int(archive._first_blocks[-1]), bytes=archive.size,
            sha256=sha256_of(path), source_bytes=archive.source_bytes,
        )  # fmt: skip
        return Made(shard, list(archive.skipped))


def _finished(plan: Plan, number: int, codec: CodecBase) -> Made | None:
    """Return an existing shard, or None if it is missing, unreadable or not what it should be."""
    path = plan.file(number)
    if not path.exists():
        return None
    try:
        with Archive(path, tables=[codec.tables]) as archive:
            same = archive.header.to_bytes().hex() == plan.facts["header"]
        made = shard_entry(plan, number, codec)
    except (FormatError, SourceError):
        return None
    covered = made.shard.images + len(made.skipped)
    # Only the first shard lists the images that the source rejects, which are not among its rows.
    return made if same and (covered == len(plan.rows(number)) or number == 0) else None


def _commit(plan: Plan, codec: CodecBase, source: ShardSource, made: list[Made]) -> None:
    """Write the manifest, which makes the folder an archive."""
    folder = Path(plan.folder)
    skipped = tuple((name, reason) for one in made for name, reason in one.skipped)
    if not any(one.shard.images for one in made):
        _clear(folder)
        raise no_readable_error(source, skipped[0])
    tables = None if plan.options.self_contained else keep_tables(codec.tables, folder)
    manifest = Manifest(
        shards=tuple(one.shard for one in made), model=codec.model.name, model_sha256=codec.model.sha256,
        tables=None if tables is None else tables.name, facts=plan.facts, skipped=skipped,
    )  # fmt: skip
    write_manifest(folder, manifest)
    (folder / _PLAN).unlink(missing_ok=True)
    _clear_work(folder)
