"""An encoder and the decoding tables of its codes."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stochcl.api.models import DEFAULT, find_model
from stochcl.compress import Header
from stochcl.compress.header import Embedder
from stochcl.data import Preprocess
from stochcl.data.access import read_regular
from stochcl.data.pixels import OWN_DEPTH
from stochcl.data.preprocess import MAX_FILE_BYTES, DamagedImage
from stochcl.encoders import engine, layout
from stochcl.encoders.config import FOREIGN
from stochcl.encoders.latents import Latents
from stochcl.encoders.modelfile import load_model
from stochcl.entropy.tables import Tables, is_packaged
from stochcl.errors import ImageError, ModelMismatch, UsageError, require
from stochcl.lazy import cached_property
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from PIL.Image import Image

    from stochcl.codes import Codes
    from stochcl.encoders.config import EncoderConfig
    from stochcl.files import PathLike


_FLOAT = 4  # bytes
_GPUS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")  # device files of GPU drivers


class CodecBase:
    """An encoder of images or vectors, with the decoding tables of its codes."""

    precisions = engine.PRECISIONS

    def __init__(
        self, model: PathLike = DEFAULT, *, device: str = "auto", precision: str = "auto", runtime: str = "auto",
        size: int | None = None,
    ) -> None:  # fmt: skip
        if precision != "auto":
            self._check_precision(precision)
        self.device = device_name("cpu" if precision == "int8" and device == "auto" else device)
        self.model = load_model(find_model(model))
        self._config = self.model.config if size is None else self._at(size)
        self._asked = runtime
        if precision == "auto":
            precision = "fp32" if runtime == "torch" else engine.precision_of(self.config, self.device)
        self.precision = precision
        if runtime not in ("auto", *engine.RUNTIMES):
            raise UsageError(f"runtime must be auto or {' or '.join(engine.RUNTIMES)}, got {runtime!r}.")
        self._check_runtime()

    def __repr__(self) -> str:
        takes = f"{self.columns}-dimensional vectors" if self.columns else f"images of {self.size} pixels"
        return (
            f"<{type(self).__name__} {self.model.name!r}: {takes} to {self.latents} latents of {self.alphabet} "
            f"values, {self.precision} on {self.device}>"
        )

    def _check_precision(self, precision: str) -> None:
        if precision not in self.precisions:
            raise UsageError(f"precision must be auto, {' or '.join(self.precisions)}, got {precision!r}.")

    def _check_runtime(self) -> None:
        if self.precision == "int8":
            engine.check_int8(self.config, self.device)
        if self.runtime == "torch":
            what = f"the network {self.config.backbone}" if self.device == "cpu" else f"--device {self.device}"
            require("torch", what if self.precision == "fp32" else f"precision {self.precision}", "train")

    def with_precision(self, precision: str) -> Self:
        """Return this codec, or a copy that shares its weights and computes in another precision."""
        if precision == self.precision:
            return self
        self._check_precision(precision)
        return self._copy(precision=precision, **({"device": "cpu"} if precision == "int8" else {}))

    def with_runtime(self, runtime: str) -> Self:
        """Return this codec, or a copy whose features another runtime computes: onnx, or torch, which has no int8."""
        if runtime == self.runtime or self.columns:
            return self
        return self._copy(_asked=runtime, precision="fp32" if self.precision == "int8" else self.precision)

    def with_size(self, size: int | None) -> Self:
        """Return this codec, or a copy that takes images of another side in pixels, one of :attr:`sizes`."""
        config = self.config if size is None else self._at(size)
        return self if config == self.config else self._copy(_config=config)

    def _at(self, size: int) -> EncoderConfig:
        if self.model.config.columns:
            raise UsageError("--size is for images, and this model takes vectors; omit it.")
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise UsageError(f"--size must be a whole number, got {size!r}.")
        if size not in self.sizes:
            first, last = self.sizes[0], self.sizes[-1]
            taken = f"{first:,} to {last:,}" if last > first else f"only {first:,}"
            raise UsageError(f"this model takes images of {taken} pixels a side, got --size {size}.")
        return replace(self.model.config, size=size)

    def for_archive(self, header: Header) -> Self:
        """Return this codec, or a copy, with the precision and the image size of an archive."""
        return self.with_precision(header.precision).with_size(header.size)

    def _copy(self, **changes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__ |= changes
        other._check_runtime()
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what depends on runtime and size, which a copy makes again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_network", "_latents")}

    @property
    def runtime(self) -> str:
        """Runtime of the network: onnx (ONNX Runtime) on CPUs, torch elsewhere or in bf16, numpy for vectors."""
        default = engine.runtime_of(self.config, self.device, self.precision)
        return self._asked if default == "onnx" and self._asked != "auto" and self.precision != "int8" else default

    @property
    def device_type(self) -> str:
        """The kind of device, cpu or cuda."""
        return self.device.partition(":")[0]

    @property
    def config(self) -> EncoderConfig:
        """The encoder's configuration, without weights."""
        return self._config

    @cached_property
    def _latents(self) -> Latents:
        return Latents.of(self.config, self.model.tensors)

    @cached_property
    def _network(self) -> engine.Network:
        if self.runtime == "numpy":
            return engine.Vectors(self.model.tensors)
        if self.runtime == "onnx":
            return engine.OnnxNetwork(self.config, self.model.tensors, self.precision)
        from stochcl.encoders.inference import TorchNetwork, choose_device

        device = choose_device(self.device)
        return TorchNetwork(self.model.encoder.to(device), device, self.precision)

    @property
    def latents(self) -> int:
        """D, the number of latents of a code."""
        return self.config.latents

    @property
    def alphabet(self) -> int:
        """K, the number of values per latent."""
        return self.config.alphabet

    @property
    def columns(self) -> int | None:
        """W, the width of input vectors; None for a model of images."""
        return self.config.columns

    @property
    def embedder(self) -> Embedder | None:
        """The embedder of the vectors that the model was trained on, if known."""
        return None if self.columns is None else Embedder.of(self.model.record.get("embedder"))

    @property
    def size(self) -> int:
        """Side of the square input images, in pixels."""
        return self.config.size

    @property
    def sizes(self) -> range:
        """Sides that images may have: from 3/4 to 3/2 of the model's own, which residual latents were fitted to."""
        own = self.model.config
        if own.posterior != "residual" or own.backbone.startswith(FOREIGN):
            return range(own.size, own.size + 1)
        return range(-(-own.size * 3 // 4), own.size * 3 // 2 + 1)

    @property
    def preprocess(self) -> Preprocess:
        """The model's preprocessing of images."""
        return Preprocess(self.config.size, self.config.fit)

    @cached_property
    def tables(self) -> Tables:
        """The decoding tables, a function of the model's tensors alone."""
        return layout.tables(self.config, self.model.tensors)

    @cached_property
    def classifier(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Weights, shape (C, V), and biases, shape (C,), of a fine-tuned classifier; None without one."""
        if not self.config.classes:
            return None
        weight, bias = (self.model.tensors[f"classifier.{name}"].astype(np.float32) for name in ("weight", "bias"))
        return weight, bias

    @cached_property
    def has_packaged_tables(self) -> bool:
        """Whether the package contains these tables, so that archives need not."""
        return is_packaged(self.tables.sha256)

    def encode(
        self,
        images: NDArray[np.uint8] | NDArray[np.floating] | Sequence[Any],
        *,
        latents: int | None = None,
        uncertainty: bool = True,
    ) -> Codes:
        """Encode images, or vectors for a model of vectors.

        Parameters
        ----------
        images : ndarray of uint8, shape (N, H, W, 3) or (N, H, W, 1), or sequence of path, Pillow image or array
            Resized by the model's preprocessing. For a model of vectors of W numbers: an ndarray of float, shape
            (N, W), or a sequence of such rows.
        latents : int, optional
            Encode to the first K latents. Residual codes are searched again at that width; others are cut.
        uncertainty : bool
            Whether to compute uncertainty: the entropy of the calibrated posterior in bits. For residual codes that
            is of the first word, for others of all the model's latents, regardless of ``latents``.

        Returns
        -------
        Codes
            One row per image.

        Raises
        ------
        UsageError
            If it is a single image (put it into a list), an array of another shape or type, or a vector that is not
            finite, or if the model has fewer latents.
        ImageError
            If an image cannot be read; the message says which.

        Examples
        --------
        >>> import stochcl
        >>> from sklearn.datasets import load_sample_images
        >>> codec = stochcl.load()
        >>> codec.encode(load_sample_images().images).symbols().shape
        (2, 256)
        """
        if latents is not None and not 1 <= latents <= self.latents:
            raise UsageError(f"this model has {self.latents:,} latents; keep 1 to {self.latents:,}, not {latents:,}.")
        if self.columns:
            codes = self.encode_vectors(images, latents=latents).codes
        else:
            codes = self.encode_prepared(self.prepare(images), uncertainty=uncertainty, latents=latents).codes
        return codes if uncertainty else replace(codes, uncertainty=None)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """Decode codes of this model to vectors, float32, shape (N, V); latents missing from a prefix count as means.

        Raises
        ------
        UsageError
            If the model has no decoder, or the codes are wider than its own.
        """
        decoder = self.tables.decoder
        if decoder is None:
            raise UsageError("this model has no decoder to vectors; use the symbols.")
        if codes.latents > self.latents or codes.alphabet != self.alphabet:
            raise UsageError(
                f"these codes have {codes.latents:,} latents of {codes.alphabet:,} values, and this model "
                f"{self.latents:,} of {self.alphabet:,}; give codes of this model."
            )
        return decoder.decode(codes.symbols())

    def encode_prepared(
        self, inputs: NDArray[np.uint8] | NDArray[np.float32], *, uncertainty: bool = True, latents: int | None = None
    ) -> engine.Encoded:
        """Encode preprocessed images, uint8, shape (N, size, size, 3), or finite rows of a matrix."""
        return engine.encode(self._network, self._latents, inputs, uncertainty=uncertainty, width=latents)

    def narrowed(self, codes: Codes, features: NDArray[np.float32], latents: int) -> Codes:
        """Return codes at the first latents, equal to encoding at that width, without names."""
        return self._latents.narrowed(codes, features, latents)

    def vectors_of(self, encoded: engine.Encoded) -> NDArray[np.float32]:
        """Return the unquantised vectors that decoded vectors approximate, shape (N, V)."""
        return self._latents.points(encoded.features)

    def standardised(self, decoded: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return decoded vectors, shape (N, V), in the units of the encoder's features."""
        return self._network.features(decoded, len(decoded)) if self.columns else decoded

    def encode_vectors(self, vectors: ArrayLike, *, latents: int | None = None) -> engine.Encoded:
        """Encode vectors, float, shape (N, W), for a model of vectors: codes and standardised vectors.

        Raises
        ------
        UsageError
            If they are of another shape or type, or one is not finite as float32.
        """
        array = np.asarray(vectors)
        engine.check_inputs(self.config, array)
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        finite = np.isfinite(array).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            raise UsageError(f"row {row:,} of the vectors holds a number that is not a finite float32; leave it out.")
        return engine.encode(self._network, self._latents, array, width=latents)

    def preprocess_of(self, header: Header) -> Preprocess:
        """Return the preprocessing of an archive's images; without a stated depth, each 16-bit image has its own."""
        stated = header.preprocess
        return replace(self.preprocess, fit=stated["fit"], depth=stated.get("depth", OWN_DEPTH))

    def prepare(
        self, images: NDArray[Any] | Sequence[Any], preprocess: Preprocess | None = None
    ) -> NDArray[np.uint8]:
        """Preprocess images, as for :meth:`encode`, to the model's size: uint8, shape (N, size, size, 3).

        Parameters
        ----------
        images : ndarray of uint8, or sequence of path, Pillow image or array
        preprocess : Preprocess, optional
            By default the model's.

        Raises
        ------
        ImageError, UsageError
            As :meth:`encode`.
        """
        preprocess = preprocess or self.preprocess
        size = preprocess.size
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
                found = f"{images.dtype} of shape {images.shape}"
                raise UsageError(
                    f"an array of images is uint8 of shape (N, H, W, 3), not {found}; put a single image into a list."
                )
            if images.shape[1:] == (size, size, 3):
                return images
        elif not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise UsageError(f"encode takes a list of images, not one {type(images).__name__}: put it into a list.")
        out = np.empty((len(images), size, size, 3), np.uint8)
        for i, image in enumerate(images):
            try:
                out[i] = _prepare(image, preprocess)
            except (ImageError, UsageError) as exc:
                raise type(exc)(f"image {i:,}: {exc}") from exc
        return out

    def check_made(self, header: Header, path: PathLike, advice: str = "give its own with -m") -> None:
        """Raise ModelMismatch unless this model made the archive with this header."""
        if header.model_sha256 != self.model.sha256:
            raise ModelMismatch(
                f"{escape_name(path)}: it was made by the model {escape_name(header.model)} "
                f"({header.model_sha256[:12]}), not by {escape_name(self.model.name)} ({self.model.sha256[:12]}); "
                f"{advice}."
            )

    def header(self, *, latents: int, source_kind: str, preprocess: Preprocess | None = None) -> Header:
        """Return the header for an archive of this model's codes; vectors have no preprocessing."""
        preprocess = preprocess or self.preprocess
        if self.columns is None:
            prepared: dict[str, Any]
            size, prepared = preprocess.size**2 * 3, {"size": preprocess.size, "fit": preprocess.fit}
            if preprocess.depth:  # sets white in all 16-bit images
                prepared["depth"] = preprocess.depth
        else:
            size, prepared = self.columns * _FLOAT, {}
        return Header(
            model=self.model.name,
            model_sha256=self.model.sha256,
            model_latents=self.latents,
            latents=latents,
            alphabet=self.alphabet,
            precision=self.precision,
            tables_sha256=self.tables.sha256,
            feature_dim=layout.vector_dim(self.config, self._latents.features),
            runtime=self.runtime,
            input_bytes=size,
            source_kind=source_kind,
            preprocess=prepared,
            embedder=None if self.embedder is None else self.embedder.to_json(),
        )


def device_name(name: str = "auto") -> str:
    """Return the device to compute on; "auto" is a GPU if PyTorch is installed and finds one.

    Raises
    ------
    MissingExtraError
        If the device is not the CPU, and PyTorch is not installed.
    UsageError
        If there is no such device.
    """
    if name == "cpu" or (name == "auto" and not (_may_have_gpu() and find_spec("torch"))):
        return "cpu"
    if name != "auto":
        require("torch", f"--device {name}", "train")
    from stochcl.encoders.inference import choose_device

    return str(choose_device(name))


def _may_have_gpu() -> bool:
    """Return whether a GPU is likely enough to spend seconds on importing PyTorch."""
    return "torch" in sys.modules or sys.platform == "win32" or any(Path(file).exists() for file in _GPUS)


def _prepare(image: PathLike | Image | NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Preprocess one image of any kind to the model's square."""
    from PIL import Image as PillowImage

    if isinstance(image, str | os.PathLike):
        try:
            return preprocess.decode(read_regular(image, MAX_FILE_BYTES))
        except DamagedImage as exc:
            return exc.pixels
        except ImageError as exc:
            raise type(exc)(f"{escape_name(image)}: {exc}.") from exc
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
            raise UsageError(f"an image is uint8 of shape (H, W, 3) or (H, W), not {image.dtype} {image.shape}.")
        image = PillowImage.fromarray(image[:, :, 0] if image.ndim == 3 and channels == 1 else image)
    if not isinstance(image, PillowImage.Image):
        raise UsageError(f"an image is a path, an array or a Pillow image, not {type(image).__name__}.")
    return preprocess.convert(image)
