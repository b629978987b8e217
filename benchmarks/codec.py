"""Set the codec beside general compressors and constriction's call with a parameter per symbol.

    python benchmarks/codec.py -o results/
    python benchmarks/codec.py codes.bin -o results/ --latents 128

SOURCE is a file of codes. Without any, built-in sets are coded: skewed and correlated bits, OPQ indices of made-up
vectors, and the default model's codes of CIFAR-10's test images, where $STOCHCL_DATA names a folder with
cifar10-test.zip. Every method runs in a process of its own, on one core, and must give the codes back.
"""

from __future__ import annotations

import io
import lzma
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from code_sets import INDEPENDENT, CodecConfig, code_sets
from script import command_of
from throughput import peak, restart_peak

from stochcl import framing
from stochcl.benchmarks.run import BenchmarkError, ChildDiedError, call_in_child, need, record, stay_on_one_core
from stochcl.codes import Codes, bits_per_symbol, symbol_dtype
from stochcl.compress import Archive, Header, Writer
from stochcl.compress.transcode import choose
from stochcl.entropy import ans
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from code_sets import CodeSet
    from numpy.typing import NDArray

SCHEMA = "stochcl.benchmark.codec/0"
ROWS, COLUMNS, PLANES = "rows", "columns", "planes"
"""Row-major packed, latent-major, and (for wider alphabets) bit planes of each latent."""

_BLOCK_BITS = 1 << 16  # as in an archive
_PARAMETERS = 1 << 20  # probabilities per call of constriction: 8 MB
_WARM_ROWS = 8
_SLOW = 5.0  # a function that takes more seconds runs only once, and ``repeats`` says 1


