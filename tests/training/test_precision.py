"""What "auto" comes to on which machine, and that what came of it is what is computed in, and is written down."""

import numpy as np
import pytest
import torch

import stochcl
from stochcl.codes import Codes
from stochcl.encoders.inference import computes_in_bf16, precision_used
from stochcl.errors import TrainingError
from stochcl.training.entropy import MIN_CODES, fit_entropy
from stochcl.training.outputs import load_checkpoint
from tests.making import make_pixels
from tests.training.latents.making import make_stage
from tests.training.making import make_set, make_trainer


@pytest.fixture
def processor(monkeypatch):
    """Let the processor have these capabilities."""

    def give(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return give


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, False),  # not measured there
        ({}, False),
    ],
)
def test_auto_is_bf16_on_a_processor_with_instructions_for_it(processor, capabilities, expected):
    processor(**capabilities)
    assert computes_in_bf16("auto", "cpu") is expected
    assert precision_used("auto", "cpu") == ("bf16" if expected else "fp32")


@pytest.mark.parametrize("there", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_older_versions_of_pytorch_are_asked_in_their_own_way(monkeypatch, there):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == there, raising=False)
    assert computes_in_bf16("auto", "cpu") is (there is not None)


def test_a_version_that_cannot_say_computes_in_fp32(monkeypatch):
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert computes_in_bf16("auto", "cpu") is False


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_on_a_gpu_that_does_not_emulate_it(monkeypatch, processor, native):
    processor(avx512_bf16=not native)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert computes_in_bf16("auto", "cuda") is native


def test_auto_is_bf16_on_other_accelerators(processor):
    processor()
    assert computes_in_bf16("auto", "mps")


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_explicit_words_are_obeyed(processor, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    processor()
    assert computes_in_bf16("bf16", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    processor(avx512_bf16=True, amx_bf16=True)
    assert not computes_in_bf16("fp32", device)


@pytest.mark.parametrize(("native", "word", "used"), [
    (True, "auto", "bf16"), (False, "auto", "fp32"), (False, "bf16", "bf16"), (True, "fp32", "fp32"),
])  # fmt: skip
def test_every_stage_asks_where_it_computes_and_says_what_came_of_it(processor, tmp_path, native, word, used):
    processor(avx512_bf16=native)
    trainer = make_trainer(tmp_path, make_set(32), precision=word)
    assert (trainer.options.precision, trainer.runtime.precision) == (word, used)
    seen = []
    trainer.encoder.head.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    trainer.run()
    assert seen[0] == {"bf16": torch.bfloat16, "fp32": torch.float32}[used]


@pytest.mark.parametrize(("native", "used"), [(True, "bf16"), (False, "fp32")])
def test_latents_and_entropy_network_ask_the_processor(processor, native, used):
    processor(avx512_bf16=native)
    stage = make_stage(precision="auto", steps=20)
    record = stage.run().record
    assert (record["options"]["precision"], record["precision"]) == ("auto", used)
    codes = Codes.from_symbols(np.random.default_rng(0).integers(0, 2, (MIN_CODES, 8)))
    assert fit_entropy(codes, (8,), passes=1).record["precision"] == used


def test_a_checkpoint_is_gone_on_with_in_its_own_precision(processor, tmp_path):
    processor(avx512_bf16=True)
    data = make_set(32)
    make_trainer(tmp_path, data, precision="auto").run()
    assert make_trainer(tmp_path, data, precision="auto").step == 4
    assert make_trainer(tmp_path, data, precision="bf16").step == 4  # as checkpoints from before auto have it
    processor(avx512_bf16=False)
    with pytest.raises(
        TrainingError, match=r"another precision; give the same options \(precision bf16\), or delete"
    ):
        make_trainer(tmp_path, data, precision="auto")
    assert make_trainer(tmp_path, data, precision="bf16").step == 4


def test_of_a_checkpoint_of_other_options_no_precision_is_said(tmp_path):
    trainer = make_trainer(tmp_path, make_set(32))
    trainer.run()
    wanted = trainer.identity() | {"lr": 5.0}
    with pytest.raises(TrainingError, match="another lr; give the same options, or delete"):
        load_checkpoint(trainer.checkpoint_path, trainer.modules(), trainer.optimizer, wanted)


def test_what_the_caller_has_set_changes_no_code(model):
    """Autocast, the default type and the default device are the caller's; an archive must not depend on them."""
    pixels = np.stack([make_pixels(i, i)[:, :40] for i in range(70)])
    plain = stochcl.load(model, device="cpu").encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        found = stochcl.load(model, device="cpu").encode(pixels)
        assert torch.is_autocast_enabled("cpu")
    np.testing.assert_array_equal(found.packed, plain.packed)
    np.testing.assert_array_equal(found.uncertainty, plain.uncertainty)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = stochcl.load(model, device="cpu").encode(pixels)
        assert torch.get_default_dtype() == torch.float64
        general = stochcl.load(device="cpu").encode(pixels[:2])
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.packed, plain.packed)
    np.testing.assert_array_equal(found.uncertainty, plain.uncertainty)
    np.testing.assert_array_equal(general.packed, stochcl.load(device="cpu").encode(pixels[:2]).packed)
