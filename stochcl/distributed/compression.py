"""Compressing to a folder of shards, in this process or on a Ray cluster."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.encoding import CompressOptions
from stochcl.api.shards import compress_to_folder
from stochcl.data import printable
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.api.codec import Codec
    from stochcl.api.report import Report
    from stochcl.api.shards import Run

ENGINES = ("local", "ray")


def compress_folder(
    codec: Codec,
    source: Any,
    folder: Any,
    *,
    model: str,
    engine: str = "local",
    address: str | None = None,
    shard_images: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Report:
    """Compress a source to a folder of shards, see :func:`stochcl.api.shards.compress_to_folder`.

    Parameters
    ----------
    codec : Codec
    source : path-like, or sequence of them
    folder : path-like
    model : str
        What ``codec`` was loaded from; with Ray, every worker loads it from there.
    engine : str
        ``local``: in this process. ``ray``: by Ray Data, on this machine's cores or on a cluster.
    address : str, optional
        Of the Ray cluster; by default what ``RAY_ADDRESS`` names, else one on this machine is started and stopped.
    shard_images : int, optional
    workers : int, optional
        ``local``: threads that decode. ``ray``: processes with a model each; by default one a core, or one a GPU
        where the model runs on those.
    progress : callable
    **options
        Fields of :class:`~stochcl.api.encoding.CompressOptions`.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    SourceError, ImageError, OutputError, UsageError
    """
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}; there are {', '.join(ENGINES)}.")
    if address is not None and engine != "ray":
        raise UsageError("--address is that of a Ray cluster; give it with --engine ray.")
    sources = _paths(source)
    if not isinstance(folder, str | Path):
        raise UsageError("shards go to a folder, not to standard output; give -o a name.")
    asked = CompressOptions(**options, workers=workers)
    run: Run | None = None
    if engine == "ray":
        from stochcl.distributed.ray_data import need_ray, run_on_ray

        need_ray()
        if workers is not None and workers < 1:
            raise UsageError(f"--workers {workers} counts processes; Ray needs at least one.")
        run = partial(run_on_ray, address=address, workers=workers)
        asked = replace(asked, workers=1)
    # Ray tells of workers that died on standard output, which is for results.
    with redirect_stdout(sys.stderr) if engine == "ray" else nullcontext():
        return compress_to_folder(
            codec, sources, folder, asked, model=model, shard_images=shard_images, run=run, progress=progress
        )


def _paths(source: Any) -> Sequence[str | Path]:
    """Return paths; what is not one cannot be opened by a worker."""
    given = [source] if isinstance(source, str | Path) else source
    if not isinstance(given, list | tuple) or not all(isinstance(path, str | Path) for path in given):
        raise UsageError(
            "shards are made of sources that every worker can open by name: a folder, .zip, .tar or .npy; not of "
            "standard input or a list of files."
        )
    for path in given:
        if str(path) == "-":
            raise UsageError(f"{printable(path)}: standard input cannot be read by several workers; give a file.")
    return given
