"""Encode images or vectors: ONNX Runtime or PyTorch computes features, numpy the codes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from stochcl.codes import Codes, symbol_dtype
from stochcl.encoders import layout
from stochcl.encoders.config import EFFICIENTNETS, FOREIGN
from stochcl.encoders.graph import Network as Graph
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.latents import Latents

    Floats = NDArray[np.float32]

PRECISIONS = ("fp32", "bf16", "int8")
"""Precisions of an image network; bf16 uses autocast, and latents and decoder stay fp32.

int8 is for EfficientNet-Lites on a CPU, see :class:`stochcl.encoders.integer.IntegerNetwork`.
"""

RUNTIMES = ("onnx", "torch", "numpy")
"""Runtimes of features, as archives name them: ONNX Runtime on a CPU, PyTorch elsewhere, numpy for vectors."""

_ROWS = 1024  # vectors at a time
_MOST = 8  # chunks in parallel


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoder's output for B images or vectors.

    Codes are the posterior's modes, with its uncertainty in bits; features, float32, shape (B, V), are standardised.
    """

    codes: Codes
    features: Floats


class Network(Protocol):
    """Computes standardised features in one runtime.

    It takes ``chunk`` rows at a time and pads the last chunk. With one shape, codes do not depend on the batch size,
    on skipped images or on where a run was interrupted: another order of summation would flip bits whose posterior is
    near one half.
    """

    chunk: int

    def features(self, inputs: NDArray[Any], rows: int) -> Floats:
        """Return features, shape (chunk, V), of the first ``rows`` images, uint8, (chunk, S, S, 3), or vectors."""
        ...

    def side_by_side(self, run: Callable[[range], None], starts: range) -> None:
        """Run chunks in as many threads as suit the runtime."""
        ...


def encode(
    network: Network, latents: Latents, inputs: NDArray[np.uint8] | NDArray[np.floating], *,
    uncertainty: bool = True, width: int | None = None,
) -> Encoded:  # fmt: skip
    """Encode the network's inputs, images or vectors, as codes of all or the first latents."""
    config = latents.config
    check_inputs(config, inputs)
    width = config.latents if width is None else width
    symbols = np.empty((len(inputs), width), symbol_dtype(config.alphabet))
    doubt = np.empty(len(inputs), np.float32)
    out = np.empty((len(inputs), latents.features), np.float32)

    def take(rows: slice, count: int, found: Floats) -> None:
        parameters = latents.parameters(found)
        symbols[rows] = latents.symbols(parameters, width)[:count]
        if uncertainty:
            doubt[rows] = latents.uncertainty(parameters)[:count]
        out[rows] = found[:count]

    _each_chunk(network, inputs, take)
    codes = Codes.from_symbols(symbols, alphabet=config.alphabet, uncertainty=doubt if uncertainty else None)
    return Encoded(codes, out)


def features(network: Network, inputs: NDArray[np.uint8], width: int) -> Floats:
    """Return the network's standardised features of images, shape (B, width), without codes."""
    out = np.empty((len(inputs), width), np.float32)

    def take(rows: slice, count: int, found: Floats) -> None:
        out[rows] = found[:count]

    _each_chunk(network, inputs, take)
    return out


def _each_chunk(
    network: Network, inputs: NDArray[np.uint8] | NDArray[np.floating], take: Callable[[slice, int, Floats], None]
) -> None:
    """Give ``take`` the rows of each chunk, their count, and the features of the padded chunk."""
    chunk, dtype = network.chunk, np.uint8 if inputs.dtype == np.uint8 else np.float32

    def run(starts: range) -> None:
        padded = np.zeros((chunk, *inputs.shape[1:]), dtype)
        for start in starts:
            part = inputs[start : start + chunk]
            count = len(part)
            padded[:count] = part
            take(slice(start, start + count), count, network.features(padded, count))

    # Chunks run in parallel already, and threads of a matrix library busy-wait for each other: with one of two cores
    # busy, compressing took more than twice the processor time.
    with threadpool_limits(1, user_api="blas"):
        network.side_by_side(run, range(0, len(inputs), chunk))