def benchmark_codec(
    config: CodecConfig,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every method on every set."""
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
        methods = methods_of(code_set, leave_out)
        for done, method in enumerate(methods):
            progress(done, len(methods), f"{code_set.name}: {method.name}")
            rows.append(_row(code_set, method, run(method, code_set, config.repeat)))
    return record(
        SCHEMA, config, n={entry["set"]: entry["n"] for entry in sets}, left_out=left_out, sets=sets, rows=rows
    )


def _describe(code_set: CodeSet) -> dict[str, Any]:
    (bits, kind), codes = code_set.ideal, code_set.codes
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


def _row(code_set: CodeSet, method: Method, found: dict[str, Any]) -> dict[str, Any]:
    codes, rows, bits = code_set.codes, len(code_set.codes), found["bytes"] * 8
    entropy = code_set.models[method.model] if method.model else None
    times = {
        f"{way}_{name}": found[way][key]
        for name, key in (("repeats", "repeats"), ("peak_bytes", "peak_bytes"))
        for way in ("encode", "decode")
    }
    return {
        "set": code_set.name,
        "n": rows,
        "latents": codes.latents,
        "alphabet": codes.alphabet,
        "method": method.name,
        "ours": method.ours,
        "bytes": found["bytes"],
        "bytes_per_image": round(found["bytes"] / rows, 4),
        "ratio_to_ideal": round(bits / code_set.ideal[0], 5),
        "model": method.model,
        "model_origin": entropy and entropy.origin,
        "ratio_to_own_model": entropy and round(bits / entropy.model.ideal_bits(codes), 5),
        "tables_bytes": method.tables_bytes,
        "encode_images_per_second": round(rows / found["encode"]["seconds"], 1),
        "decode_images_per_second": round(rows / found["decode"]["seconds"], 1),
        **times,
        "correct": found["correct"],
    }


# Methods: pairs of functions that encode and decode, in this process or another.


@dataclass(frozen=True)
class Method:
    """Encodes codes to bytes and back; ``tables_bytes`` counts what the decoder needs besides."""

    name: str
    encode: Callable[[Codes], bytes]
    decode: Callable[[bytes], Codes]
    ours: bool = False
    tables_bytes: int = 0
    model: str | None = None


def methods_of(code_set: CodeSet, leave_out: Callable[[str], None]) -> list[Method]:
    """Return all methods for a set, in the order of the table."""
    codes, methods = code_set.codes, []
    shape = len(codes), codes.latents, codes.alphabet
    for kind, entropy in code_set.models.items():
        rows = block_rows(entropy.model.ideal_bits(codes) / len(codes), codes.decisions_per_row)
        encode, decode = (
            partial(encode_blocks, entropy.model, rows),
            partial(decode_blocks, entropy.model, rows, shape),
        )
        methods.append(Method(kind, encode, decode, True, entropy.bytes, kind))
    methods.append(_archive(code_set))
    methods.append(Method("packed", partial(serialize, ROWS), partial(deserialize, ROWS, shape)))
    for label, module, *_ in GENERAL:
        try:
            need(module)
        except MissingExtraError as exc:
            leave_out(f"{label} was left out: {exc}")
            continue
        for layout in (
            (ROWS, COLUMNS) if codes.alphabet == 2 else (ROWS, COLUMNS, PLANES)
        ):  # bits are their own planes
            encode, decode = partial(compressed, label, layout), partial(decompressed, label, layout, shape)
            methods.append(Method(f"{label}, {layout}", encode, decode))
    entropy = code_set.models[INDEPENDENT]
    probabilities = symbol_probabilities(entropy.model)
    for perfect in (True, False):
        encode = partial(encode_each, probabilities, perfect)
        decode = partial(decode_each, probabilities, perfect, shape)
        name = f"constriction, perfect={perfect}"
        methods.append(Method(name, encode, decode, tables_bytes=entropy.bytes, model=INDEPENDENT))
    return methods


def block_rows(bits_per_row: float, decisions_per_row: int) -> int:
    """Return the rows that fill a block of 64 kbit, as in an archive."""
    rows = round(_BLOCK_BITS / max(bits_per_row, 1e-3))
    return max(1, min(rows, framing.MAX_BLOCK_DECISIONS // decisions_per_row, 1 << 20))


def encode_blocks(model: Any, rows: int, codes: Codes) -> bytes:
    """Encode the symbols in blocks as an archive does, preceded by the blocks' lengths."""
    blocks = [ans.encode_block(codes[start : start + rows], model) for start in range(0, len(codes), rows)]
    lengths = framing.pack_varints([len(words) for words in blocks])
    return b"".join([lengths, *(words.astype("<u4").tobytes() for words in blocks)])


def decode_blocks(model: Any, rows: int, shape: tuple[int, int, int], data: bytes) -> Codes:
    """Invert :func:`encode_blocks`."""
    counts = [min(rows, shape[0] - start) for start in range(0, shape[0], rows)]
    lengths, position = framing.unpack_varints(data, len(counts), 0)
    words = []
    for length in lengths:
        words.append(np.frombuffer(data, "<u4", length, position).astype(np.uint32))
        position += 4 * length
    return Codes(np.concatenate(ans.decode_blocks(words, counts, model)), *shape[1:])


def _archive(code_set: CodeSet) -> Method:
    """Return the method of a whole file, with its tables unless they ship with the package.

    Codes without a model get uniform tables, and the fitted models that pay for their bytes in the file, as
    ``stochcl transcode --refit`` does.
    """
    header, tables, fits = code_set.header, code_set.tables, ()
    if header is None or tables is None:
        latents, alphabet = code_set.codes.latents, code_set.codes.alphabet
        nodes = (1 << bits_per_symbol(alphabet)) - 1
        tables = Tables((latents,), IndependentModel(np.full((latents, nodes), 2048, np.uint16), alphabet))
        header = Header("benchmark", "0" * 64, latents, latents, alphabet, "none", tables.sha256)
        models = [entropy.model for entropy in code_set.models.values()]
        fits = tuple(choose([code_set.codes], tables.candidates(latents), models))
    packaged = resources.files("stochcl").joinpath("tables", f"{tables.sha256}.tables").is_file()
    encode = partial(encode_archive, header, tables, fits, not packaged)
    return Method("archive", encode, partial(decode_archive, tables), True, len(tables.data) if packaged else 0)


def encode_archive(header: Header, tables: Tables, fits: tuple[Any, ...], embed_tables: bool, codes: Codes) -> bytes:
    """Write a whole file (header, index, checksums, fsync) without names."""
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, "codes.bin")
        with Writer(path, header, tables, embed_tables=embed_tables, fitted=fits, names=False) as out:
            out.add(codes)
        return path.read_bytes()


def decode_archive(tables: Tables, data: bytes) -> Codes:
    """Read the file."""
    with Archive(io.BytesIO(data), tables=[tables]) as archive:
        return archive[:]


