"""Set the codec beside general compressors and constriction's call with a parameter per symbol.

    python benchmarks/codec.py -o results/
    python benchmarks/codec.py codes.bin -o results/ --latents 128

SOURCE is a file of codes, or a .npy or .npz file of symbols (integers) or features (floats, of which OPQ
indices are made). Without any, built-in sets are coded: skewed and correlated bits, OPQ indices of
made-up vectors, and the default model's codes of CIFAR-10's test images, where $STOCHCL_DATA names a folder
with cifar10-test.zip. Every method runs in a process of its own, on one core, and must give the codes back.
"""

from __future__ import annotations

import io
import lzma
import os
import statistics
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl import framing
from stochcl.benchmarks.pricing import write_archive
from stochcl.benchmarks.quantisers import CENTROIDS, OptimisedProduct, train_product
from stochcl.benchmarks.run import (
    BenchmarkError,
    ChildDiedError,
    Config,
    call_in_child,
    need,
    option,
    record,
    stay_on_one_core,
)
from stochcl.benchmarks.throughput import peak, restart_peak
from stochcl.cli.benchmark import command_of
from stochcl.codes import MAX_ALPHABET, Codes, bits_per_symbol, symbol_dtype
from stochcl.compress import Archive, Header
from stochcl.compress.transcode import choose
from stochcl.entropy import ans as coder
from stochcl.entropy.fit import fit_linear
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.errors import FormatError, MissingExtraError, SourceError, UsageError
from stochcl.messages import escape_name as printable
from stochcl.messages import os_reason as why

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SCHEMA = "stochcl.benchmark.codec/0"
SETS = ("skewed", "correlated", "opq", "cifar10")
"""Built-in sets, in the order in which they are measured."""

_ROWS = 10_000
_LATENTS = 128


@dataclass(frozen=True)
class CodecConfig(Config):
    """What is measured: archives, .npy or .npz files, or the built-in sets."""

    command_name: ClassVar[str] = "python benchmarks/codec.py"

    sources: tuple[Path, ...] = option((), "", type=Path, argument=True, metavar="[SOURCE]...")
    latents: int | None = option(
        None,
        "Bits of a row; of a SOURCE the first K latents.  [default: 128, and the full width of CIFAR-10's codes]",
        type=int, least=1, metavar="K",
    )  # fmt: skip
    rows: int | None = option(
        None, "Rows; of a SOURCE at most.  [default: 10,000, or all]", type=int, least=2, metavar="N"
    )
    repeat: int = option(5, "Runs whose median is the time.", type=int, least=1)
    only: tuple[str, ...] = option((), "This built-in set; may be repeated.", choices=SETS)
    refit: bool = option(False, "Fit tables to half of an archive's rows, and code the others.", type=bool)

    def check(self) -> None:
        """Raise UsageError where the parts do not go together."""
        super().check()
        if self.sources and self.only:
            raise UsageError("--only chooses among the built-in sets; leave it out where files are named.")


class NoDataError(SourceError):
    """A built-in set needs data that is not there; it is left out."""


