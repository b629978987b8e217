import inspect

import pytest

from stochcl import errors

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_a_stochcl_error_with_an_exit_code(error):
    assert issubclass(error, errors.StochclError)
    assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)
    assert inspect.getdoc(error)


def test_what_can_be_wrong_with_a_file_is_a_value_error():
    kinds = {error.__name__ for error in ALL if issubclass(error, errors.FormatError)} - {"FormatError"}
    assert kinds == {
        "BadMagic", "UnsupportedVersion", "Truncated", "ChecksumMismatch", "LimitExceeded", "ModelMismatch",
    }  # fmt: skip
    assert issubclass(errors.FormatError, ValueError)