def serialize(layout: str, codes: Codes) -> bytes:
    """Write codes as packed rows, as symbols latent by latent, or as bit planes."""
    if layout == ROWS:
        return codes.packed.tobytes()
    if layout == COLUMNS and codes.alphabet > 2:
        return np.ascontiguousarray(codes.symbols().T).tobytes()
    return np.packbits(np.ascontiguousarray(codes.decisions().T), axis=1).tobytes()


def deserialize(layout: str, shape: tuple[int, int, int], data: bytes) -> Codes:
    """Invert :func:`serialize`."""
    rows, latents, alphabet = shape
    if layout == ROWS:
        return Codes(np.frombuffer(data, np.uint8).reshape(rows, -1), latents, alphabet)
    if layout == COLUMNS and alphabet > 2:
        symbols = np.frombuffer(data, symbol_dtype(alphabet)).reshape(latents, rows)
        return Codes.from_symbols(np.ascontiguousarray(symbols.T), alphabet=alphabet)
    planes = np.frombuffer(data, np.uint8).reshape(latents * bits_per_symbol(alphabet), -1)
    decisions = np.unpackbits(planes, axis=1, count=rows).T
    return Codes(np.packbits(np.ascontiguousarray(decisions), axis=1), latents, alphabet)


GENERAL: tuple[tuple[str, str, Callable[[Any, bytes], bytes], Callable[[Any, bytes], bytes]], ...] = (
    ("zlib -9", "zlib", lambda m, data: m.compress(data, 9), lambda m, data: m.decompress(data)),
    ("xz -9e", "lzma", lambda m, data: m.compress(data, preset=9 | lzma.PRESET_EXTREME),
     lambda m, data: m.decompress(data)),
    ("zstd -19", "zstandard", lambda m, data: m.ZstdCompressor(level=19).compress(data),
     lambda m, data: m.ZstdDecompressor().decompress(data)),
    ("brotli -11", "brotli", lambda m, data: m.compress(data, quality=11), lambda m, data: m.decompress(data)),
)  # fmt: skip
"""General compressors: name, module, compress and decompress."""


def compressed(label: str, layout: str, codes: Codes) -> bytes:
    """Compress codes with a general compressor, their bytes in the order of ``layout``."""
    _, module, deflate, _ = next(one for one in GENERAL if one[0] == label)
    return deflate(import_module(module), serialize(layout, codes))


def decompressed(label: str, layout: str, shape: tuple[int, int, int], data: bytes) -> Codes:
    """Invert :func:`compressed`."""
    _, module, _, inflate = next(one for one in GENERAL if one[0] == label)
    return deserialize(layout, shape, inflate(import_module(module), data))


def symbol_probabilities(model: IndependentModel) -> NDArray[np.float64]:
    """Multiply the probabilities of decisions to those of symbols, shape (D, K); rows sum to 1."""
    ones, leaves = model.ones / 4096, np.ones((model.latents, 1))
    while leaves.shape[1] < model.alphabet:
        nodes = leaves.shape[1]
        one = ones[:, nodes - 1 : 2 * nodes - 1]
        leaves = np.stack([leaves * (1 - one), leaves * one], axis=2).reshape(model.latents, -1)
    kept = leaves[:, : model.alphabet]  # symbols beyond the alphabet have almost no probability
    normal: NDArray[np.float64] = kept / kept.sum(axis=1, keepdims=True)
    return normal


# constriction's ANS as in its manual: one stream, one row of probabilities per symbol. It is called in parts because
# the probabilities take a hundred times the memory of the codes; the stream is the same.


