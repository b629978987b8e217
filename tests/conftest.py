"""Options and fixtures that all rooms share."""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


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
