"""Predictions for an archive's images from a saved probe or a fine-tuned model's classifier."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.evaluate import arithmetic_notes, rows_of
from stochcl.api.source import check_source_fits_model, no_readable_error, read_batches
from stochcl.api.summary import skipped_json
from stochcl.compress import Header, open_archive
from stochcl.compress.sharded import MANIFEST
from stochcl.data import open_source
from stochcl.downstream import Fitted, SavedProbe, load
from stochcl.errors import ModelMismatch, UsageError
from stochcl.files import PathLike, begins_with, check_output, exists, is_folder, write_file
from stochcl.framing import MAGIC
from stochcl.messages import escape_name
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.api.encode import CodecBase
    from stochcl.entropy.tables import Where

    _Rows = tuple[Sequence[str], NDArray[np.float32], tuple[tuple[str, str], ...]]  # names, inputs, skipped images


_BATCH = 256


def predict(
    path: PathLike, probe: PathLike, output: PathLike, *, tables: Where = (), device: str = "auto",
    force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the predictions of a saved probe, or of a fine-tuned model's classifier, for each image to a CSV file.

    Its columns are ``name`` (the row's number in an archive without names), one per target, and after each target of
    classes their probabilities, if the estimator has them: ``p(class)``, or ``target p(class)`` for several targets.

    Parameters
    ----------
    path : path-like
        An archive of the model that the probe was fitted on, with at least as many latents. For a fine-tuned model,
        an archive of its codes, or a source of images.
    probe : path-like
        The output of ``stochcl evaluate --save``, or the model file from ``stochcl finetune``.
    output : path-like
    tables : iterable of Tables or path-like
        Searched first for decoding tables that are not in the archive.
    device : str
        Device for a fine-tuned model: auto, cpu, cuda...
    force : bool
        Replace an existing output.

    Raises
    ------
    ModelMismatch
        If the archive is of another model, or has other latents of it.
    SourceError, FormatError, UsageError, OutputError
    """
    output = Path(output)
    check_output(output, Path(path), force=force)
    is_model = Path(probe).suffix == ".safetensors"
    columns, facts = _classify(path, probe, device) if is_model else _ask_probe(path, probe, tables)
    _write(output, columns)
    return {
        "schema": "stochcl.predict/0", "path": escape_name(path), "probe": escape_name(probe),
        "output": escape_name(output), "images": len(columns["name"]), **facts,
        "columns": [escape_name(name) for name in columns],
    }  # fmt: skip


def _ask_probe(path: PathLike, probe: PathLike, tables: Where) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return columns by name, and facts about the probe, from a saved probe."""
    saved = load(probe)
    if not is_url(path) and is_folder(path) and not _is_archive(path):
        raise UsageError(
            f"{escape_name(path)}: a saved probe reads codes, and this is a folder of images; compress it first."
        )
    with open_archive(path, tables=tables) as archive:
        _check_suits(archive.header, saved, path, probe)
        notes = arithmetic_notes(archive.header, path, saved, probe)
        x = rows_of(archive, saved.output, saved.latents)
        names = archive.names or [str(i) for i in range(len(archive))]
    if x.dtype.kind != "f":
        x = x.astype(np.float32)  # as in training
    columns: dict[str, Any] = {"name": names}
    for target in saved.targets:
        columns |= _answers(target, x, alone=len(saved.targets) == 1)
    targets = [
        {
            "target": target.target, "task": target.task, "estimator": target.estimator, "trained_on": target.rows,
            "classes": [escape_name(name) for name in target.classes],
        }
        for target in saved.targets
    ]  # fmt: skip
    return columns, {"skipped": [], "notes": notes, "targets": targets}


def _classify(path: PathLike, model: PathLike, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same from a fine-tuned model."""
    from stochcl.api.codec import Codec

    codec = Codec(model, device=device)
    config, record = codec.config, codec.model.record
    if codec.classifier is None:
        raise UsageError(f"{escape_name(model)}: this model has no classifier; `stochcl finetune` makes one.")
    names, x, skipped = _archive_rows(path, codec) if _is_archive(path) else _image_rows(path, codec)
    weight, bias = codec.classifier
    scores = x @ weight.T + bias
    shares = np.exp(scores - scores.max(axis=1, keepdims=True)) if len(x) else scores
    shares /= shares.sum(axis=1, keepdims=True)
    columns: dict[str, Any] = {"name": names, "label": [config.classes[i] for i in scores.argmax(axis=1)]}
    columns |= {f"p({name})": shares[:, i].tolist() for i, name in enumerate(config.classes)}
    target = {
        "target": "label", "task": "classification", "estimator": "fine-tuned classifier",
        "trained_on": record.get("images"), "classes": [escape_name(name) for name in config.classes],
    }  # fmt: skip
    return columns, {"skipped": skipped_json(skipped), "notes": [], "targets": [target]}


