"""Several processes do what one does with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stochcl.errors import UsageError
from stochcl.training.objectives import OBJECTIVES
from stochcl.training.options import TrainOptions
from stochcl.training.pretrain import batch_of_all
from stochcl.training.runtime import globalise_batch_norms

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process finds, and what two find together; both run at the same time."""
    places = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "tests.training.worker"]
    running = [
        subprocess.Popen(
            [sys.executable, *(launcher if place is places[1] else []), *worker, place],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        )
        for place in places
    ]  # fmt: skip
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert "Warning" not in said
    return [load_file(place / "found.safetensors") for place in places]


def of(found, objective, what):
    for tensors in found:
        yield {n: t for n, t in tensors.items() if n.startswith(f"{objective}.{what}")}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_those_of_the_whole_batch(found, objective):
    one, two = of(found, objective, "gradient")
    assert one.keys() == two.keys()
    assert any("backbone" in name for name in one)
    assert any("head" in name for name in one)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_some_steps_lead_to_the_same_weights_and_statistics(found, objective):
    one, two = of(found, objective, "weight")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_figures_that_the_first_process_logs_are_those_of_the_whole_batch(found, objective):
    one, two = of(found, objective, "figures")
    torch.testing.assert_close(two[f"{objective}.figures"], one[f"{objective}.figures"], rtol=1e-4, atol=1e-5)


def test_in_one_process_a_normalisation_is_what_it_was():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    network.append(torch.nn.BatchNorm1d(4 * 36, momentum=None, affine=False))
    state, images = network.state_dict(), torch.randn(5, 3, 8, 8)
    before = network(images)
    globalise_batch_norms(network)
    assert network.state_dict().keys() == state.keys()
    torch.testing.assert_close(network(images), before)
    network.eval()
    assert not torch.allclose(network(images), before)


def test_a_normalisation_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="networks with BatchNorm3d train in one process only"):
        globalise_batch_norms(torch.nn.Sequential(torch.nn.BatchNorm3d(2)))


def test_processes_have_batches_of_the_same_size(monkeypatch):
    monkeypatch.setattr("stochcl.training.pretrain.world_size", lambda: 4)
    assert [batch_of_all(*sizes) for sizes in [(64, 1000), (67, 1000), (256, 30)]] == [64, 64, 28]
    with pytest.raises(UsageError, match="a batch of 7 images gives 4 processes fewer than two each"):
        batch_of_all(256, 7)


def test_a_device_that_training_has_no_use_for_is_said():
    from stochcl.training.runtime import Runtime

    with pytest.raises(UsageError, match="there is no device 'abacus' here"):
        Runtime(TrainOptions(device="abacus"))
