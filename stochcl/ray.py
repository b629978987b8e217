"""Compress to a folder of shards, in this process or on a Ray cluster."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import errors
from stochcl.api import shards
from stochcl.api.codec import Codec
from stochcl.api.compress import CompressOptions, Encoded
from stochcl.api.shards import Made
from stochcl.compress.sharded import Shard
from stochcl.data import Failure
from stochcl.errors import MissingExtraError, OutputError, SourceError, StochclError, UsageError
from stochcl.messages import Progress, escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stochcl.api.shards import Plan, Run, ShardSource
    from stochcl.api.summary import Report
    from stochcl.data import ImageSource


ENGINES = ("local", "ray")


def compress_folder(
    codec: Codec, source: Any, folder: Any, *, model: str, engine: str = "local", address: str | None = None,
    shard_images: int | None = None, workers: int | None = None, progress: Progress = lambda done, total: None,
    **options: Any,
) -> Report:  # fmt: skip
    """Compress a source to a folder of shards, see :func:`stochcl.api.shards.compress_to_folder`.

    Parameters
    ----------
    codec : Codec
    source : path-like, or sequence of them
    folder : path-like
    model : str
        The model that ``codec`` was loaded from; with Ray, every worker loads it by this name.
    engine : str
        ``local``: in this process. ``ray``: by Ray Data, on this machine's cores or on a cluster.
    address : str, optional
        Address of the Ray cluster; by default ``RAY_ADDRESS``, else a local one is started and stopped.
    shard_images : int, optional
    workers : int, optional
        ``local``: threads that decode. ``ray``: processes with a model each; by default one a core, or one a GPU
        where the model runs on those.
    progress : callable
    **options
        Fields of :class:`~stochcl.api.compress.CompressOptions`.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    SourceError, ImageError, OutputError, UsageError
    """
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}; there are {', '.join(ENGINES)}.")
    if address is not None and engine != "ray":
        raise UsageError("--address needs --engine ray.")
    sources = _paths(source)
    if not isinstance(folder, str | Path):
        raise UsageError("shards go to a folder, not to standard output; give -o a name.")
    asked = CompressOptions(**options, workers=workers)
    run: Run | None = None
    if engine == "ray":
        need_ray()
        if workers is not None and workers < 1:
            raise UsageError(f"--workers must be at least 1 with --engine ray, got {workers}.")
        run = partial(run_on_ray, address=address, workers=workers)
        asked = replace(asked, workers=1)
    # Ray reports dead workers on standard output, which is for results.
    with redirect_stdout(sys.stderr) if engine == "ray" else nullcontext():
        return shards.compress_to_folder(
            codec, sources, folder, asked, model=model, shard_images=shard_images, run=run, progress=progress
        )


def _paths(source: Any) -> Sequence[str | Path]:
    """Return paths; refuse sources that workers cannot open by name."""
    given = [source] if isinstance(source, str | Path) else source
    if not isinstance(given, list | tuple) or not all(isinstance(path, str | Path) for path in given):
        raise UsageError(
            "shards are made of sources that every worker can open by name: a folder, .zip, .tar or .npy; not of "
            "standard input or a list of files."
        )
    for path in given:
        if str(path) == "-":
            raise UsageError(f"{escape_name(path)}: standard input cannot be read by several workers; give a file.")
    return given


MOST_TRIES = 5
"""Workers that a shard may lose before it is given up; a lost machine costs each of its shards one."""


def need_ray() -> None:
    """Raise MissingExtraError if Ray is not installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise MissingExtraError("--engine ray needs Ray; install it with: pip install 'stochcl[ray]'.")


