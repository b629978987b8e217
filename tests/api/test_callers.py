"""What programs are told: Python's own kinds of errors, and arguments in place of flags."""

import re

import numpy as np
import pytest
from PIL import Image

import stochcl
from stochcl.api import predict, search, train
from stochcl.api.evaluate import evaluate
from stochcl.errors import StochclError, command_line
from tests.making import write_images

FLAG = re.compile(r"(?<![\w-])(--[a-z]|-[mk]\b)")


@pytest.mark.parametrize(
    "call",
    [
        lambda codec, codes, none: stochcl.open(none),
        lambda codec, codes, none: stochcl.load(none),
        lambda codec, codes, none: stochcl.append(none, codes.parent, codec),
        lambda codec, codes, none: stochcl.merge([codes, none], codes.parent / "out"),
        lambda codec, codes, none: stochcl.transcode(codes, codes.parent / "out", labels=none),
        lambda codec, codes, none: stochcl.transcode(codes, codes.parent / "out", select=none),
        lambda codec, codes, none: evaluate(codes, labels=none),
        lambda codec, codes, none: evaluate(codes, groups=str(none)),
        lambda codec, codes, none: search.search(codes, [none], model=None),
        lambda codec, codes, none: predict.predict(codes, none, codes.parent / "out"),
        lambda codec, codes, none: codec.encode([none]),
        lambda codec, codes, none: codec.compress(none, codes.parent / "out"),
        lambda codec, codes, none: codec.compress(none.with_suffix(".parquet"), codes.parent / "out"),
        lambda codec, codes, none: train.train([codes.parent], codes.parent / "out", init=none),
        lambda codec, codes, none: train.train([none], codes.parent / "out"),
        lambda codec, codes, none: train.train([], codes.parent / "out", preset=f"{none}.toml"),
        lambda codec, codes, none: train.adapt([codes.parent], codes.parent / "out", model=none),
    ],
)
def test_a_file_that_is_not_there_is_pythons_own_error_too(codec, codes, tmp_path, call):
    with pytest.raises(FileNotFoundError) as caught:
        call(codec, codes, tmp_path / "none")
    assert isinstance(caught.value, StochclError)
    assert "none" in str(caught.value)


def test_warnings_name_arguments_to_programs_and_flags_on_the_command_line(codec, tmp_path):
    folder = write_images(tmp_path / "photos", per_class=2)
    (folder / "cats" / "note.txt").write_text("x")
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(folder / "cats" / "deep.png")
    (folder / "cats" / "cut.jpg").write_bytes((folder / "cats" / "01.jpg").read_bytes()[:-2])

    def told():
        report = codec.compress(folder, tmp_path / "a.bin", label_level=7, force=True)
        (folder / "cats" / "new.jpg").write_bytes((folder / "cats" / "01.jpg").read_bytes()[:-2])
        edit = stochcl.append(tmp_path / "a.bin", folder, codec, label_level=7)
        (folder / "cats" / "new.jpg").unlink()
        assert len(report.warnings) == 4
        assert any("damaged" in note for note in edit.notes)
        return [*report.warnings, *edit.notes]

    lines = told()
    assert not [line for line in lines if FLAG.search(line)]
    with command_line():
        flags = told()
    assert [line for line in lines if "any_name=True" in line or "depth=16" in line or "another label_level" in line]
    assert len([line for line in flags if FLAG.search(line)]) >= 4
