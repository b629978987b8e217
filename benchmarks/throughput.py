"""Time each stage of ``stochcl compress``, and the whole, beside its lower bound.

    python benchmarks/throughput.py -o results/
    python benchmarks/throughput.py photos.zip --images 5000 --device cuda --precision bf16 --compile -o results/

Stages take turns, with one thread of arithmetic, in processor time and on the clock. SOURCE is a folder, .zip or
.tar of images; without one, JPEG files are made. The codes are checked.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import click
import numpy as np
from script import command_of

from stochcl.benchmarks.run import BenchmarkError, Config, hardware, record
from stochcl.cli.options import PATH
from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.compress.segment import write_segment
from stochcl.data import ImageSource, open_source
from stochcl.data.array import ArraySource
from stochcl.data.preprocess import _DRAFT_GAP
from stochcl.entropy.ans import encode_block
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import OWN
from stochcl.errors import UsageError, require
from stochcl.messages import escape_name
from stochcl.options import option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from PIL import Image

    from stochcl.api.codec import Codec

SCHEMA = "stochcl.benchmark.throughput/0"
FLOORS = ("floor: decode", "floor: forward", "floor: code")
STAGES = ("read", "decode", "resize", "encode", "entropy-code", "write")
WHOLE = "whole"

_COARSE = 9  # the side of the coarse noise that images are made of
_QUALITY = 90
_BATCH = 256  # images per batch when compressing


@dataclass(frozen=True)
class ThroughputConfig(Config):
    """A model on images, or an untrained network on synthetic images."""

    command_name: ClassVar[str] = "python benchmarks/throughput.py"

    source: Path | None = option(None)
    model: Path | None = option(None, "A model, by name or file.", short="-m", unit="MODEL", shown="general")
    backbone: str | None = option(None, "Time an untrained network instead: resnet10, 18, 34 or 50.")
    size: int | None = option(None, "Input size of that network.", at_least=16, unit="PIXELS", shown="64")
    images: int = option(512, "Images to make, or to take from SOURCE at most.", at_least=1)
    image_size: int | None = option(
        None, "Side of the images to make.", at_least=1, unit="PIXELS", shown="1.5 times the network's"
    )
    device: str = option("auto", "cpu, cuda, ...")
    precision: str = option("fp32", "Numeric precision of the network.", choices=("fp32", "bf16", "int8"))
    compile: bool = option(False, "Compile the network with torch.compile.")
    repeat: int = option(5, "Rounds to measure.", at_least=1)
    seed: int = option(0, "Random seed.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.backbone is not None:
            raise UsageError("--model and --backbone both say which network; give one of them.")
        if self.size is not None and self.backbone is None:
            raise UsageError("--size is that of an untrained network; give --backbone too.")
        if self.source is not None and self.image_size is not None:
            raise UsageError("--image-size is that of images that are made; leave it out where a source is named.")


def benchmark_throughput(
    config: ThroughputConfig, *, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Measure stages, floors and the whole, interleaved, and check the archive's codes.

    Returns ``rows``, one per stage, and ``ratios`` of floors and stages to the whole, on both clocks, as JSON values.
    """
    from stochcl.api.codec import Codec
    from stochcl.encoders.config import input_size

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stochcl-")))
        name = config.model
        if config.backbone is not None:
            name = folder / "untrained.safetensors"
            make_model(name, config.backbone, config.size or input_size(config.backbone), config.seed)
        codec = Codec(device=config.device) if name is None else Codec(str(name), device=config.device)
        codec = codec.with_precision(config.precision)
        source = config.source
        if source is None:
            source = folder / "images"
            make_images(source, config.images, config.image_size or codec.size * 3 // 2, config.seed)
        stack.enter_context(one_thread())
        if config.compile:
            codec = codec.with_runtime("torch")
            codec.model.encoder.backbone.compile()
        stages = Stages(codec, source, folder, most=config.images)
        times = interleave(stages.work(), config.repeat, wait=waiting_for(codec.device), progress=progress)
        same = stages.check()
    count = len(stages.data)
    ratios = {
        f"{what} / whole, {clock}": ratio(times, parts, WHOLE, clock)
        for clock in ("core", "wall")
        for what, parts in (("floors", FLOORS), ("forward", FLOORS[1:2]), ("stages", STAGES))
    }
    return record(
        SCHEMA, config, n=count, network=codec.config.backbone, size=codec.size, latents=codec.latents,
        precision=config.precision, compile=config.compile, hardware=facts(codec.device) | {"runtime": codec.runtime},
        agreement_with_fp32=round(same, 6), ratios=ratios,
        rows=[row(stage, taken, count) for stage, taken in times.items()],
    )  # fmt: skip


def title(result: dict[str, Any]) -> str:
    """Return the table's title: the setup, and the main ratio on this device."""
    clock = "wall" if result["hardware"]["device"] == "cuda" else "core"
    found = result["ratios"][f"floors / whole, {clock}"]
    return (
        f"{result['n']:,} images, {result['network']} at {result['size']} px, {result['precision']}; floors / whole "
        f"({clock} seconds) {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    )


class Stages:
    """The measured stages, over the first ``most`` readable images of a source."""

    def __init__(self, codec: Codec, path: Path, folder: Path, *, most: int) -> None:
        source = open_source(path)
        if not isinstance(source, ImageSource) or isinstance(source, ArraySource):
            raise UsageError(f"{escape_name(path)}: this is an array; throughput is measured on image files.")
        if len(source) > most:
            raise UsageError(
                f"this source has {len(source):,} images, and all of them would be compressed, not {most:,}; "
                f"pass --images {len(source)}, or name a smaller source."
            )
        self.codec, self.source, self.path, self.folder = codec, source, path, folder
        self.pixels = np.stack([source.load(i, codec.preprocess) for i in range(len(source))])
        self.data = [source._read(i) for i in range(len(source))]
        self.codes = codec.with_precision("fp32").encode_prepared(self.pixels).codes
        names = tuple(entry.name for entry in source.entries)
        self.named = replace(self.codes, names=names, uncertainty=None)
        self.encoded = self.codes
        self.candidates = codec.tables.candidates(codec.latents, None)
        self.head, self.chunk = write_segment(self.named, self.candidates)
        chosen = [c.model for c in self.candidates if (c.kind, c.number) == (self.head.model, self.head.number)]
        self.model: Any = IndependentModel.fit(self.codes) if self.head.model == OWN else chosen[0]
        self.archive = folder / "whole.bin"

    def work(self) -> dict[str, Callable[[], object]]:
        """Return the functions to time by name: stages, the whole, floors."""
        images = list(self.decoded())
        return {
            "read": lambda: deque(map(self.source._read, range(len(self.data))), maxlen=0),
            "decode": lambda: deque(self.decoded(), maxlen=0),
            "resize": lambda: deque(map(self.codec.preprocess.apply, images), maxlen=0),
            "encode": self.encode,
            "entropy-code": lambda: write_segment(self.named, self.candidates),
            "write": self.write,
            "whole": self.whole,
            "floor: decode": lambda: deque(self.decoded(), maxlen=0),
            "floor: forward": self.forward,
            "floor: code": self.code,
        }

    def decoded(self) -> Iterator[Image.Image]:
        """Decode files in memory with Pillow alone, at the scale that preprocessing requests."""
        from PIL import Image

        preprocess = self.codec.preprocess
        for data in self.data:
            image = Image.open(BytesIO(data))
            image.draft(None, preprocess._scaled(*image.size, preprocess.size * _DRAFT_GAP))
            image.load()
            yield image

    def encode(self) -> None:
        """Encode 8-bit pixels to packed codes, in batches as when compressing."""
        parts = [self.pixels[start : start + _BATCH] for start in range(0, len(self.pixels), _BATCH)]
        encode = partial(self.codec.encode_prepared, uncertainty=False)
        self.encoded = Codes.concatenate([encode(part).codes for part in parts])

    def forward(self) -> None:
        """Run only the network and its latents, in chunks as when encoding."""
        network, latents = self.codec._network, self.codec._latents
        padded = np.zeros((network.chunk, *self.pixels.shape[1:]), np.uint8)
        for start in range(0, len(self.pixels), network.chunk):
            part = self.pixels[start : start + network.chunk]
            padded[: len(part)] = part
            latents.symbols(latents.parameters(network.features(padded, len(part))), self.codec.latents)

    def code(self) -> None:
        """Run only the coder, in one block, under the model already known to be cheapest."""
        decisions = self.codes.decisions()
        indices = None if isinstance(self.model, IndependentModel) else self.model.level_indices(decisions)
        encode_block(self.codes, self.model, indices)

    def write(self) -> None:
        """Write the coded segment to disk."""
        with (self.folder / "written.bin").open("wb") as file:
            file.write(self.chunk)
            file.flush()
            os.fsync(file.fileno())

    def whole(self) -> None:
        """Compress the source to an archive, as ``stochcl compress`` does."""
        self.codec.compress(self.path, self.archive, force=True)

    def check(self) -> float:
        """Check that the archive holds the encoder's codes; return the fraction of symbols equal to those of fp32."""
        with Archive(self.archive, tables=[self.codec.tables]) as archive:
            found = archive[:]
        if not np.array_equal(found.packed, self.encoded.packed):
            raise BenchmarkError("the archive holds other codes than the network gives; no figure counts.")
        return float((found.symbols() == self.codes.symbols()).mean())


def make_images(folder: Path, count: int, side: int, seed: int) -> None:
    """Write JPEG files of smooth coloured noise with grain, about as costly as photographs."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 6, (side, side, 1)).astype(np.float32)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.jpg", quality=_QUALITY)


def make_model(path: Path, backbone: str, size: int, seed: int) -> None:
    """Write the model file of an untrained network, which runs as fast as a trained one."""
    require("torch", "an untrained network", "train")
    import torch

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.modelfile import save_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(EncoderConfig(backbone=backbone, size=size, latents=2048)).eval()
    encoder.ones.fill_(2048)  # 1/2 in units of 1/4096: nothing is known of the codes
    save_model(encoder, path, {"untrained": True})


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit networks and matrix products to one thread, so that no core-seconds are spent waiting."""
    from threadpoolctl import threadpool_limits

    with patch.dict(os.environ, OMP_NUM_THREADS="1"), threadpool_limits(1):
        yield


def waiting_for(device: object) -> Callable[[], None]:
    """Return a function that waits until a device has finished."""
    if not str(device).startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def facts(device: object) -> dict[str, Any]:
    """Return facts about the machine, with the GPU's name if one was used."""
    found = hardware() | {"device": str(device).partition(":")[0]}
    if found["device"] == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name(str(device))
    return found


@dataclass
class Times:
    """Processor and wall-clock seconds of each round, and the memory of the first run."""

    core: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def interleave(
    work: Mapping[str, Callable[[], object]], repeat: int, *, wait: Callable[[], None] = lambda: None,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Times]:  # fmt: skip
    """Run each piece once to warm up and measure its memory, then all pieces in turn ``repeat`` times.

    ``wait`` returns when the device has finished; ``progress`` gets the number of pieces done and the next one's
    name.
    """
    times = {name: Times() for name in work}
    for turn in range(repeat + 1):
        for done, (name, function) in enumerate(work.items()):
            progress(turn * len(work) + done, (repeat + 1) * len(work), name)
            before = 0 if turn else restart_peak()
            wait()
            wall, core = time.perf_counter(), time.process_time()
            function()
            wait()
            if turn:
                times[name].core.append(time.process_time() - core)
                times[name].wall.append(time.perf_counter() - wall)
            else:
                times[name].peak_bytes = max(0, peak() - before)
    return times


def ratio(times: Mapping[str, Times], above: Sequence[str], below: str, clock: str = "core") -> dict[str, float]:
    """Return the time of some pieces divided by that of another: median and range over the rounds."""
    rounds = zip(*(getattr(times[name], clock) for name in (*above, below)), strict=True)
    found = [sum(parts) / max(whole, 1e-12) for *parts, whole in rounds]
    return {"median": round(statistics.median(found), 4), "low": round(min(found), 4), "high": round(max(found), 4)}


def row(stage: str, times: Times, count: int) -> dict[str, Any]:
    """Return a row of results: milliseconds per image or view on both clocks, speeds, and memory."""
    core, wall = statistics.median(times.core), statistics.median(times.wall)
    spent = {"core_ms_each": core, "core_ms_each_low": min(times.core), "core_ms_each_high": max(times.core)}
    return {
        "stage": stage,
        "n": count,
        **{name: round(seconds / count * 1e3, 5) for name, seconds in (spent | {"wall_ms_each": wall}).items()},
        "each_per_core_second": round(count / max(core, 1e-9), 1),
        "each_per_second": round(count / max(wall, 1e-9), 1),
        "repeats": len(times.core),
        "peak_bytes": times.peak_bytes,
    }


COLUMNS = ("stage", "core ms", "low", "high", "wall ms", "a core-second", "a second", "peak MB")


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    milliseconds = ("core_ms_each", "core_ms_each_low", "core_ms_each_high", "wall_ms_each")
    return [
        (
            row["stage"],
            *(f"{row[name]:,.3f}" for name in milliseconds),
            *(f"{row[name]:,.0f}" for name in ("each_per_core_second", "each_per_second")),
            f"{row['peak_bytes'] / 1e6:,.1f}",
        )
        for row in result["rows"]
    ]


def restart_peak() -> int:
    """Free unused memory, reset the high-water mark to the memory in use, and return it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only; elsewhere reused free memory is not counted
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    return peak()


def peak() -> int:
    """Return the high-water mark of the resident set, in bytes."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


main = command_of(
    ThroughputConfig, "throughput", click.argument("source", required=False, metavar="[SOURCE]", type=PATH),
    lambda config, folder, *, progress, say: benchmark_throughput(config, progress=progress),
    lambda result: [(title(result), COLUMNS, lines(result))],
    help=__doc__, unit="rounds",
)  # fmt: skip

if __name__ == "__main__":
    main()