class ShardWorker:
    """A pool worker: loads the model for its first shard, and makes one shard after another.

    Errors of stochcl are returned as values, because Ray would wrap them in its own.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._codec: Codec | None = None
        self._source: ShardSource | None = None
        self._held: dict[str, ImageSource] = {}  # sources of the last shard

    def _ready(self) -> Codec:
        if self._codec is None:
            plan = self._plan
            codec = Codec(plan.model, device=plan.device, precision=plan.precision)
            if codec.model.sha256 != plan.facts["model"]:
                raise UsageError(
                    f"{escape_name(plan.model)}: a worker found another model there; give all machines the same file."
                )
            self._codec = codec.for_archive(plan.header)
        return self._codec

    def _listed(self, codec: Codec) -> ShardSource:
        """Return the whole source, checked to be the command's."""
        if self._source is None:
            source = shards.open_planned(self._plan.sources, codec, self._plan.options)
            shards.check_listing(source, self._plan.facts["source"])
            self._source = source
        return self._source

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards numbered in a batch, from pieces (JSON) or the whole source; return JSON."""
        pieces = batch.get("piece", [""] * len(batch["number"]))
        answers = [self._answer(int(n), str(piece)) for n, piece in zip(batch["number"], pieces, strict=True)]
        return {"number": batch["number"], "made": answers}

    def _answer(self, number: int, piece: str) -> str:
        try:
            count_try(self._plan, number)
            made = self.make(number, shards.ShardInput.from_json(piece) if piece else None)
        except StochclError as exc:
            return json.dumps({"error": type(exc).__name__, "message": " ".join(map(str, exc.args))})
        damaged = [(failure.name, failure.reason) for failure in made.encoded.damaged]
        encoded = vars(made.encoded) | {"damaged": damaged, "drift": None}
        return json.dumps({"shard": vars(made.shard), "skipped": made.skipped, "encoded": encoded})

    def make(self, number: int, piece: shards.ShardInput | None = None) -> Made:
        """Make the shard with this number."""
        codec = self._ready()
        if piece is None:
            source: ShardSource = self._listed(codec)
            return shards.make_shard(self._plan, number, codec, source)
        part = shards.open_shard_input(piece, self._held, self._plan.options)
        return shards.make_shard(self._plan, number, codec, part, part=part)


def count_try(plan: Plan, number: int) -> None:
    """Record on disk that a shard is started; refuse one that keeps killing its workers.

    Ray would retry it forever.

    Raises
    ------
    SourceError
        If it was started too often in this run, by workers that are gone.
    """
    path = plan.work("tries") / plan.file(number).stem
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            tries = file.tell()
            file.write(b".")
    except OSError as exc:
        raise OutputError(f"{escape_name(path)}: it cannot be written: {os_reason(exc)}.") from exc
    if tries >= MOST_TRIES:
        rows = plan.rows(number)
        raise SourceError(
            f"{escape_name(plan.file(number))}: {tries} workers died, one after the other, making this shard of "
            f"images {rows.start:,} to {rows.stop - 1:,}: one of them may take more memory than there is, or crash "
            "its decoder. Take fewer --workers, or find it with --engine local; shards that are complete are kept."
        )


def run_on_ray(
    plan: Plan, numbers: list[int], codec: Codec, source: ShardSource, *, address: str | None, workers: int | None
) -> Iterator[tuple[int, Made]]:
    """Make shards on a cluster, and yield each when it is done, in any order.

    If a worker or its machine dies, its current shard is lost; Ray Data retries it until it has cost
    :data:`MOST_TRIES` workers.

    Raises
    ------
    StochclError
        An error from a worker.
    UsageError
        If there is no such cluster, or Ray gives up.
    """
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with _connected(address):
        pool, resources = _pool(codec, len(numbers), workers)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        pieces = shards.shard_inputs(source, ((number, plan.rows(number)) for number in numbers))
        items = [
            {"number": number, "piece": "" if piece is None else piece.to_json()}
            for number, piece in zip(numbers, pieces, strict=True)
        ]
        data = ray.data.from_items(items, override_num_blocks=len(numbers))
        made = data.map_batches(
            ShardWorker, fn_constructor_kwargs={"plan": plan}, batch_size=1, batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=pool), **resources,
        )  # fmt: skip
        try:
            for row in made.iter_rows():
                yield int(row["number"]), _read(row["made"])
        except ray.exceptions.RayError as exc:
            reason = escape_name(str(exc).strip().splitlines()[-1])
            raise UsageError(
                f"Ray gave up ({reason}); the shards that are complete are kept: repeat the command to continue."
            ) from exc


def _read(answer: str) -> Made:
    """Return a worker's result, or raise its error."""
    values = json.loads(answer)
    if "error" in values:
        kind = getattr(errors, values["error"], StochclError)
        raise kind(values["message"])
    skipped = [(name, reason) for name, reason in values["skipped"]]
    encoded = values["encoded"] | {"damaged": [Failure(*pair) for pair in values["encoded"]["damaged"]]}
    return Made(Shard(**values["shard"]), skipped, Encoded(**encoded))


def _pool(codec: Codec, count: int, workers: int | None) -> tuple[int, dict[str, Any]]:
    """Return the number of workers, and the resources of each."""
    import ray

    there = ray.cluster_resources()
    cores, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0))
    if codec.device_type == "cuda":
        if not gpus:
            raise UsageError("the cluster has no GPU; pass --device cpu.")
        size = min(workers or gpus, gpus, count)
        return size, {"num_gpus": 1, "num_cpus": max(1, cores // max(1, gpus))}
    return max(1, min(workers or cores, cores, count)), {"num_cpus": 1}


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Join a cluster, or start a local one for the block; an already joined one is left alone."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its processes would write to standard error
    # Without an address Ray would join the last cluster started on this machine, or wait for one that is gone.
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        _knock(where)
        ray.init(address=where, **quiet, **({"include_dashboard": False} if where == "local" else {}))
    except (ValueError, RuntimeError, OSError) as exc:
        what = "none could be started on this machine" if where == "local" else f"there is none at {where}"
        reason = escape_name(str(exc).strip().rstrip("."))
        raise UsageError(
            f"Ray has no cluster: {what} ({reason}). Start the cluster first, with this version of Ray, and set its "
            "token here if it has one."
        ) from exc
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens, for which Ray would wait minutes."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
