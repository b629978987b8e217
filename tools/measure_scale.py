"""Compress a million generated images through a pipe, and measure memory and speed from the first to the last.

    python tools/measure_scale.py -o benchmarks/results/scale.json [--images 1000000] [--folder /tmp]

One process makes a tar of JPEG files of 32 to 128 pixels, which never touch a disk; `stochcl compress -` reads it.
Whenever the journal reports a segment, time, processor time and memory of the compressing process are recorded. Then
a separate process opens the archive, samples it at random, and trains a classifier on it out of core; its memory is
recorded too. The network is small and untrained, so that a million images take minutes: the engine is measured, not
the codes. A plot of the same name is written beside the JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from stochcl.benchmarks.run import ONE_THREAD, commit, hardware, versions

SIDES = (32, 48, 64, 96, 128)
CLASSES = 10
POOL = 8192  # distinct images; they repeat under other names, because writing JPEG files is too slow
WIDTH, SIZE, LATENTS = 8, 32, 64
TEST = 0.1  # the last rows
TICKS = os.sysconf("SC_CLK_TCK")


def picture(rng: np.random.Generator, label: int) -> bytes:
    """Return a JPEG file: noisy soft colours, with a stripe angle and a tint that depend on the class."""
    from PIL import Image

    side = int(rng.choice(SIDES))
    coarse = rng.integers(0, 150, (8, 8, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)
    angle, phase = np.pi * label / CLASSES, rng.uniform(0, 6)
    y, x = np.mgrid[:side, :side] / side
    pixels += 50 * np.sin(18 * (np.cos(angle) * x + np.sin(angle) * y) + phase)[..., None]
    pixels[..., label % 3] += 30
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def pool(seed: int) -> list[tuple[int, bytes]]:
    """Return the images: label and file."""
    rng = np.random.default_rng(seed)
    return [(i % CLASSES, picture(rng, i % CLASSES)) for i in range(POOL)]


def generate(images: int, seed: int) -> None:
    """Write a tar of images to standard output."""
    made, order, out = pool(seed), np.random.default_rng([seed, 1]), sys.stdout.buffer
    for start in range(0, images, POOL):
        for i, which in enumerate(order.permutation(POOL)[: images - start].tolist()):
            label, file = made[which]
            member = tarfile.TarInfo(f"class{label}/{start + i:09d}.jpg")
            member.size = len(file)
            out.write(member.tobuf(tarfile.USTAR_FORMAT))
            out.write(file)
            out.write(bytes(-len(file) % tarfile.BLOCKSIZE))
    out.write(bytes(2 * tarfile.BLOCKSIZE))
    out.flush()


def make_model(path: Path, seed: int) -> None:
    """Write an untrained network with statistics measured on generated images."""
    from stochcl.api.train import train

    with tempfile.TemporaryDirectory() as folder:
        for i, (label, file) in enumerate(pool(seed)[:512]):
            (Path(folder) / f"class{label}").mkdir(exist_ok=True)
            (Path(folder) / f"class{label}" / f"{i}.jpg").write_bytes(file)
        train([folder], path, epochs=0, width=WIDTH, size=SIZE, latents=LATENTS, decoder=(32,), device="cpu")


def resident(pid: int | str = "self", what: str = "VmRSS") -> float:
    """Return a process's memory in MB, now or (VmHWM) at most."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024 / 1e6


