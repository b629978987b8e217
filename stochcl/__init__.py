"""stochcl: turn images or embeddings into codes of about 30 bytes that scikit-learn can train on.

>>> import stochcl
>>> codec = stochcl.load()                            # doctest: +SKIP
>>> report = codec.compress("images/", "codes.bin")   # doctest: +SKIP
>>> archive = stochcl.open("codes.bin")               # doctest: +SKIP
>>> archive.to_vectors(), archive.labels              # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    import os
    from typing import IO

    from stochcl.api.append import append
    from stochcl.api.archives import merge, split, transcode
    from stochcl.api.codec import Codec, ImageWriter
    from stochcl.codes import Codes
    from stochcl.compress import Archive, FolderArchive, Writer
    from stochcl.compress.export import from_arrow

__all__ = [
    "Archive",
    "Codec",
    "Codes",
    "Writer",
    "__version__",
    "append",
    "from_arrow",
    "load",
    "merge",
    "open",
    "split",
    "transcode",
    "writer",
]


def load(
    model: str | os.PathLike[str] = "general", *, device: str = "auto", precision: str = "auto",
    size: int | None = None,
) -> Codec:  # fmt: skip
    """Load an encoder by the name of a packaged model or from a model file; for the options see :class:`Codec`.

    Raises
    ------
    UsageError
        If there is no such model, device, precision or size.
    ModelError
        If the model file is damaged, foreign or a pickle.
    """
    from stochcl.api.codec import Codec

    return Codec(model, device=device, precision=precision, size=size)


def open(  # noqa: A001 - stochcl.open, as gzip.open
    path: str | os.PathLike[str] | IO[bytes],
    *,
    model: str | os.PathLike[str] | None = None,
    trusted: bool | None = None,
) -> Archive | FolderArchive:
    """Open an archive of codes, at a path or a URL (``s3://...``), or a folder of shards; torch is not imported.

    ``model`` is a model or .tables file with the decoder, if neither the archive nor the package has it.
    A small file that needs hours of work, or all memory, is refused unless ``trusted``.

    Raises
    ------
    SourceError
        If there is no such file.
    FormatError
        If it is not a complete archive, or is damaged.
    MissingExtraError
        If the package for a URL's protocol is not installed.
    """
    from stochcl.compress import open_archive

    if model is None:
        return open_archive(path, trusted=trusted)
    from stochcl.api.models import resolve_tables

    return open_archive(path, tables=resolve_tables(model), trusted=trusted)


def writer(
    path: str | os.PathLike[str],
    codec: Codec | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    latents: int | None = None,
    uncertainty: bool = False,
    **options: Any,
) -> ImageWriter:
    """Open an archive for writing images, or codes from ``codec.encode``, batch by batch.

    Parameters
    ----------
    path : path-like
    codec : Codec, optional
        The encoder; by default the one named by ``model``.
    model : str or path-like, optional
        A model as for :func:`load`; without codec and model, the default model.
    latents : int, optional
        Number of latents to keep; all by default.
    uncertainty : bool
        Whether to also store the codes' uncertainty.
    **options
        ``names``, ``force``: see :class:`stochcl.compress.Writer`; ``device``, ``precision`` and ``size``: see
        :func:`load`.

    Examples
    --------
    >>> with stochcl.writer("codes.bin", model="general") as out:    # doctest: +SKIP
    ...     for images, names in loader:                             # uint8, (B, H, W, 3)
    ...         out.add(images, names)
    """
    from stochcl.api.codec import ImageWriter

    where = {name: options.pop(name) for name in ("device", "precision", "size") if name in options}
    if codec is None:
        codec = load("general" if model is None else model, **where)
    elif model is not None or where:
        from stochcl.errors import UsageError

        raise UsageError("a codec has its model, device, precision and size; give either it or those.")
    return ImageWriter(path, codec, latents=latents, uncertainty=uncertainty, **options)


def __dir__() -> list[str]:
    return sorted(__all__)


_HOMES = {
    "stochcl.api.append": ("append",),
    "stochcl.api.archives": ("merge", "split", "transcode"),
    "stochcl.api.codec": ("Codec",),
    "stochcl.codes": ("Codes",),
    "stochcl.compress": ("Archive", "Writer"),
    "stochcl.compress.export": ("from_arrow",),
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import stochcl`` is instant."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'stochcl' has no attribute {name!r}")