def encode_each(probabilities: NDArray[np.float64], perfect: bool, codes: Codes) -> bytes:
    """Code each symbol with its own parameters, last first because ANS is a stack."""
    import constriction

    coder, family = constriction.stream.stack.AnsCoder(), constriction.stream.model.Categorical(perfect=perfect)
    rows = max(1, _PARAMETERS // probabilities.size)
    tiled = np.tile(probabilities, (min(rows, len(codes)), 1))
    for start in reversed(range(0, len(codes), rows)):
        symbols = codes[start : start + rows].symbols().reshape(-1).astype(np.int32)
        coder.encode_reverse(symbols, family, tiled[: len(symbols)])
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def decode_each(
    probabilities: NDArray[np.float64], perfect: bool, shape: tuple[int, int, int], data: bytes
) -> Codes:  # fmt: skip
    """Invert :func:`encode_each`."""
    import constriction

    coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
    family, rows, parts = (
        constriction.stream.model.Categorical(perfect=perfect),
        max(1, _PARAMETERS // probabilities.size),
        [],
    )
    tiled = np.tile(probabilities, (min(rows, shape[0]), 1))
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        symbols = coder.decode(family, tiled[: count * shape[1]])
        parts.append(Codes.from_symbols(symbols.reshape(count, -1), alphabet=shape[2]).packed)
    return Codes(np.concatenate(parts), *shape[1:])


# The measurement.


def run(method: Method, code_set: CodeSet, repeat: int) -> dict[str, Any]:
    """Measure a method in a fresh process on one core; raise if the codes come back changed."""
    where = f"{method.name} on {code_set.name}"
    try:
        found: dict[str, Any] = call_in_child(measure, method.encode, method.decode, code_set.codes, repeat)
    except ChildDiedError as exc:
        raise BenchmarkError(f"{where}: {exc}") from exc
    if not found["correct"]:
        raise BenchmarkError(f"{where}: it gave back other codes than it was given; no figure of this run counts.")
    return found


def measure(
    encode: Callable[[Codes], bytes], decode: Callable[[bytes], Codes], codes: Codes, repeat: int
) -> dict[str, Any]:
    """Encode and decode; return bytes, seconds, memory and whether the codes came back.

    Each function's first run gives the memory, the runs after it the time: the median of ``repeat`` runs. Memory is
    the growth of the resident set's high-water mark, result included (outside Linux the mark only rises, so a peak
    below an earlier one shows as 0).
    """
    stay_on_one_core()
    encode(codes[:_WARM_ROWS])
    data, encoding = _timed(lambda: encode(codes), repeat)
    back, decoding = _timed(lambda: decode(data), repeat)
    same = (back.latents, back.alphabet) == (codes.latents, codes.alphabet)
    correct = same and np.array_equal(back.packed, codes.packed)
    return {"bytes": len(data), "correct": correct, "encode": encoding, "decode": decoding}


def _timed(function: Callable[[], Any], repeat: int) -> tuple[Any, dict[str, Any]]:
    times, before = [], restart_peak()
    for turn in range(repeat + 1):
        started = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - started)
        if not turn:
            first, added = value, max(0, peak() - before)
            if times[0] > _SLOW:
                break
    times = times[1:] or times
    return first, {"seconds": statistics.median(times), "repeats": len(times), "peak_bytes": added}


TABLE_COLUMNS = (
    "method", "bytes/image", "x ideal", "encode/s", "decode/s", "peak MB", "tables B", "correct",
)  # fmt: skip
"""x ideal: the size divided by the ideal size; tables B: bytes needed beside the file."""


def tables(result: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield title, columns and lines of each set's table."""
    for entry in result["sets"]:
        ideal = f"{entry['ideal_bits_per_image']:,.1f} bits ({entry['ideal_model']}, {entry['ideal_origin']})"
        title = f"{entry['set']}: {entry['n']:,} images, {entry['about']}; ideal {ideal}"
        if entry["source_bits_per_image"] is not None:
            title += f"; the source itself {entry['source_bits_per_image']:,.1f} bits"
        lines: list[tuple[str, ...]] = [
            (
                row["method"], f"{row['bytes_per_image']:,.2f}", f"{row['ratio_to_ideal']:.4f}",
                f"{row['encode_images_per_second']:,.0f}", f"{row['decode_images_per_second']:,.0f}",
                f"{max(row['encode_peak_bytes'], row['decode_peak_bytes']) / 1e6:,.1f}", f"{row['tables_bytes']:,}",
                "yes" if row["correct"] else "NO",
            )
            for row in result["rows"] if row["set"] == entry["set"]
        ]  # fmt: skip
        yield title, TABLE_COLUMNS, lines


main = command_of(
    CodecConfig, "codec", click.argument("sources", nargs=-1, metavar="[SOURCE]...", type=click.Path(path_type=Path)),
    benchmark_codec, lambda result: list(tables(result)), help=__doc__, unit="methods",
)  # fmt: skip

if __name__ == "__main__":
    from codec import main as imported  # imported by name so that a child process can unpickle its functions

    imported()