def _is_archive(path: PathLike) -> bool:
    if is_url(path):
        return True
    return exists(Path(path, MANIFEST)) or begins_with(path, MAGIC)


def _archive_rows(path: PathLike, codec: CodecBase) -> _Rows:
    """Return the names and vectors of an archive of a fine-tuned model's codes."""
    if codec.config.classifies == "features":
        raise UsageError(
            f"{escape_name(path)}: the classifier of {escape_name(codec.model.name)} reads features, which codes do "
            "not have; give the images."
        )
    with open_archive(path, tables=[codec.tables]) as archive:
        codec.check_made(archive.header, path, "compress the images with this model")
        return archive.names or [str(i) for i in range(len(archive))], archive.to_vectors(), ()


def _image_rows(path: PathLike, codec: CodecBase) -> _Rows:
    """Encode images; return names and classifier inputs of the readable ones, and the failures."""
    source = check_source_fits_model(open_source(path), codec)
    decoder = None if codec.config.classifies == "features" else codec.tables.decoder
    names: list[str] = []
    parts: list[NDArray[np.float32]] = []
    failures = list(source.rejected)
    for batch in read_batches(source, codec.preprocess, _BATCH, None, 0):
        failures += batch.failures
        if batch.positions:
            encoded = codec.encode_prepared(batch.inputs, uncertainty=False)
            parts.append(encoded.features if decoder is None else decoder.decode(encoded.codes.symbols()))
            names += batch.names
    skipped = tuple((failure.name, failure.reason) for failure in failures)
    if not names:
        raise no_readable_error(source, skipped[0])
    return names, np.concatenate(parts), skipped


def _check_suits(header: Header, saved: SavedProbe, path: PathLike, probe: PathLike) -> None:
    """Refuse an archive whose rows do not match the probe's training data."""
    shown, of = escape_name(path), escape_name(probe)
    if header.model_sha256 != saved.model_sha256:
        raise ModelMismatch(
            f"{shown}: it was made by the model {escape_name(header.model)} ({header.model_sha256[:12]}), and {of} "
            f"was fitted on codes of {escape_name(saved.model)} ({saved.model_sha256[:12]}); fit it on codes of this "
            "model."
        )
    if saved.output == "vectors" and saved.tables_sha256 not in (None, header.tables_sha256):
        raise ModelMismatch(
            f"{shown}: its vectors are decoded by other tables ({header.tables_sha256[:12]}) than those that {of} "
            f"was fitted on ({str(saved.tables_sha256)[:12]}); fit it on such vectors, or on symbols."
        )
    there = None if header.selection is None else tuple(header.selection)
    if header.latents < saved.latents:
        raise UsageError(
            f"{shown}: it has {header.latents:,} latents, and {of} takes {saved.latents:,}; give codes of that width."
        )
    if (None if there is None else there[: saved.latents]) != saved.selection:
        raise ModelMismatch(
            f"{shown}: it holds other latents than those that {of} was fitted on; make it with the same --select."
        )


def _answers(target: Fitted, x: NDArray[Any], *, alone: bool) -> dict[str, Any]:
    if not len(x):
        return {target.target: []}
    columns: dict[str, Any] = {target.target: target.predict(x).tolist()}
    shares = target.probabilities(x)
    if shares is not None:
        start = "" if alone else f"{target.target} "
        columns |= {f"{start}p({name})": shares[:, i].tolist() for i, name in enumerate(target.classes)}
    return columns


def _write(output: Path, columns: dict[str, Any]) -> None:
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    for cells in zip(*columns.values(), strict=True):
        out.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])
    write_file(output, text.getvalue().encode("utf-8", "surrogateescape"), "the predictions")
