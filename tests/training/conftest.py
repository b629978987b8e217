import pytest


@pytest.fixture
def folder(tmp_path):
    """Return a new folder below the test's, by name."""

    def make(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make