def benchmark_codec(
    config: CodecConfig,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every method on every set."""
    config.check()
    left_out: list[str] = []

    def leave_out(sentence: str) -> None:
        if sentence not in left_out:
            left_out.append(sentence)
            say(sentence)

    sets, rows = [], []
    for code_set in code_sets(config, folder, leave_out, say):
        for note in code_set.notes:
            leave_out(note)
        sets.append(_describe(code_set))
        entries = entries_of(code_set, leave_out)
        for done, entry in enumerate(entries):
            progress(done, len(entries), f"{code_set.name}: {entry.method.name}")
            rows.append(_row(code_set, entry, run(entry.method, code_set, config.repeat)))
    return record(
        SCHEMA, config, n={entry["set"]: entry["n"] for entry in sets}, left_out=left_out, sets=sets, rows=rows
    )


def code_sets(
    config: CodecConfig, folder: Path, leave_out: Callable[[str], None], say: Callable[[str], None]
) -> Iterator[CodeSet]:
    """Make the sets that are asked for, one at a time; built-in ones that cannot be made are left out."""
    given: dict[str, Any] = {"rows": config.rows, "refit": config.refit}
    for path in config.sources:
        yield read_source(path, latents=config.latents, seed=config.seed, **given)
    if config.sources:
        return
    size = config.rows or _ROWS, config.latents or _LATENTS, config.seed
    widths = [None, _LATENTS] if config.latents is None else [config.latents]
    makers: dict[str, list[Callable[[], CodeSet]]] = {
        "skewed": [lambda: skewed(*size)],
        "correlated": [lambda: correlated(*size)],
        "opq": [lambda: opq(*size)],
        "cifar10": [partial(cifar10, folder, latents=width, say=say, **given) for width in widths],
    }
    for name in config.only or SETS:
        for make in makers[name]:
            try:
                yield make()
            except MissingExtraError as exc:
                leave_out(f"{name} was left out: {exc}")
            except NoDataError as exc:
                leave_out(str(exc))


def run(method: Method, code_set: CodeSet, repeat: int) -> dict[str, Any]:
    """Measure a method in a fresh process on one core, and see that it gave the codes back."""
    warm = replace(method, rows=min(WARM_ROWS, len(code_set.codes)))
    where = f"{method.name} on {code_set.name}"
    try:
        found: dict[str, Any] = call_in_child(measure, Measurement(method, warm, code_set.codes, repeat))
    except ChildDiedError as exc:
        raise BenchmarkError(f"{where}: {exc}") from exc
    if not found["correct"]:
        raise BenchmarkError(f"{where}: it gave back other codes than it was given; no figure of this run counts.")
    return found


def _describe(code_set: CodeSet) -> dict[str, Any]:
    bits, kind = code_set.ideal
    codes = code_set.codes
    return {
        "set": code_set.name,
        "about": code_set.about,
        "n": len(codes),
        "latents": codes.latents,
        "alphabet": codes.alphabet,
        "ideal_bits_per_image": round(bits / len(codes), 4),
        "ideal_model": kind,
        "ideal_origin": code_set.models[kind].origin,
        "source_bits_per_image": None if code_set.source_bits is None else round(code_set.source_bits, 4),
    }


def _row(code_set: CodeSet, entry: Entry, found: dict[str, Any]) -> dict[str, Any]:
    codes, encode, decode = code_set.codes, found["encode"], found["decode"]
    rows, bits = len(codes), found["bytes"] * 8
    own = code_set.models[entry.model].model.ideal_bits(codes) if entry.model else None
    return {
        "set": code_set.name,
        "n": rows,
        "latents": codes.latents,
        "alphabet": codes.alphabet,
        "method": entry.method.name,
        "ours": entry.method.ours,
        "bytes": found["bytes"],
        "bytes_per_image": round(found["bytes"] / rows, 4),
        "ratio_to_ideal": round(bits / code_set.ideal[0], 5),
        "model": entry.model,
        "model_origin": entry.origin,
        "ratio_to_own_model": None if own is None else round(bits / own, 5),
        "tables_bytes": entry.tables_bytes,
        "encode_images_per_second": round(rows / encode["seconds"], 1),
        "decode_images_per_second": round(rows / decode["seconds"], 1),
        "encode_repeats": encode["repeats"],
        "decode_repeats": decode["repeats"],
        "encode_peak_bytes": encode["peak_bytes"],
        "decode_peak_bytes": decode["peak_bytes"],
        "correct": found["correct"],
    }


# Sets of codes.


INDEPENDENT, AUTOREGRESSIVE = "independent", "autoregressive"


@dataclass(frozen=True)
class EntropyModel:
    """A model with what a reader of the figures must know of it."""

    model: Any
    origin: str
    bytes: int

    @classmethod
    def of(cls, model: Any, origin: str) -> EntropyModel:
        """Take a model's size from its own bytes."""
        return cls(model, origin, len(model.to_bytes()))


def fitted(rows: Codes) -> dict[str, EntropyModel]:
    """Fit every kind of model that numpy can fit to rows, by kind."""
    return {
        INDEPENDENT: EntropyModel.of(IndependentModel.fit(rows), "fitted"),
        AUTOREGRESSIVE: EntropyModel.of(fit_linear(rows), "fitted"),
    }


def of_tables(tables: Tables, latents: int) -> dict[str, EntropyModel]:
    """Return the models that decoding tables hold, cut to so many latents, by kind."""
    there = [getattr(tables, name, None) for name in ("entropy", INDEPENDENT, AUTOREGRESSIVE)]
    found = {}
    for model in there:
        if model is not None:
            kind = INDEPENDENT if isinstance(model, IndependentModel) else AUTOREGRESSIVE
            found[kind] = EntropyModel.of(model.prefix(latents), "tables")
    return found


def cheaper_table(found: EntropyModel | None, codes: Codes) -> EntropyModel:
    """Return the tables' independent symbols, or a table of the codes' own where that pays for itself.

    It is the choice that a writer makes; codes of images unlike those that a model was trained on gain by it.
    """
    model = IndependentModel.fit(codes)
    own = EntropyModel(model, "own table", len(zlib.compress(model.to_bytes(), 9)))
    if found is None or model.ideal_bits(codes) + 8 * own.bytes < found.model.ideal_bits(codes):
        return own
    return found


_FACTORS = 6
"""Hidden bits of the correlated set; their 64 states are summed over for the exact entropy."""


@dataclass(frozen=True, eq=False)
class CodeSet:
    """Codes that every method is given, with what they are coded under."""

    name: str
    codes: Codes
    models: dict[str, EntropyModel]
    about: str
    source_bits: float | None = None
    header: Header | None = None
    tables: Tables | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def ideal(self) -> tuple[float, str]:
        """Bits of all rows under the best of the models, and which that is."""
        return min((entry.model.ideal_bits(self.codes), kind) for kind, entry in self.models.items())


def skewed(rows: int, latents: int, seed: int) -> CodeSet:
    """Independent bits, each latent with its own probability of a one, from Beta(0.4, 0.4): many are skewed."""
    rng = np.random.default_rng([seed, 1])
    p = np.clip(rng.beta(0.4, 0.4, latents), 1 / 4096, 4095 / 4096)
    coded, others = (rng.random((rows, latents)) < p for _ in range(2))
    bits = -np.where(coded, np.log2(p), np.log2(1 - p)).sum() / rows
    return _drawn("skewed", coded, others, "independent bits, probabilities from Beta(0.4, 0.4)", float(bits))


def correlated(rows: int, latents: int, seed: int) -> CodeSet:
    """Bits that depend on six hidden ones: logit of latent j is ``b[j] + w[j] . h``, h uniform in {-1, 1}**6."""
    rng = np.random.default_rng([seed, 2])
    weights = rng.normal(0, 1.0, (_FACTORS, latents))
    bias = rng.normal(0, 1.0, latents)
    states = 1.0 - 2.0 * ((np.arange(1 << _FACTORS)[:, None] >> np.arange(_FACTORS)) & 1)
    p = 1 / (1 + np.exp(-(states @ weights + bias)))
    coded, others = (rng.random((rows, latents)) < p[rng.integers(len(states), size=rows)] for _ in range(2))
    bits = _mixture_bits(coded, p)
    about = f"bits that depend on {_FACTORS} hidden bits through a logistic model"
    return _drawn("correlated", coded, others, about, bits)


def _mixture_bits(bits: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """Return -log2 of the probability of rows under equally likely products, per row; exact."""
    total = 0.0
    for start in range(0, len(bits), 8192):
        part = bits[start : start + 8192].astype(np.float64)
        log = part @ np.log(p).T + (1 - part) @ np.log1p(-p).T
        top = log.max(axis=1)
        total -= (top + np.log(np.exp(log - top[:, None]).mean(axis=1))).sum()
    return float(total / np.log(2) / max(len(bits), 1))


def _drawn(name: str, coded: NDArray[np.bool_], others: NDArray[np.bool_], about: str, bits: float) -> CodeSet:
    codes, fitting = Codes.from_symbols(coded), Codes.from_symbols(others)
    return CodeSet(name, codes, fitted(fitting), about, source_bits=bits)


def split(name: str, codes: Codes, about: str) -> CodeSet:
    """Fit models to every second row and code the others: a model fitted to what it codes flatters itself."""
    note = f"{name}: the tables are fitted to every second row, and the others are coded."
    return CodeSet(name, codes[::2], fitted(codes[1::2]), about, notes=(note,))


_TRAINING = 12_000  # faiss asks for 39 rows a centroid
_CLUSTERS = 50
_RANK = 12


def opq(rows: int, latents: int, seed: int) -> CodeSet:
    """OPQ indices of seeded vectors: 50 clusters of low-rank Gaussian noise, 4 dimensions an index."""
    need("faiss")
    indices = max(1, latents // 8)
    rng = np.random.default_rng([seed, 3])
    dim = 4 * indices
    centres = rng.normal(0, 1.0, (_CLUSTERS, dim))
    loadings = rng.normal(0, 0.5, (_CLUSTERS, min(_RANK, dim), dim))
    weights = rng.dirichlet(np.ones(_CLUSTERS))

    def vectors(count: int) -> np.ndarray:
        cluster = np.sort(rng.choice(_CLUSTERS, size=count, p=weights))
        out = centres[cluster] + rng.normal(0, 0.2, (count, dim))
        for k in np.unique(cluster):
            mine = cluster == k
            out[mine] += rng.normal(size=(mine.sum(), loadings.shape[1])) @ loadings[k]
        return rng.permutation(out).astype(np.float32)

    training, *matrices = vectors(_TRAINING), vectors(rows), vectors(rows)
    fitting, coded = call_in_child(_quantised, training, matrices, indices, seed)
    about = f"{indices} OPQ indices of seeded vectors of {dim} dimensions"
    return CodeSet("opq", coded, fitted(fitting), about)


def opq_of(name: str, features: np.ndarray, latents: int, seed: int) -> CodeSet:
    """OPQ indices of somebody's features, shape (N, dim), float."""
    need("faiss")
    if len(features) < 2 * CENTROIDS:
        raise SourceError(f"{name}: a quantiser of {CENTROIDS} values needs {2 * CENTROIDS} rows or more.")
    if not np.isfinite(features).all():
        raise SourceError(f"{name}: some of its numbers are not finite; leave those rows out.")
    indices = max(1, min(latents // 8, features.shape[1]))
    OptimisedProduct.check(len(features), features.shape[1], 8 * indices)
    (codes,) = call_in_child(_quantised, np.ascontiguousarray(features, np.float32), [features], indices, seed)
    return split(name, codes, f"{indices} OPQ indices of {features.shape[1]} features")


def _quantised(training: np.ndarray, matrices: list[np.ndarray], indices: int, seed: int) -> list[Codes]:
    """Train a quantiser and return the codes of each matrix; in a child process, for faiss may crash."""
    quantise, *_ = train_product(training, indices, seed)
    return [Codes.from_symbols(quantise(matrix), alphabet=CENTROIDS) for matrix in matrices]


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
    found = of_tables(archive.tables, codes.latents)
    notes = []
    if AUTOREGRESSIVE not in found:
        notes.append(f"{name}: its tables hold no autoregressive network; --refit fits one to half of the rows.")
    independent = cheaper_table(found.get(INDEPENDENT), codes)
    found = {INDEPENDENT: independent} | {k: v for k, v in found.items() if k != INDEPENDENT}
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


# Methods.


ROWS, COLUMNS, PLANES = "rows", "columns", "planes"
"""Row after row, packed; latent after latent; and for wider alphabets also bit after bit of every latent."""


def layouts(alphabet: int) -> tuple[str, ...]:
    """Return the layouts that differ for an alphabet: binary latents are their own bit planes.

    Examples
    --------
    >>> layouts(2), layouts(256)
    (('rows', 'columns'), ('rows', 'columns', 'planes'))
    """
    return (ROWS, COLUMNS) if alphabet == 2 else (ROWS, COLUMNS, PLANES)


def lay_out(codes: Codes, layout: str) -> bytes:
    """Write codes as bytes: packed rows, symbols of one latent after the other, or transposed bit planes."""
    if layout == ROWS:
        return codes.packed.tobytes()
    if layout == COLUMNS and codes.alphabet > 2:
        return np.ascontiguousarray(codes.symbols().T).tobytes()
    return np.packbits(np.ascontiguousarray(codes.decisions().T), axis=1).tobytes()


def take_up(data: bytes, layout: str, rows: int, latents: int, alphabet: int) -> Codes:
    """Invert :func:`lay_out`."""
    empty = Codes.from_symbols(np.empty((0, latents), np.uint8), alphabet=alphabet)
    if layout == ROWS:
        packed = np.frombuffer(data, np.uint8).reshape(rows, empty.packed.shape[1])
        return Codes(packed, latents, alphabet)
    if layout == COLUMNS and alphabet > 2:
        symbols = np.frombuffer(data, symbol_dtype(alphabet)).reshape(latents, rows)
        return Codes.from_symbols(np.ascontiguousarray(symbols.T), alphabet=alphabet)
    planes = np.frombuffer(data, np.uint8).reshape(empty.decisions_per_row, -1)
    decisions = np.unpackbits(planes, axis=1, count=rows).T
    return Codes(np.packbits(np.ascontiguousarray(decisions), axis=1), latents, alphabet)


_BLOCK_BITS = 1 << 16  # what a block of an archive holds, too
_PARAMETERS = 1 << 20  # probabilities given to one call of constriction: 8 MB


@dataclass(frozen=True)
class Method(ABC):
    """A way to write codes as bytes.

    ``decode(encode(codes))`` gives codes of equal symbols, in this process or another: a method knows the codes'
    shape and whatever entropy model it was made with, and nothing of the codes themselves. Both functions take
    and return packed :class:`~stochcl.codes.Codes`, so a method that needs another form pays for making it.
    """

    name: str
    rows: int
    latents: int
    alphabet: int

    ours: ClassVar[bool] = False
    module: ClassVar[str | None] = None
    """A module of the ``bench`` extra that it needs."""

    @abstractmethod
    def encode(self, codes: Codes) -> bytes:
        """Write codes as bytes."""

    @abstractmethod
    def decode(self, data: bytes) -> Codes:
        """Read what :meth:`encode` wrote."""

    def _codes(self, packed: NDArray[np.uint8]) -> Codes:
        return Codes(packed, self.latents, self.alphabet)


@dataclass(frozen=True)
class Blocks(Method):
    """Ours: the coded symbols alone, in blocks as an archive has them, each with its length."""

    model: Any
    rows_per_block: int

    ours = True

    @staticmethod
    def block_rows(bits_per_row: float, decisions_per_row: int) -> int:
        """Rows that fill a block of 64 kbit, as in an archive."""
        rows = round(_BLOCK_BITS / max(bits_per_row, 1e-3))
        return max(1, min(rows, framing.MAX_BLOCK_DECISIONS // decisions_per_row, 1 << 20))

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        blocks = [
            coder.encode_block(codes[start : start + self.rows_per_block], self.model)
            for start in range(0, len(codes), self.rows_per_block)
        ]
        lengths = framing.pack_varints([len(words) for words in blocks])
        return b"".join([lengths, *(words.astype("<u4").tobytes() for words in blocks)])

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        starts = range(0, self.rows, self.rows_per_block)
        counts = [min(self.rows_per_block, self.rows - start) for start in starts]
        lengths, position = framing.unpack_varints(data, len(counts), 0)
        words = []
        for length in lengths:
            words.append(np.frombuffer(data, "<u4", length, position).astype(np.uint32))
            position += 4 * length
        together = getattr(coder, "decode_blocks", None)
        if together is not None:
            return self._codes(np.concatenate(together(words, counts, self.model)))
        parts = [coder.decode_block(w, n, self.model) for w, n in zip(words, counts, strict=True)]
        return self._codes(np.concatenate(parts))


@dataclass(frozen=True)
class WholeArchive(Method):
    """Ours: the file that a writer leaves, with header, index and checksums, fsync included; without names."""

    header: Header
    tables: Tables
    embed_tables: bool
    fitted: tuple[EntropyModel, ...] = ()

    ours = True

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        return write_archive(self.header, self.tables, codes, embed_tables=self.embed_tables, fitted=self.fitted)

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        with Archive(io.BytesIO(data), tables=[self.tables]) as archive:
            return archive[:]


@dataclass(frozen=True)
class Packed(Method):
    """The codes as they are held in memory: one bit a binary latent, no entropy coding."""

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        return codes.packed.tobytes()

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        return self._codes(np.frombuffer(data, np.uint8).reshape(self.rows, -1))


@dataclass(frozen=True)
class General(Method):
    """A general compressor on bytes laid out in one of several orders."""

    layout: str

    label: ClassVar[str] = ""

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        return self._deflate(lay_out(codes, self.layout))

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        return take_up(self._inflate(data), self.layout, self.rows, self.latents, self.alphabet)

    @abstractmethod
    def _deflate(self, data: bytes) -> bytes: ...

    @abstractmethod
    def _inflate(self, data: bytes) -> bytes: ...


class Zlib(General):
    """Deflate at level 9."""

    label = "zlib -9"

    def _deflate(self, data: bytes) -> bytes:
        return zlib.compress(data, 9)

    def _inflate(self, data: bytes) -> bytes:
        return zlib.decompress(data)


class Xz(General):
    """LZMA2 at preset 9, extreme."""

    label = "xz -9e"

    def _deflate(self, data: bytes) -> bytes:
        return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)

    def _inflate(self, data: bytes) -> bytes:
        return lzma.decompress(data)


class Zstd(General):
    """Zstandard at level 19."""

    label = "zstd -19"
    module = "zstandard"

    def _deflate(self, data: bytes) -> bytes:
        packed: bytes = import_module("zstandard").ZstdCompressor(level=19).compress(data)
        return packed

    def _inflate(self, data: bytes) -> bytes:
        plain: bytes = import_module("zstandard").ZstdDecompressor().decompress(data)
        return plain


class Brotli(General):
    """Brotli at quality 11."""

    label = "brotli -11"
    module = "brotli"

    def _deflate(self, data: bytes) -> bytes:
        packed: bytes = import_module("brotli").compress(data, quality=11)
        return packed

    def _inflate(self, data: bytes) -> bytes:
        plain: bytes = import_module("brotli").decompress(data)
        return plain


GENERAL: tuple[type[General], ...] = (Zlib, Xz, Zstd, Brotli)


@dataclass(frozen=True)
class PerSymbol(Method):
    """constriction's ANS as its manual shows it: one stream, one row of probabilities for each symbol.

    Many symbols go to a call, but not all: their probabilities, a float64 for each value of each symbol, would
    take a hundred times the memory of the codes. The stream is the same whatever the calls' size.
    """

    model: IndependentModel
    perfect: bool

    def encode(self, codes: Codes) -> bytes:  # noqa: D102
        import constriction

        ans, family, chunk = constriction.stream.stack.AnsCoder(), self._family(), self._chunk()
        probabilities = np.tile(symbol_probabilities(self.model), (min(chunk, self.rows), 1))
        for start in reversed(range(0, self.rows, chunk)):  # a stack gives back last what it took first
            symbols = codes[start : start + chunk].symbols().reshape(-1).astype(np.int32)
            ans.encode_reverse(symbols, family, probabilities[: len(symbols)])
        return bytes(ans.get_compressed().astype("<u4").tobytes())

    def decode(self, data: bytes) -> Codes:  # noqa: D102
        import constriction

        ans = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
        family, chunk, parts = self._family(), self._chunk(), []
        probabilities = np.tile(symbol_probabilities(self.model), (min(chunk, self.rows), 1))
        for start in range(0, self.rows, chunk):
            count = min(chunk, self.rows - start)
            symbols = ans.decode(family, probabilities[: count * self.latents])
            parts.append(Codes.from_symbols(symbols.reshape(count, -1), alphabet=self.alphabet).packed)
        return self._codes(np.concatenate(parts))

    def _family(self) -> Any:
        import constriction

        return constriction.stream.model.Categorical(perfect=self.perfect)

    def _chunk(self) -> int:
        return max(1, _PARAMETERS // (self.latents * self.alphabet))


def symbol_probabilities(model: IndependentModel) -> NDArray[np.float64]:
    """Multiply a model's decisions out to probabilities of symbols, shape (D, K); each row adds up to 1.

    Examples
    --------
    >>> symbol_probabilities(IndependentModel(np.array([[1024]], np.uint16)))
    array([[0.75, 0.25]])
    """
    ones = model.ones / 4096
    leaves = np.ones((model.latents, 1))
    while leaves.shape[1] < model.alphabet:
        nodes = leaves.shape[1]
        one = ones[:, nodes - 1 : 2 * nodes - 1]
        leaves = np.stack([leaves * (1 - one), leaves * one], axis=2).reshape(model.latents, -1)
    kept = leaves[:, : model.alphabet]  # what the alphabet lacks has next to no probability
    normal: NDArray[np.float64] = kept / kept.sum(axis=1, keepdims=True)
    return normal


_NO_MODEL = "0" * 64


@dataclass(frozen=True)
class Entry:
    """A method with what is said of it beside its measurement."""

    method: Method
    tables_bytes: int = 0
    model: str | None = None
    origin: str | None = None


def entries_of(code_set: CodeSet, leave_out: Callable[[str], None]) -> list[Entry]:
    """Return ours and all others for a set, in the order of the table."""
    codes = code_set.codes
    shape = (len(codes), codes.latents, codes.alphabet)
    entries = []
    for kind, entropy in code_set.models.items():
        block_rows = Blocks.block_rows(entropy.model.ideal_bits(codes) / len(codes), codes.decisions_per_row)
        entries.append(Entry(Blocks(kind, *shape, entropy.model, block_rows), entropy.bytes, kind, entropy.origin))
    entries.append(_archive(code_set, shape))
    entries.append(Entry(Packed("packed", *shape)))
    for compressor in GENERAL:
        try:
            if compressor.module is not None:
                need(compressor.module)
        except MissingExtraError as exc:
            leave_out(f"{compressor.label} was left out: {exc}")
            continue
        entries += [
            Entry(compressor(f"{compressor.label}, {layout}", *shape, layout)) for layout in layouts(codes.alphabet)
        ]
    entropy = code_set.models[INDEPENDENT]
    for perfect in (True, False):
        name = f"constriction, perfect={perfect}"
        method = PerSymbol(name, *shape, entropy.model, perfect)
        entries.append(Entry(method, entropy.bytes, INDEPENDENT, entropy.origin))
    return entries


def _archive(code_set: CodeSet, shape: tuple[int, int, int]) -> Entry:
    """Return the row of the whole file: tables inside it, unless they come with the package.

    Codes without a model of theirs get tables that know nothing, and the fitted models that are worth their bytes
    in the file, as ``stochcl transcode --refit`` would give it.
    """
    header, tables = code_set.header, code_set.tables
    fitted: tuple[EntropyModel, ...] = ()
    if header is None or tables is None:
        _, latents, alphabet = shape
        nodes = (1 << bits_per_symbol(alphabet)) - 1
        tables = Tables((latents,), IndependentModel(np.full((latents, nodes), 2048, np.uint16), alphabet))
        header = Header("benchmark", _NO_MODEL, latents, latents, alphabet, "none", tables.sha256)
        fits = [entropy.model for entropy in code_set.models.values()]
        fitted = tuple(choose([code_set.codes], tables.candidates(latents), fits))
    packaged = resources.files("stochcl").joinpath("tables", f"{tables.sha256}.tables").is_file()
    method = WholeArchive("archive", *shape, header, tables, embed_tables=not packaged, fitted=fitted)
    return Entry(method, len(tables.data) if packaged else 0)


# The measurement.


WARM_ROWS = 8
_SLOW = 5.0
"""Seconds beyond which a function is not run again: its first time stands, and ``repeats`` says 1."""


@dataclass(frozen=True)
class Measurement:
    """What a process is told to measure."""

    method: Method
    warm: Method
    codes: Codes
    repeat: int


def measure(job: Measurement) -> dict[str, Any]:
    """Encode and decode, and return bytes, seconds, memory and whether the codes came back.

    The first run of each function gives the memory, and those after it the time: the median of ``repeat`` runs.
    Memory is what the function adds at its highest to the process as it stood before, its result included:
    the growth of the resident set's high-water mark, after the mark was brought down to what is in use (on Linux;
    elsewhere the mark only rises, and a peak below an earlier one shows as 0).
    """
    stay_on_one_core()
    few = job.codes[: job.warm.rows]
    job.warm.decode(job.warm.encode(few))
    data, encoding = _run(lambda: job.method.encode(job.codes), job.repeat)
    decoded, decoding = _run(lambda: job.method.decode(data), job.repeat)
    correct = (
        decoded.packed.shape == job.codes.packed.shape
        and (decoded.latents, decoded.alphabet) == (job.codes.latents, job.codes.alphabet)
        and bool((decoded.packed == job.codes.packed).all())
    )
    return {"bytes": len(data), "correct": correct, "encode": encoding, "decode": decoding}


def _run(function: Callable[[], Any], repeat: int) -> tuple[Any, dict[str, Any]]:
    before = restart_peak()
    first, value = _timed(function)
    added = max(0, peak() - before)
    times = [first] if first > _SLOW else [_timed(function)[0] for _ in range(repeat)]
    return value, {"seconds": statistics.median(times), "repeats": len(times), "peak_bytes": added}


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = function()
    return time.perf_counter() - started, value


TABLE_COLUMNS = (
    "method", "bytes/image", "x ideal", "encode/s", "decode/s", "peak MB", "tables B", "correct",
)  # fmt: skip
"""Of the table for people: x ideal is the size by that of the ideal, tables B what is needed beside the file."""


def tables(result: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield a title, the columns and the lines of each set's table, for people."""
    for entry in result["sets"]:
        ideal = f"{entry['ideal_bits_per_image']:,.1f} bits ({entry['ideal_model']}, {entry['ideal_origin']})"
        title = f"{entry['set']}: {entry['n']:,} images, {entry['about']}; ideal {ideal}"
        if entry["source_bits_per_image"] is not None:
            title += f"; the source itself {entry['source_bits_per_image']:,.1f} bits"
        lines: list[tuple[str, ...]] = [
            (
                row["method"],
                f"{row['bytes_per_image']:,.2f}",
                f"{row['ratio_to_ideal']:.4f}",
                f"{row['encode_images_per_second']:,.0f}",
                f"{row['decode_images_per_second']:,.0f}",
                f"{max(row['encode_peak_bytes'], row['decode_peak_bytes']) / 1e6:,.1f}",
                f"{row['tables_bytes']:,}",
                "yes" if row["correct"] else "NO",
            )
            for row in result["rows"]
            if row["set"] == entry["set"]
        ]
        yield title, TABLE_COLUMNS, lines


main = command_of(
    CodecConfig,
    "codec",
    benchmark_codec,
    lambda result: list(tables(result)),
    help=__doc__,
    unit="methods",
    script=True,
)

if __name__ == "__main__":
    from codec import main as imported  # by its name, so that a child process finds what is in here

    imported()
