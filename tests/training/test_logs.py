import builtins
import csv
import json
import math
import sys
from dataclasses import fields

import pytest

from stochcl.errors import MissingExtraError, OutputError
from stochcl.training.outputs import FileLog, TensorBoardLog
from stochcl.training.pretrain import TrainProgress
from tests.training.making import make_set, make_trainer

FIRST = TrainProgress(0.25, 20, 1.5, 3.25, loss=2.5, rate=31.0)
SECOND = TrainProgress(0.5, 40, 3.0, 6.5, loss=2.0, rate=30.0, knn=0.75)


@pytest.mark.parametrize("name", ["log.csv", "LOG.CSV"])
def test_a_table_has_a_column_for_every_figure_and_goes_on_where_it_ended(tmp_path, name):
    for progress in (FIRST, SECOND):
        FileLog(tmp_path / name).write(progress)
    with (tmp_path / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [f.name for f in fields(TrainProgress)]
    assert [(row["step"], row["loss"], row["knn"]) for row in rows] == [("20", "2.5", ""), ("40", "2.0", "0.75")]


def test_lines_hold_what_there_is(tmp_path):
    log = FileLog(tmp_path / "log")
    log.write(SECOND)
    found = json.loads((tmp_path / "log").read_text())
    assert found["knn"] == 0.75
    assert not any(math.isnan(value) for value in found.values())
    assert "kl" not in found


@pytest.mark.parametrize("name", ["log.csv", "log"])
def test_a_file_that_cannot_be_written_is_said(tmp_path, name):
    with pytest.raises(OutputError, match=f"none/{name}: the log cannot be written: no such file or directory"):
        FileLog(tmp_path / "none" / name).write(FIRST)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_is_told_of_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path / "runs")
    make_trainer(tmp_path, make_set(64), logs=[log], batch_size=2).run()
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert {"loss", "rate", "kl", "contrast", "lr", "held_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 20]
    assert "step" not in events.Tags()["scalars"]


def test_a_missing_tensorboard_is_one_sentence(tmp_path, monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"install it with: pip install 'stochcl\[tensorboard\]'\.$"):
        TensorBoardLog(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
