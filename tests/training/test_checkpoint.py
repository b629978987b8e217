import json
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from stochcl.errors import OutputError, TrainingError
from stochcl.training.outputs import KIND, load_checkpoint, save_checkpoint

OPTIONS = {"lr": 0.1, "seed": 3, "ladder": [1, 2]}
STATE = {"step": 5, "beta": 0.25, "options": OPTIONS}


class Run:
    """Two modules and an optimizer that has made some steps."""

    def __init__(self, steps=3, seed=0):
        torch.manual_seed(seed)
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.modules = {"net": nn.Sequential(conv, nn.BatchNorm2d(4)), "head": nn.Linear(4, 2)}
        parameters = [p for m in self.modules.values() for p in m.parameters()]
        groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01)
        self.train(steps)

    def train(self, steps):
        for _ in range(steps):
            loss = self.modules["head"](self.modules["net"](torch.rand(5, 3, 6, 6)).mean((2, 3))).square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def save(self, path):
        save_checkpoint(path, self.modules, self.optimizer, STATE)

    def load(self, path, options=OPTIONS):
        return load_checkpoint(path, self.modules, self.optimizer, options)

    def tensors(self):
        out = {f"{n}.{k}": v for n, m in self.modules.items() for k, v in m.state_dict().items()}
        states = self.optimizer.state_dict()["state"]
        return out | {f"{i}.{k}": v for i, values in states.items() for k, v in values.items()}


@pytest.fixture
def path(tmp_path):
    Run().save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def same(a, b):
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_everything_comes_back_and_goes_on_alike(path):
    first, second = Run(), Run(steps=0, seed=9)
    assert not same(first, second)
    assert second.load(path) == STATE
    assert same(first, second)
    for run in (first, second):
        torch.manual_seed(1)
        run.train(3)
    assert same(first, second)


def test_training_on_leaves_the_file_as_it_is(path):
    # Tensors come from the mapped file; an optimizer that updated them in place must not write there.
    before = path.read_bytes()
    run = Run(steps=0)
    run.load(path)
    run.train(2)
    assert path.read_bytes() == before


def test_a_run_in_a_new_place_keeps_its_groups(path):
    run = Run(steps=0)
    run.optimizer.param_groups[0]["lr"] = 0.5
    run.load(path)
    assert [g["lr"] for g in run.optimizer.param_groups] == [0.5, 0.01]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (OPTIONS | {"lr": 0.2}, "another lr;"),
        (OPTIONS | {"seed": 4, "lr": 1}, "another lr and seed;"),
        (OPTIONS | {"new": 1}, "another new;"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(path, options, said):
    run, untouched = Run(steps=1, seed=2), Run(steps=1, seed=2)
    with pytest.raises(TrainingError, match=f"checkpoint: this checkpoint belongs to a run with {said}"):
        run.load(path, options)
    assert same(run, untouched)


def rewrite(path, tensors=(), **metadata):
    with safetensors.safe_open(path, framework="pt") as file:
        old, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    kept = {k: v for k, v in (old | dict(tensors)).items() if v is not None}
    path.write_bytes(safetensors.torch.save(kept, {k: v for k, v in (said | metadata).items() if v is not None}))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "stochcl-checkpoint-9"},
        {"kind": None},
        {"state": None},
        {"state": "{"},
        {"state": "[]"},
        {"state": "null"},
        {"state": json.dumps({"options": 3})},
        {"state": json.dumps({"step": 5})},
        {"state": "[" * 100_000},
        {"tensors": {"net.0.weight": None}},
        {"tensors": {"head.weight": torch.zeros(9, 9)}},
        {"tensors": {"head.new": torch.zeros(1)}},
        {"tensors": {"optimizer.0.exp_avg": None}},
        {"tensors": {"optimizer.0.exp_avg": torch.zeros(7)}},
        {"tensors": {"optimizer.x.exp_avg": torch.zeros(7)}},
        {"tensors": {"optimizer.9.exp_avg": torch.zeros(7)}},
        {"tensors": {f"optimizer.1.{k}": None for k in ("step", "exp_avg", "exp_avg_sq")}},
        {"tensors": {"optimizer.1.other": torch.zeros(())}},
    ],
    ids=str,
)
def test_a_checkpoint_that_is_not_whole_is_refused(path, change):
    rewrite(path, **change)
    with pytest.raises(TrainingError, match=r"checkpoint: this checkpoint (is damaged|belongs to a run)"):
        Run(steps=0).load(path)


def test_damage_to_any_part_of_the_header_is_refused_or_changes_no_option(path):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refusals = 0
    for place in range(0, header, header // 200):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(damaged)
        run = Run(steps=0)
        try:
            state = run.load(path)
        except TrainingError as exc:
            assert str(path) in str(exc)  # noqa: PT017
            refusals += 1
        else:
            assert {k: state["options"][k] for k in OPTIONS} == OPTIONS
            run.train(1)
    assert refusals > 160


def test_a_truncated_checkpoint_is_refused(path):
    whole = path.read_bytes()
    for end in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:end])
        with pytest.raises(TrainingError, match="this checkpoint is damaged"):
            Run(steps=0).load(path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_a_pickle_is_never_loaded(path, kind):
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap()))
    else:
        torch.save({"net": Trap()}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(TrainingError, match="damaged"):
        Run(steps=0).load(path)


def test_a_checkpoint_is_replaced_as_a_whole_or_not_at_all(path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="checkpoint cannot be written: no space left on device"):
        Run(steps=5).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint"]
    monkeypatch.undo()
    Run(steps=5).save(path)
    assert path.read_bytes() != before
    assert safetensors.safe_open(path, framework="pt").metadata()["kind"] == KIND
