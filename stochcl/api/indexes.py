"""Export archives to FAISS indexes, and import the codes of FAISS quantisers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.summary import Report
from stochcl.codes import Codes
from stochcl.compress import Archive, ArchiveBase, Header, Writer, open_archive
from stochcl.compress.transcode import fit_models
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.entropy.vectors import MAX_NUMBERS, ResidualDecoder
from stochcl.errors import SourceError, UsageError, require
from stochcl.files import PathLike, check_output, replacing, target_of, writing
from stochcl.messages import Progress, escape_name, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.entropy.tables import Where


METRICS = ("cosine", "l2")

_ROWS = 1 << 14  # decoded and added at a time
_TRAINING_VALUES = 1 << 26  # numbers in the vectors that an index is trained on
_SAMPLE = 1 << 16  # rows that entropy models are fitted to


def _reason(exc: RuntimeError) -> str:
    """Return FAISS's message without the location in its source."""
    return " ".join(str(exc).rpartition(": ")[2].split())


def export_faiss(
    path: PathLike, output: PathLike, *, factory: str = "Flat", metric: str = "cosine", binary: bool = False,
    tables: Where = (), force: bool = False, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Write an archive as a FAISS index whose ids are row numbers.

    Parameters
    ----------
    path, output : path-like
    factory : str
        The kind of index, as for ``faiss.index_factory``: ``Flat``, ``HNSW32``, ``IVF1024,PQ32``...
    metric : str
        ``cosine``: decoded vectors scaled to length 1, by inner product; ``l2``: unscaled.
    binary : bool
        Write the codes, which must be bits, as an IndexBinaryFlat, in place of decoded vectors.
    tables : iterable of Tables or path-like
    force : bool
    progress : callable

    Returns
    -------
    dict
        JSON values under the schema ``stochcl.export/0``.

    Raises
    ------
    UsageError
        If FAISS does not know the kind or has too few rows to train it, or the archive lacks what it needs.
    """
    faiss, output = require("faiss", "an index of FAISS", "faiss"), Path(output)
    check_output(output, Path(path), force=force)
    if metric not in METRICS:
        raise UsageError(f"metric must be {' or '.join(METRICS)}, got {metric!r}.")
    with open_archive(path, tables=tables) as archive:
        shown, header = escape_name(path), archive.header
        if binary and header.alphabet != 2:
            raise UsageError(f"{shown}: its symbols are not bits; omit --binary.")
        if not binary and archive.decoder is None:
            raise UsageError(f"{shown}: its model has no decoder to vectors; pass --binary to write bits.")
        try:
            index = _filled(faiss, archive, None if binary else factory, metric, progress)
        except RuntimeError as exc:
            raise UsageError(f"faiss cannot make an index {factory!r} of {shown}: {_reason(exc)}.") from exc
        with writing(output), replacing(output) as file:
            (faiss.write_index_binary if binary else faiss.write_index)(index, faiss.PyCallbackIOWriter(file.write))
        names_words = isinstance(archive.decoder, ResidualDecoder) and max(archive.decoder.stages) > 1
        return {
            "schema": "stochcl.export/0",
            "path": escape_name(output),
            "index": type(index).__name__,
            "images": len(archive),
            "dimensions": index.d,
            "bytes": output.stat().st_size,
            "notes": ["these bits name words, so few that differ need not mean near"]
            if binary and names_words
            else [],
        }


def _filled(faiss: Any, archive: ArchiveBase, factory: str | None, metric: str, progress: Progress) -> Any:
    """Return an index of decoded vectors, or without a ``factory`` of the codes' bits."""
    decoder = archive.decoder

    def rows(codes: Codes) -> NDArray[Any]:
        if factory is None or decoder is None:
            return np.ascontiguousarray(codes.packed)
        vectors = np.ascontiguousarray(decoder.decode(codes.symbols()), np.float32)
        if metric == "cosine":
            faiss.normalize_L2(vectors)
        return vectors

    if factory is None or decoder is None:
        index = faiss.IndexBinaryFlat(8 * archive[:0].packed.shape[1])
    else:
        kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
        index = faiss.index_factory(decoder.dim, factory, kind)
        if not index.is_trained:
            count = min(len(archive), max(1, _TRAINING_VALUES // decoder.dim))
            index.train(rows(archive[np.linspace(0, len(archive) - 1, count).astype(np.int64)]))
    for codes in archive.iter_codes(_ROWS):
        index.add(rows(codes))
        progress(index.ntotal, len(archive))
    return index


@dataclass(frozen=True)
class Imported:
    """An archive made from an index's codes, and the size of the codes in the index."""

    report: Report
    index: str
    index_code_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON values under the schema ``stochcl.import-faiss/0``."""
        found = self.report.to_json("import-faiss")
        return found | {"index": self.index, "index_code_bytes": self.index_code_bytes}

    def lines(self) -> list[str]:
        """Return the figures for people, with the gain or loss."""
        codes, tables = (self.report.parts[part] for part in ("codes", "tables"))
        saved = 100 * (1 - codes / self.index_code_bytes) if self.index_code_bytes else 0.0
        gain = f"{saved:.1f} % less" if saved > 0 else f"{-saved:.1f} % more"
        return [
            *self.report.lines(),
            f"  {self.index} keeps these codes in {self.index_code_bytes:,} bytes; here they take {codes:,}, {gain}",
            f"  in place of its codebooks: a decoder of {tables:,} bytes",
        ]


def import_faiss(index: PathLike, output: PathLike, *, force: bool = False, progress: Progress = silent) -> Imported:
    """Write the codes of a FAISS index of product or residual quantisation to an archive, entropy-coded.

    Decoded vectors equal the index's, except that codebooks are rounded to 8 bits. FAISS trusts the files that it
    reads: import only your own.

    Parameters
    ----------
    index : path-like
        An IndexPQ or IndexResidualQuantizer, possibly inside an IndexIDMap, whose ids become the names.
    output : path-like
    force : bool
    progress : callable

    Raises
    ------
    SourceError
        If the file is not an index, or of another kind.
    """
    faiss, shown, output = require("faiss", "an index of FAISS", "faiss"), escape_name(index), target_of(output)
    check_output(output, Path(index), force=force)
    try:
        read = whole = faiss.read_index(str(index))
    except RuntimeError as exc:
        raise SourceError(f"{shown}: FAISS cannot read this as an index: {_reason(exc)}.") from exc
    ids = None
    if isinstance(whole, faiss.IndexIDMap):  # keep `whole`, which owns the inner index
        ids, read = faiss.vector_to_array(whole.id_map), faiss.downcast_index(whole.index)
    bits, words = _quantiser(faiss, read, shown)
    if not read.ntotal:
        raise SourceError(f"{shown}: it is empty.")
    if sum(map(np.size, words)) > MAX_NUMBERS:
        raise SourceError(f"{shown}: its codebooks have more than {MAX_NUMBERS:,} numbers; an archive holds no more.")
    stored = faiss.vector_to_array(read.codes).reshape(read.ntotal, -1)

    # FAISS stores the least significant bit of each number first, an archive the most significant.
    order = np.concatenate(
        [np.arange(end - width, end)[::-1] for end, width in zip(np.cumsum(bits), bits, strict=True)]
    )

    def codes_of(rows: slice) -> Codes:
        names = None if ids is None else map(str, ids[rows].tolist())
        return Codes.from_symbols(np.unpackbits(stored[rows], axis=1, bitorder="little")[:, order], names=names)

    step = max(1, read.ntotal // _SAMPLE)
    sample = codes_of(slice(None, None, step))
    models = fit_models(sample, read.ntotal) or [IndependentModel.fit(sample)]
    network = models[1] if len(models) > 1 else None
    assert isinstance(models[0], IndependentModel)
    tables = Tables(
        (sum(bits),), models[0], ResidualDecoder.of_stages(words),
        network if isinstance(network, AutoregressiveModel) else None,
    )  # fmt: skip
    kind = type(read).__name__
    header = Header(
        model=f"faiss {kind}", model_sha256=tables.sha256, model_latents=sum(bits), latents=sum(bits), alphabet=2,
        precision="fp32", tables_sha256=tables.sha256, feature_dim=read.d, input_bytes=4 * read.d,
        source_kind="faiss",
    )  # fmt: skip
    with Writer(output, header, tables, embed_tables=True, names=ids is not None, force=force) as writer:
        for start in range(0, read.ntotal, _ROWS):
            part = codes_of(slice(start, start + _ROWS))
            writer.add(part, sizes=[4 * read.d] * len(part))
            progress(start + len(part), read.ntotal)
    with Archive(output) as archive:
        return Imported(Report.of(archive, str(output)), kind, stored.nbytes)


def _quantiser(faiss: Any, index: Any, shown: str) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Return the bits of each number of an index, and the words they name, which add up to a vector."""
    if isinstance(index, faiss.IndexPQ):
        pq = index.pq
        books = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
        words = np.zeros((pq.M, pq.ksub, index.d), np.float32)
        for m, book in enumerate(books):
            words[m, :, m * pq.dsub : (m + 1) * pq.dsub] = book
        bits, found = [pq.nbits] * pq.M, list(words)
    elif isinstance(index, faiss.IndexResidualQuantizer):
        rq = index.rq
        bits = faiss.vector_to_array(rq.nbits).astype(int).tolist()
        books = faiss.vector_to_array(rq.codebooks).reshape(-1, index.d)
        found = np.split(books, np.cumsum([1 << width for width in bits])[:-1])
    else:
        raise SourceError(f"{shown}: this is an {type(index).__name__}; give an IndexPQ or an "
                          "IndexResidualQuantizer.")  # fmt: skip
    if max(bits) > 8:
        raise SourceError(f"{shown}: its words have {max(bits)} bits; at most 8 are supported.")
    return bits, found
