"""Options and fixtures that all rooms share."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

# One thread, here and in processes that tests start: on two, the backward pass of convolutions as narrow as those of
# the tests' networks (4 channels), on odd batches in channels-last order, corrupts memory in one of three runs of
# PyTorch 2.13.0 on a CPU, seen with a network, random images and nothing of ours around it. Tests are faster, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.making import make_model, write_images

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    # A shell without job control starts what runs in the background with interrupts ignored, and processes inherit
    # that: the tests of interruption would wait for one that never comes.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--remake-golden", action="store_true", help="Write the golden files anew, then look at the diff."
    )


@pytest.fixture
def golden(request):
    """Compare bytes with a golden file; a missing one fails, unless --remake-golden writes it."""

    def compare(name: str, data: bytes) -> None:
        path = GOLDEN / name
        if request.config.getoption("--remake-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        assert path.exists(), f"{path} is missing; it belongs into the repository"
        assert path.read_bytes() == data, f"{name} is not what this version writes: a change of the format"

    return compare


@pytest.fixture
def rng():
    return np.random.default_rng(20211001)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images of three classes; look, do not touch."""
    return write_images(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="session")
def model(tmp_path_factory, images):
    """The file of a tiny real model, called ``tiny``."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", images)


@pytest.fixture(scope="session")
def codec(model):
    import stochcl

    return stochcl.load(model, device="cpu")


@pytest.fixture(scope="session")
def codes(tmp_path_factory, images, codec):
    """The images' archive; look, do not touch."""
    path = tmp_path_factory.mktemp("codes") / "codes.bin"
    codec.compress(images, path)
    return path


@pytest.fixture
def small_segments(monkeypatch):
    """Make segments of so few rows, so that a short run has several."""
    from stochcl.compress import Writer

    def of(rows):
        monkeypatch.setitem(Writer.__init__.__kwdefaults__, "segment_rows", rows)

    return of
