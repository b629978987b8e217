"""The tree of exceptions is an interface: programs catch them, and commands return their exit codes."""

import inspect
import pickle

import pytest

from stochcl import errors

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]

TREE = {
    "StochclError": ((Exception,), 1),
    "UsageError": ((errors.StochclError, ValueError), 2),
    "MissingExtraError": ((errors.UsageError,), 2),
    "InputNotFound": ((errors.UsageError, FileNotFoundError), 2),
    "ModelNotFound": ((errors.UsageError, errors.ModelError, FileNotFoundError), 2),
    "OutputExists": ((errors.UsageError, FileExistsError), 2),
    "NameNotFound": ((errors.UsageError, KeyError), 2),
    "SourceError": ((errors.StochclError,), 1),
    "SourceNotFound": ((errors.SourceError, FileNotFoundError), 1),
    "EnvironmentFault": ((errors.SourceError,), 1),
    "ImageError": ((errors.StochclError,), 1),
    "ImageNotFound": ((errors.ImageError, FileNotFoundError), 1),
    "LabelsError": ((errors.StochclError, ValueError), 1),
    "LabelsNotFound": ((errors.LabelsError, FileNotFoundError), 1),
    "ModelError": ((errors.StochclError, ValueError), 1),
    "OutputError": ((errors.StochclError,), 1),
    "TrainingError": ((errors.StochclError,), 1),
    "FormatError": ((errors.StochclError, ValueError), 1),
    "BadMagic": ((errors.FormatError,), 1),
    "UnsupportedVersion": ((errors.FormatError,), 1),
    "Truncated": ((errors.FormatError,), 1),
    "ChecksumMismatch": ((errors.FormatError,), 1),
    "LimitExceeded": ((errors.FormatError,), 1),
    "ModelMismatch": ((errors.FormatError,), 1),
}


def test_the_tree_is_what_programs_were_told():
    assert {error.__name__: (error.__bases__, error.exit_code) for error in ALL} == TREE


@pytest.mark.parametrize("error", ALL)
def test_every_error_says_what_it_is_and_keeps_its_message(error):
    assert "__doc__" in vars(error)
    assert vars(error)["__doc__"]
    raised = error("a.png: it is wrong.")
    assert str(raised) == "a.png: it is wrong."
    again = pickle.loads(pickle.dumps(raised))  # as workers of a pool send them
    assert (type(again), str(again)) == (error, str(raised))


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("pass --force", "pass force=True"),
        ("choice of --no-names", "choice of names=False"),
        ("give --labels and --test-labels", "give labels and test_labels"),
        ("pass --label-level -1", "pass label_level=-1"),
        ("--any-name looks into them", "any_name=True looks into them"),
        ("give its own with -m", "give its own as model"),
        ("and -m what encodes them", "and model what encodes them"),
        ("--label-files=cls takes the .cls file", "label_files='cls' takes the .cls file"),
        ("-k must be at least 1", "count must be at least 1"),
        ("`stochcl merge --force`", "`stochcl merge --force`"),
        ("pip install a--b, ----", "pip install a--b, ----"),
    ],
)
def test_a_message_names_flags_on_the_command_line_and_arguments_to_programs(flags, arguments):
    raised = errors.UsageError(flags)
    assert str(raised) == arguments
    with errors.command_line():
        assert str(raised) == flags
    assert str(raised) == arguments


def test_no_error_is_named_like_one_of_pythons():
    import builtins

    assert not {error.__name__ for error in ALL} & set(vars(builtins))
