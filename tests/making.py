"""A tiny real model, images of a few classes, and ways to run the program, for the tests of cli and api."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

THOROUGH = bool(os.environ.get("STOCHCL_THOROUGH"))
"""Whether tests that try many places of a file try all of them, and random ones more examples."""

LATENTS = 32
SIZE = 32

CLASSES = ("cats", "dogs", "fische/süß")
"""Folders of the made images; the label is the first of each path."""

PER_CLASS = 14


class Interrupted(Exception):
    """What :func:`stop_after` raises."""


def stop_after(rows: int):
    """Return a progress function that interrupts a run after so many rows."""

    def stop(done: int, total: int | None) -> None:
        if done >= rows:
            raise Interrupted

    return stop


def every(few: int, all_: int = 1) -> int:
    """The step between places that a test tries: ``few`` by default, ``all_`` with STOCHCL_THOROUGH=1."""
    return all_ if THOROUGH else few


def make_pixels(seed: int, shade: int = 0, size: int = 40) -> np.ndarray:
    """An image of soft noise, brighter in one colour: shape (size, size + 8, 3), uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 160, (size // 8, size // 8 + 1, 3))
    pixels = coarse.repeat(8, 0).repeat(8, 1)
    pixels[..., shade % 3] += 80
    return pixels.astype(np.uint8)


def write_images(folder: Path, per_class: int = PER_CLASS) -> Path:
    """Write images of every class below a folder, PNG and JPEG by turns."""
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            ending = "jpg" if i % 2 else "png"
            Image.fromarray(make_pixels(1000 * k + i, k)).save(folder / name / f"{i:02d}.{ending}")
    return folder


def make_model(path: Path, images: Path) -> Path:
    """Write the file of an untrained network whose statistics and tables are measured on images."""
    from stochcl.api.train import train

    train([images], path, epochs=0, width=4, size=SIZE, latents=LATENTS, decoder=(8,), device="cpu")
    return path


def program(*arguments, before: str = "") -> list[str]:
    """The command line of the program as a process of its own, after some lines of Python."""
    code = f"{before}\nfrom stochcl.cli import main; main(prog_name='stochcl')"
    return [sys.executable, "-c", code, *map(os.fspath, arguments)]


def process(*arguments, before: str = "", **options) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    command = program(*arguments, before=before)
    given = {"capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run(command, check=False, **given)


def signalled(*arguments, before: str, mark: Path, sent: int) -> tuple[str, str, int]:
    """Run the program, send it a signal once it has made a mark, and return what it said and its exit code."""
    with subprocess.Popen(
        program(*arguments, before=before), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            while not mark.exists():
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.01)
            child.send_signal(sent)
            mark.unlink()
            said = child.communicate(timeout=60)
        finally:
            child.kill()
    return *said, child.returncode


def json_of(result) -> dict:
    """What a command printed on standard output with --json."""
    return json.loads(result.stdout)


SMALL_SEGMENTS = "from stochcl.compress import Writer; Writer.__init__.__kwdefaults__['segment_rows'] = {rows}"
"""Lines for ``before``: with segments this small, little work is lost and a short run leaves a partial file."""


def make_head(path: Path, vectors: np.ndarray, *, record: dict | None = None, **changes) -> Path:
    """Write the file of an untrained model of vectors, whose statistics and tables are those of some."""
    import torch

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.inference import encode
    from stochcl.encoders.modelfile import save_model
    from stochcl.entropy.model import measure_ones

    given = {"backbone": f"features:{vectors.shape[1]}", "latents": LATENTS, "decoder": (8,)} | changes
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**given)).eval()
    encoder.norm.fit(vectors)
    ones = measure_ones(encode(encoder, vectors, torch.device("cpu")).codes)
    encoder.ones.copy_(torch.from_numpy(ones))
    save_model(encoder, path, record or {})
    return path
