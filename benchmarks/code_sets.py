"""The code sets of benchmarks/codec.py, from archives or synthetic, each with its entropy models."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl.benchmarks.quantisers import CENTROIDS, train_product
from stochcl.benchmarks.run import Config, call_in_child, need
from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import fit_linear
from stochcl.errors import FormatError, MissingExtraError, SourceError, UsageError
from stochcl.messages import escape_name
from stochcl.options import option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from stochcl.compress import Header
    from stochcl.entropy.tables import Tables

SETS = ("skewed", "correlated", "opq", "cifar10")
INDEPENDENT, AUTOREGRESSIVE = "independent", "autoregressive"
CIFAR10_ZIP, CIFAR10_CODES = "cifar10-test.zip", "cifar10-test-codes.bin"

_LATENTS = 128
_TRAINING = 12_000  # faiss wants 39 rows per centroid
_FACTORS = 6  # hidden bits of the correlated set; the exact entropy sums over their 64 states


@dataclass(frozen=True)
class CodecConfig(Config):
    """Archives or built-in sets to measure."""

    command_name: ClassVar[str] = "python benchmarks/codec.py"

    sources: tuple[Path, ...] = option(())
    latents: int | None = option(
        None, "Bits of a row; of a SOURCE the first K latents.", at_least=1, unit="K",
        shown="128, and the full width of CIFAR-10's codes",
    )  # fmt: skip
    rows: int | None = option(None, "Rows; of a SOURCE at most.", at_least=2, unit="N", shown="10,000, or all")
    repeat: int = option(5, "Runs whose median is the time.", at_least=1)
    only: tuple[str, ...] = option((), "This built-in set; may be repeated.", choices=SETS)
    refit: bool = option(False, "Fit tables to half of an archive's rows, and code the others.")
    seed: int = option(0, "Seed of everything random.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sources and self.only:
            raise UsageError("--only chooses among the built-in sets; leave it out where files are named.")


@dataclass(frozen=True)
class FittedModel:
    """An entropy model, its origin and its size in bytes."""

    model: Any
    origin: str
    bytes: int


def fitted(rows: Codes) -> dict[str, FittedModel]:
    """Fit each kind of model that needs only numpy; return them by kind."""
    models = {INDEPENDENT: IndependentModel.fit(rows), AUTOREGRESSIVE: fit_linear(rows)}
    return {kind: FittedModel(model, "fitted", len(model.to_bytes())) for kind, model in models.items()}


def models_of(tables: Tables, codes: Codes) -> dict[str, FittedModel]:
    """Return the models of decoding tables by kind, with a table fitted to the codes where that is smaller."""
    there = (getattr(tables, name, None) for name in ("entropy", INDEPENDENT, AUTOREGRESSIVE))
    models = [model.prefix(codes.latents) for model in there if model is not None]
    found = {
        INDEPENDENT if isinstance(model, IndependentModel) else AUTOREGRESSIVE: FittedModel(
            model, "tables", len(model.to_bytes())
        )
        for model in models
    }
    fit = IndependentModel.fit(codes)
    own = FittedModel(fit, "own table", len(zlib.compress(fit.to_bytes(), 9)))
    given = found.get(INDEPENDENT)
    if given is None or fit.ideal_bits(codes) + 8 * own.bytes < given.model.ideal_bits(codes):
        given = own
    return {INDEPENDENT: given} | {kind: model for kind, model in found.items() if kind != INDEPENDENT}


@dataclass(frozen=True, eq=False)
class CodeSet:
    """Codes for all methods, and their entropy models."""

    name: str
    codes: Codes
    models: dict[str, FittedModel]
    about: str
    source_bits: float | None = None
    header: Header | None = None
    tables: Tables | None = None
    notes: tuple[str, ...] = ()

    @property
    def ideal(self) -> tuple[float, str]:
        """The bits of all rows under the best model, and its kind."""
        return min((entry.model.ideal_bits(self.codes), kind) for kind, entry in self.models.items())


def code_sets(
    config: CodecConfig, folder: Path, leave_out: Callable[[str], None], say: Callable[[str], None]
) -> Iterator[CodeSet]:
    """Make the requested sets one at a time; leave out built-in ones that cannot be made."""
    for path in config.sources:
        with Archive(path) as archive:
            yield of_archive(escape_name(path.name), archive, config, config.latents)
    if config.sources:
        return
    size = config.rows or 10_000, config.latents or _LATENTS, config.seed
    widths = [None, _LATENTS] if config.latents is None else [config.latents]
    makers: dict[str, list[Callable[[], CodeSet]]] = {
        "skewed": [partial(skewed, *size)],
        "correlated": [partial(correlated, *size)],
        "opq": [partial(opq, *size)],
        "cifar10": [partial(cifar10, folder, config, width, say) for width in widths],
    }
    for name in config.only or SETS:
        for make in makers[name]:
            try:
                yield make()
            except MissingExtraError as exc:
                leave_out(f"{name} was left out: {exc}")
            except NoDataError as exc:
                leave_out(str(exc))


class NoDataError(SourceError):
    """A built-in set needs data that is missing."""


def skewed(rows: int, latents: int, seed: int) -> CodeSet:
    """Make independent bits with probabilities from Beta(0.4, 0.4), many of them skewed."""
    rng = np.random.default_rng([seed, 1])
    p = np.clip(rng.beta(0.4, 0.4, latents), 1 / 4096, 4095 / 4096)
    coded, others = (Codes.from_symbols(rng.random((rows, latents)) < p) for _ in range(2))
    bits = -np.where(coded.symbols(), np.log2(p), np.log2(1 - p)).sum() / rows
    about = "independent bits, probabilities from Beta(0.4, 0.4)"
    return CodeSet("skewed", coded, fitted(others), about, source_bits=float(bits))


def correlated(rows: int, latents: int, seed: int) -> CodeSet:
    """Make bits that depend on six hidden ones: the logit of latent j is ``b[j] + w[j] .

    h``, h uniform in {-1, 1}**6.
    """
    rng = np.random.default_rng([seed, 2])
    weights = rng.normal(0, 1.0, (_FACTORS, latents))
    bias = rng.normal(0, 1.0, latents)
    states = 1.0 - 2.0 * ((np.arange(1 << _FACTORS)[:, None] >> np.arange(_FACTORS)) & 1)
    p = 1 / (1 + np.exp(-(states @ weights + bias)))
    coded, others = (rng.random((rows, latents)) < p[rng.integers(len(states), size=rows)] for _ in range(2))
    about = f"bits that depend on {_FACTORS} hidden bits through a logistic model"
    models = fitted(Codes.from_symbols(others))
    return CodeSet("correlated", Codes.from_symbols(coded), models, about, source_bits=mixture_bits(coded, p))


def mixture_bits(bits: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """Return the exact -log2 probability per row under an equal mixture of product distributions."""
    total = 0.0
    for start in range(0, len(bits), 8192):
        part = bits[start : start + 8192].astype(np.float64)
        log = part @ np.log(p).T + (1 - part) @ np.log1p(-p).T
        top = log.max(axis=1)
        total -= (top + np.log(np.exp(log - top[:, None]).mean(axis=1))).sum()
    return float(total / np.log(2) / max(len(bits), 1))


def opq(rows: int, latents: int, seed: int) -> CodeSet:
    """Make OPQ indices of seeded vectors: 50 clusters of low-rank Gaussian noise, 4 dimensions per index."""
    need("faiss")
    indices = max(1, latents // 8)
    rng = np.random.default_rng([seed, 3])
    dim = 4 * indices
    centres = rng.normal(0, 1.0, (50, dim))
    loadings = rng.normal(0, 0.5, (50, min(12, dim), dim))
    weights = rng.dirichlet(np.ones(50))

    def vectors(count: int) -> np.ndarray:
        cluster = np.sort(rng.choice(50, size=count, p=weights))
        out = centres[cluster] + rng.normal(0, 0.2, (count, dim))
        for k in np.unique(cluster):
            mine = cluster == k
            out[mine] += rng.normal(size=(mine.sum(), loadings.shape[1])) @ loadings[k]
        return rng.permutation(out).astype(np.float32)

    training, *matrices = vectors(_TRAINING), vectors(rows), vectors(rows)
    fitting, coded = call_in_child(_quantised, training, matrices, indices, seed)
    return CodeSet("opq", coded, fitted(fitting), f"{indices} OPQ indices of seeded vectors of {dim} dimensions")


def _quantised(training: np.ndarray, matrices: list[np.ndarray], indices: int, seed: int) -> list[Codes]:
    """Train a quantiser and return the codes of each matrix; runs in a child process because faiss may crash."""
    quantise, *_ = train_product(training, indices, seed)
    return [Codes.from_symbols(quantise(matrix), alphabet=CENTROIDS) for matrix in matrices]


def of_archive(name: str, archive: Archive, config: CodecConfig, latents: int | None) -> CodeSet:
    """Return the codes of an archive with its own tables or, with --refit, tables fitted to half of the rows."""
    about = f"{archive.header.latents:,} latents of the model {escape_name(archive.header.model)}"
    codes = archive[: config.rows and config.rows * (2 if config.refit else 1)]
    codes = Codes(codes.packed, codes.latents, codes.alphabet)
    if len(codes) < 2:
        raise SourceError(f"{name}: it has fewer than two rows, so there is nothing to measure.")
    if latents is not None:
        if latents > codes.latents:
            raise UsageError(f"{name}: it has {codes.latents:,} latents, not {latents:,}.")
        codes, about = codes.prefix(latents), f"the first {latents:,} of {about}"
    if config.refit:  # a model fitted to the rows it codes looks too good
        note = f"{name}: the tables are fitted to every second row, and the others are coded."
        return CodeSet(name, codes[::2], fitted(codes[1::2]), about, notes=(note,))
    found, notes = models_of(archive.tables, codes), []
    if AUTOREGRESSIVE not in found:
        notes.append(f"{name}: its tables hold no autoregressive network; --refit fits one to half of the rows.")
    header = replace(archive.header, latents=codes.latents)
    return CodeSet(name, codes, found, about, header=header, tables=archive.tables, notes=tuple(notes))


def cifar10(folder: Path, config: CodecConfig, latents: int | None, say: Callable[[str], None]) -> CodeSet:
    """Return the default model's codes of CIFAR-10's test images; made if needed, and kept in ``folder``."""
    from stochcl.api.codec import Codec

    path, codec = folder / CIFAR10_CODES, Codec(device="cpu")
    name = "cifar10" if latents is None else f"cifar10-{latents}"
    current = False  # whether the kept codes come from this model and these tables
    with suppress(FormatError, SourceError), Archive(path) as archive:
        kept = archive.header.model_sha256, archive.header.tables_sha256
        current = kept == (codec.model.sha256, codec.tables.sha256)
    if not current:
        images = Path(os.environ.get("STOCHCL_DATA", ""), CIFAR10_ZIP)
        if not os.environ.get("STOCHCL_DATA") or not images.is_file():
            raise NoDataError(f"{name} was left out: $STOCHCL_DATA names no folder that holds {CIFAR10_ZIP}.")
        say("encoding CIFAR-10's test images with the default model")
        codec.compress(images, path, names=False, force=True)
    with Archive(path) as archive:
        return of_archive(name, archive, config, latents)