class OnnxNetwork:
    """A network of images in ONNX Runtime on the CPU.

    Eight images at a time keep their activations, 30 MB, in the cache. On one core with AVX-512, `fast` in fp32
    ran at 495, 603 and 446 images a second with 1, 8 and 64 at a time, with equal results.
    """

    chunk = 32
    _batch = 8

    def __init__(self, config: EncoderConfig, tensors: Mapping[str, NDArray[Any]], precision: str = "fp32") -> None:
        import onnxruntime

        from stochcl.encoders.integer import IntegerNetwork

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # chunks run in parallel
        options.log_severity_level = 3
        graph = (IntegerNetwork if precision == "int8" else Graph)(config, tensors)
        data = graph.to_bytes(self._batch)
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._width = layout.feature_dim(config, tensors)

    def features(self, inputs: NDArray[Any], rows: int) -> Floats:
        """Return the features of the first rows, and zeros for the others."""
        out = np.zeros((len(inputs), self._width), np.float32)
        for start in range(0, rows, self._batch):
            part = slice(start, start + self._batch)
            (out[part],) = self._session.run(None, {"pixels": inputs[part]})
        return out

    def side_by_side(self, run: Callable[[range], None], starts: range) -> None:
        """Run chunks in threads, one per core."""
        _in_threads(run, starts)


class Vectors:
    """The network of vectors, which only standardises them, in numpy."""

    chunk = _ROWS

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._centre, self._scale = tensors["norm.centre"], tensors["norm.scale"]

    def features(self, inputs: NDArray[Any], rows: int) -> Floats:
        """Return standardised vectors."""
        standardised: Floats = (inputs - self._centre) / self._scale
        return standardised

    def side_by_side(self, run: Callable[[range], None], starts: range) -> None:
        """Run chunks in threads, one per core."""
        _in_threads(run, starts)


def _in_threads(run: Callable[[range], None], starts: range) -> None:
    threads = min(_MOST, cores(), len(starts))
    if threads < 2:
        run(starts)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [starts[i : i + 1] for i in range(len(starts))]))


def cores() -> int:
    """Return the number of threads to use: OMP_NUM_THREADS, or the number of available cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def precision_of(config: EncoderConfig, device: str) -> str:
    """Return a model's default precision."""
    # int8 has not been measured with a fine-tuned classifier on features.
    whole = config.backbone in EFFICIENTNETS and not config.classes and device == "cpu"
    return "int8" if whole else "fp32"


def check_int8(config: EncoderConfig, device: str) -> None:
    """Raise UsageError if a network of this configuration does not run in int8 on the device."""
    if config.backbone not in EFFICIENTNETS or device.partition(":")[0] != "cpu":
        raise UsageError(
            "precision int8 needs an EfficientNet-Lite network on a processor (--device cpu), and this is "
            f"{config.backbone} on {device}; use fp32."
        )


def runtime_of(config: EncoderConfig, device: str, precision: str) -> str:
    """Return a model's default runtime."""
    if config.columns:
        return "numpy"
    if precision == "int8":
        return "onnx"
    elsewhere = config.backbone.startswith(FOREIGN) or device != "cpu" or precision != "fp32"
    return "torch" if elsewhere else "onnx"


def check_inputs(config: EncoderConfig, inputs: NDArray[np.generic]) -> None:
    """Raise UsageError if an encoder of this configuration does not take such inputs."""
    size, columns = config.size, config.columns
    found = f"{inputs.dtype} {inputs.shape}"
    if columns is None:
        if inputs.ndim != 4 or inputs.shape[1:] != (size, size, 3) or inputs.dtype != np.uint8:
            raise UsageError(f"this encoder takes uint8 images of shape (B, {size}, {size}, 3), not {found}.")
    elif inputs.ndim != 2 or inputs.shape[1] != columns or inputs.dtype.kind != "f":
        raise UsageError(f"this encoder takes float vectors of shape (B, {columns}), not {found}.")
