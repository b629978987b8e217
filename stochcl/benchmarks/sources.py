"""Code sets from files: archives, arrays of symbols, features to quantise, and the default model's CIFAR-10 codes."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks import models
from stochcl.benchmarks.codesets import CodeSet, split
from stochcl.benchmarks.errors import NoDataError
from stochcl.benchmarks.opq import opq_of
from stochcl.codes import MAX_ALPHABET, Codes
from stochcl.compress import Archive
from stochcl.errors import FormatError, SourceError, UsageError
from stochcl.messages import escape_name as printable
from stochcl.messages import os_reason as why

if TYPE_CHECKING:
    from collections.abc import Callable

CIFAR10_ZIP = "cifar10-test.zip"
CIFAR10_CODES = "cifar10-test-codes.bin"


def read_source(path: Path, *, latents: int | None, rows: int | None, refit: bool, seed: int) -> CodeSet:
    """Make a code set of an archive, or of a .npy or .npz file of symbols or features.

    Symbols are integers, shape (N, D), of as many values as the largest needs; of a .npz file the array
    ``symbols`` is taken, as ``stochcl decompress`` writes it. Floats of two dimensions are features, of which OPQ
    indices are made.
    """
    shown, name = printable(path), printable(path.name)
    if path.suffix not in (".npy", ".npz"):
        with Archive(path) as archive:
            return of_archive(name, archive, latents=latents, rows=rows, refit=refit)
    array = _read_array(path)
    if array.ndim == 2 and array.dtype.kind == "f":
        return opq_of(name, array[: rows and 2 * rows], latents or 128, seed)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        what = f"{array.dtype} of shape {array.shape}"
        raise SourceError(f"{shown}: symbols are integers of shape (N, D), and features floats, not {what}.")
    codes = _cut(shown, _symbols(shown, array), latents, rows and 2 * rows)
    try:
        return split(name, codes, f"symbols of {codes.alphabet} values")
    except FormatError as exc:  # wider than rows of an archive can be
        raise SourceError(f"{shown}: {exc}.") from exc


def of_archive(name: str, archive: Archive, *, latents: int | None, rows: int | None, refit: bool) -> CodeSet:
    """Take the codes of an archive, with its own tables or, to ``refit``, with tables fitted to half of them."""
    about = f"{archive.header.latents:,} latents of the model {printable(archive.header.model)}"
    count = rows and (2 * rows if refit else rows)
    codes = archive[:count]
    codes = _cut(name, Codes(codes.packed, codes.latents, codes.alphabet), latents, None)
    if codes.latents != archive.header.latents:
        about = f"the first {codes.latents:,} of {about}"
    if refit:
        return split(name, codes, about)
    found = models.of_tables(archive.tables, codes.latents)
    notes = []
    if models.AUTOREGRESSIVE not in found and models.has_autoregressive():
        notes.append(f"{name}: its tables hold no autoregressive network; --refit fits one to half of the rows.")
    independent = models.cheaper_table(found.get(models.INDEPENDENT), codes)
    found = {models.INDEPENDENT: independent} | {k: v for k, v in found.items() if k != models.INDEPENDENT}
    header = replace(archive.header, latents=codes.latents)
    return CodeSet(name, codes, found, about, header=header, tables=archive.tables, notes=tuple(notes))


def cifar10(
    folder: Path, *, latents: int | None, rows: int | None, refit: bool, say: Callable[[str], None]
) -> CodeSet:
    """Take the default model's codes of CIFAR-10's test images; make them, and keep them in ``folder``."""
    path = folder / CIFAR10_CODES
    name = "cifar10" if latents is None else f"cifar10-{latents}"
    if not _is_current(path):
        images = Path(os.environ.get("STOCHCL_DATA", ""), CIFAR10_ZIP)
        if not os.environ.get("STOCHCL_DATA") or not images.is_file():
            msg = f"{name} was left out: $STOCHCL_DATA names no folder that holds {CIFAR10_ZIP}."
            raise NoDataError(msg)
        from stochcl.api.codec import Codec

        say("encoding CIFAR-10's test images with the default model")
        Codec(device="cpu").compress(images, path, names=False, force=True)
    with Archive(path) as archive:
        return of_archive(name, archive, latents=latents, rows=rows, refit=refit)


def _is_current(path: Path) -> bool:
    """Tell whether codes that were kept are of the default model and the tables of today."""
    if not path.exists():
        return False
    from stochcl.api.codec import Codec

    codec = Codec(device="cpu")
    with suppress(FormatError, SourceError), Archive(path) as archive:
        kept = archive.header.model_sha256, archive.header.tables_sha256
        return kept == (codec.model.sha256, codec.tables.sha256)
    return False


def _read_array(path: Path) -> np.ndarray[Any, Any]:
    shown = printable(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return np.asarray(loaded)
        with loaded:
            return np.asarray(loaded["symbols"])
    except KeyError as exc:
        raise SourceError(f"{shown}: it has no array called symbols, as `stochcl decompress` writes it.") from exc
    except FileNotFoundError as exc:
        raise SourceError(f"{shown}: there is no such file.") from exc
    except OSError as exc:
        raise SourceError(f"{shown}: it cannot be read: {why(exc)}.") from exc
    except (ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise SourceError(f"{shown}: this is no NumPy file, or it is damaged ({printable(str(exc))}).") from exc


def _symbols(shown: str, array: np.ndarray[Any, Any]) -> Codes:
    if not array.size:
        raise SourceError(f"{shown}: it is empty.")
    if int(array.min()) < 0 or int(array.max()) >= MAX_ALPHABET:
        found = f"{array.min()} to {array.max()}"
        raise SourceError(f"{shown}: symbols lie in 0 to {MAX_ALPHABET - 1}, not in {found}.")
    return Codes.from_symbols(array, alphabet=max(2, int(array.max()) + 1))


def _cut(shown: str, codes: Codes, latents: int | None, rows: int | None) -> Codes:
    if latents is not None and not 1 <= latents <= codes.latents:
        raise UsageError(f"{shown}: it has {codes.latents:,} latents, not {latents:,}.")
    if len(codes) < 2:
        raise SourceError(f"{shown}: it has fewer than two rows, so there is nothing to measure.")
    return codes[:rows] if latents is None else codes[:rows].prefix(latents)