def processor(pid: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def compress(folder: Path, images: int, seed: int) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Run the pipe; return the program's report, and a point for each segment."""
    out = folder / "codes.bin"
    command = [
        sys.executable,
        "-m",
        "stochcl",
        "compress",
        "-",
        "-m",
        str(folder / "model.safetensors"),
        "-o",
        str(out),
    ]
    made = [sys.executable, __file__, "--generate", "--images", str(images), "--seed", str(seed)]
    journal, points = out.with_name("codes.bin.partial.journal"), []
    with (
        subprocess.Popen(made, stdout=subprocess.PIPE) as maker,
        subprocess.Popen(
            [*command, "--json", "--workers", "1"],
            stdin=maker.stdout,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
        ) as child,
    ):
        maker.stdout.close()
        seen = 0
        while child.poll() is None:
            time.sleep(0.1)
            try:
                lines = journal.read_bytes().splitlines() if journal.exists() else []
                if len(lines) - 1 > seen:
                    seen = len(lines) - 1
                    point = {
                        "images": json.loads(lines[-1].partition(b" ")[2])["position"],
                        "seconds": round(time.monotonic(), 2),
                        "processor_seconds": processor(child.pid),
                        "resident_mb": round(resident(child.pid), 1),
                        "maker_processor_seconds": processor(maker.pid),
                    }
                    points.append(point)
                    print(point, file=sys.stderr, flush=True)
            except (OSError, StopIteration, ValueError, KeyError):  # the process just ended
                continue
        said = json.loads(child.stdout.read())
    if child.returncode or maker.returncode:
        raise SystemExit(f"the pipe ended with {maker.returncode} and {child.returncode}")
    return said, points


def read(folder: Path) -> dict[str, Any]:
    """Open the archive, sample it at random, and train on it out of core; runs in a separate process."""
    from sklearn.linear_model import SGDClassifier

    from stochcl.compress import Archive

    started = time.perf_counter()
    archive = Archive(folder / "codes.bin")
    opened = time.perf_counter() - started
    rng, rows = np.random.default_rng(0), len(archive)
    started = time.perf_counter()
    for row in rng.integers(0, rows, 1000).tolist():
        archive[row]
    sampled = time.perf_counter() - started
    started = time.perf_counter()
    archive[np.sort(rng.choice(rows, min(rows, 10_000), replace=False))].symbols()
    together = time.perf_counter() - started
    model, classes, first = SGDClassifier(loss="log_loss", random_state=0), None, int(rows * (1 - TEST))
    started, trained = time.perf_counter(), 0
    for codes in archive.iter_shuffled(seed=0, rows=8192):
        numbers = np.array([int(name.rpartition("/")[2].removesuffix(".jpg")) for name in codes.names])
        labels = np.array([int(label.removeprefix("class")) for label in codes.labels])
        classes, use = np.arange(CLASSES) if classes is None else classes, numbers < first
        model.partial_fit(2.0 * codes.symbols()[use] - 1, labels[use], classes=classes)
        trained += int(use.sum())
    fitted = time.perf_counter() - started
    right, count = 0, 0
    for start in range(first, rows, 8192):
        codes = archive[start : min(start + 8192, rows)]
        labels = np.array([int(label.removeprefix("class")) for label in codes.labels])
        right += int((model.predict(2.0 * codes.symbols() - 1) == labels).sum())
        count += len(codes)
    return {
        "open_ms": round(1e3 * opened, 2),
        "random_single_rows": {"rows": 1000, "rows_per_second": round(1000 / sampled)},
        "random_rows_at_once": {"rows": min(rows, 10_000), "rows_per_second": round(min(rows, 10_000) / together)},
        "partial_fit": {
            "rows": trained,
            "rows_per_second": round(trained / fitted),
            "test_rows": count,
            "accuracy": round(right / count, 4),
            "chance": 1 / CLASSES,
            "note": "test images are of the same pool as those that were trained on, under other names",
        },
        "peak_mb": round(resident(what="VmHWM"), 1),
    }


def spread(points: list[dict[str, float]]) -> dict[str, Any]:
    """Return speed and memory of the first and the last quarter."""
    quarter = max(2, len(points) // 4)

    def speed(part: list[dict[str, float]], clock: str) -> float:
        return (part[-1]["images"] - part[0]["images"]) / (part[-1][clock] - part[0][clock])

    first, last = points[:quarter], points[-quarter:]
    return {
        "images_per_second": {
            "first_quarter": round(speed(first, "seconds")),
            "last_quarter": round(speed(last, "seconds")),
        },
        "images_per_processor_second": {
            "first_quarter": round(speed(first, "processor_seconds")),
            "last_quarter": round(speed(last, "processor_seconds")),
            "all": round(speed(points, "processor_seconds")),
        },
        "resident_mb": {
            "after_first_quarter": first[-1]["resident_mb"],
            "at_the_end": last[-1]["resident_mb"],
            "most": max(point["resident_mb"] for point in points),
        },
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw speed (processor and wall-clock time) and memory against images done."""
    from matplotlib.figure import Figure

    points = report["points"]
    figure = Figure(figsize=(7, 5), layout="constrained")
    speed, memory = figure.subplots(2, 1, sharex=True)
    done = np.array([point["images"] for point in points]) / 1e6
    for clock, label, style in (
        ("processor_seconds", "per second of processor time", "k-o"),
        ("seconds", "per second on the clock, beside other programs", "k:"),
    ):
        times = np.array([point[clock] for point in points])
        speed.plot(done[1:], np.diff(done * 1e6) / np.maximum(np.diff(times), 1e-9), style, ms=3, label=label)
    speed.set(ylabel="images / s", title=f"{report['images']:,} images of 32 to 128 pixels through a pipe, one core")
    speed.set_ylim(0, 1.4 * speed.get_ylim()[1])  # room for the legend
    speed.legend(loc="upper left", frameon=False)
    resident = [point["resident_mb"] for point in points]
    memory.plot(done, resident, "k-o", ms=3)
    memory.set(xlabel="images done (millions)", ylabel="resident memory (MB)", ylim=(0, 1.3 * max(resident)))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the archive goes, for the time being")
    parser.add_argument("--generate", action="store_true", help="write the tar of images to standard output")
    parser.add_argument("--plot", action="store_true", help="draw the plot of an output that is there again")
    options = parser.parse_args()
    if options.plot:
        plot(json.loads(options.output.read_text("utf-8")), options.output.with_suffix(".png"))
        return
    if options.generate:
        generate(options.images, options.seed)
        return
    os.environ.update(ONE_THREAD)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_model(folder / "model.safetensors", options.seed)
        said, points = compress(folder, options.images, options.seed)
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            found = workers.apply(read, (folder,))
    begun = points[0]["seconds"]
    points = [point | {"seconds": round(point["seconds"] - begun, 2)} for point in points]
    report = {
        "schema": "stochcl.scale/0",
        "command": shlex.join(["python", "tools/measure_scale.py", "--images", str(options.images)]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "seed": options.seed,
        "images": said["images"],
        "different_images": POOL,
        "sides": list(SIDES),
        "model": f"ResNet-10 of width {WIDTH} at {SIZE} pixels, {LATENTS} latents, untrained",
        "bytes": said["bytes"],
        "parts": said["parts"],
        "bits_per_image": said["bits_per_image"],
        "source_reduction": said["reduction"]["source"],
        "images_per_second": said["images_per_second"],
        "flatness": spread(points),
        "reading": found,
        "points": points,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(report, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
