import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch

from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.inference import encode
from stochcl.encoders.modelfile import KIND, load_model, model_hash, save_model, stored_config
from stochcl.errors import ModelError, OutputError
from tests.encoders.making import make_config, make_encoder, make_images

RECORD = {"images": 12, "options": {"lr": 0.1}}


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(width=4, latents=8)


@pytest.fixture
def path(encoder, tmp_path):
    save_model(encoder, tmp_path / "tiny.safetensors", RECORD)
    return tmp_path / "tiny.safetensors"


def parts(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def change(path, tensors=(), fields=(), **metadata):
    """Write a model file again with some of its content changed; None takes a tensor away."""
    old, said = parts(path)
    said["config"] = json.dumps(json.loads(said["config"]) | dict(fields))
    kept = {k: v for k, v in (old | dict(tensors)).items() if v is not None}
    path.write_bytes(safetensors.torch.save(kept, said | metadata))


def refused(path, message):
    with pytest.raises(ModelError, match=message) as found:
        load_model(path)
    assert str(found.value).startswith(f"{path}: ")
    assert str(found.value).endswith(".")


def test_a_model_comes_back_as_it_was_written(encoder, tmp_path):
    path = tmp_path / "my.model.safetensors"
    sha256 = save_model(encoder, path, RECORD)
    model = load_model(path)
    assert (model.name, model.sha256, model.record) == ("my.model", sha256, RECORD)
    assert model.encoder.config == encoder.config
    assert not model.encoder.training
    for name, tensor in encoder.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        found = model.encoder.state_dict()[name]
        weight = tensor.ndim > 1 and name.endswith("weight")
        assert torch.equal(found, tensor.half().float() if weight else tensor), name
        assert found.dtype == tensor.dtype


def test_a_written_model_encodes_alike_and_is_written_alike(path, tmp_path):
    first = load_model(path)
    again = tmp_path / "again.safetensors"
    assert save_model(first.encoder, again, RECORD) == first.sha256
    for ours, theirs in zip(parts(again), parts(path), strict=True):
        assert ours.keys() == theirs.keys()
    assert parts(again)[1] == parts(path)[1]
    images, cpu = make_images(20), torch.device("cpu")
    codes = [encode(load_model(p).encoder, images, cpu).codes.packed for p in (path, again)]
    assert np.array_equal(*codes)


def test_the_hash_leaves_out_the_record_and_the_layout(path):
    sha256 = load_model(path).sha256
    change(path, record=json.dumps({"other": 1}))
    assert load_model(path).sha256 == sha256
    tensors, metadata = parts(path)
    header, data = {"__metadata__": metadata}, b""
    for name in sorted(tensors, reverse=True):
        raw = tensors[name].numpy().tobytes()
        dtype = {torch.float16: "F16", torch.float32: "F32", torch.int32: "I32"}[tensors[name].dtype]
        shape = list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, indent=1).encode()
    before = path.read_bytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert path.read_bytes() != before
    assert load_model(path).sha256 == sha256


def test_the_hash_is_of_every_tensor_and_all_of_the_configuration(path):
    tensors, _ = parts(path)
    config = make_config(latents=8)
    hashes = {model_hash(tensors, config)}
    for name, tensor in tensors.items():
        other = tensor.clone()
        other.view(-1)[-1] += 1
        hashes.add(model_hash(tensors | {name: other}, config))
    hashes.add(model_hash(tensors | {"prior": tensors["prior"].double()}, config))
    hashes.add(model_hash(tensors | {"prior": tensors["prior"].view(2, 4)}, config))
    hashes.add(model_hash({("Prior" if k == "prior" else k): v for k, v in tensors.items()}, config))
    other = {"backbone": "resnet18", "width": 5, "stem": "imagenet", "latents": 8, "ladder": (4, 8), "decoder": (9,)}
    other |= {"size": 17, "fit": "pad", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    changes = [{k: v} for k, v in other.items() if k != "latents"] + [{"latents": 9}]
    changes += [{"entropy": "autoregressive"}, {"entropy": "autoregressive", "entropy_hidden": 3}, {"head": (7,)}]
    changes += [{"temperature": 2.5}]
    changes += [{"posterior": "gaussian", "alphabet": 4}, {"posterior": "gaussian", "alphabet": 5}]
    changes += [{"posterior": "categorical", "embedding": 1}, {"posterior": "categorical", "embedding": 2}]
    changes += [{"pooling": "stages"}, {"pooling": "moments"}]
    residual = {"posterior": "residual", "reduced": 3}
    changes += [residual, residual | {"stages": (4, 4)}, residual | {"reduced": 4}, residual | {"transform": "sqrt"}]
    changes += [{"classes": ("a", "b")}, {"classes": ("b", "a")}, {"classes": ("a", "b"), "classifies": "features"}]
    hashes |= {model_hash(tensors, make_config(**{"latents": 8} | c)) for c in changes}
    assert len(hashes) == 1 + len(tensors) + 3 + len(changes)
    assert set(asdict(config)) == set(other).union(*changes)


def test_what_came_later_is_not_stored_where_it_has_its_default():
    """Models from before keep the hash that archives name them by."""
    first = {"backbone", "width", "stem", "posterior", "latents", "ladder", "decoder", "size", "fit", "mean", "std"}
    assert set(stored_config(EncoderConfig())) == first
    assert stored_config(EncoderConfig(pooling="stages"))["pooling"] == "stages"


def test_a_truncated_file_is_refused_wherever_it_ends(path):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    ends = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1, *range(0, len(whole), len(whole) // 40)}
    for end in ends:
        path.write_bytes(whole[:end])
        refused(path, "not a stochcl model")
    path.write_bytes(whole + b"\0")
    refused(path, "not a stochcl model")


def test_a_flipped_bit_is_refused_or_is_another_model(path):
    # Tensors have no checksum of their own; the hash, which archives hold, tells such a model from the right one.
    whole, good = path.read_bytes(), load_model(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, header // 100), *range(header, len(whole), (len(whole) - header) // 20)]
    refusals = 0
    for i, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (i * 5 % 8)
        path.write_bytes(damaged)
        try:
            model = load_model(path)
        except ModelError as exc:
            assert str(path) in str(exc)  # noqa: PT017
            refusals += 1
        else:
            assert model.sha256 != good.sha256 or model.record != good.record, place
    assert refusals > 80


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prior", torch.full((8,), float("nan")), "prior holds numbers that are not finite"),
        ("norm.running_mean", torch.full((32,), float("inf")), "norm.running_mean holds numbers that are not finite"),
        ("norm.running_var", torch.full((32,), -1.0), "norm.running_var holds negative variances"),
        ("ones", torch.full((8, 1), 4096, dtype=torch.int32), r"ones holds probabilities that are not in 0\.\.4095"),
        ("ones", torch.full((8, 1), -1, dtype=torch.int32), "ones holds probabilities"),
        ("ones", torch.ones(8, 1), r"ones holds float32, not int32"),
        ("head.weight", torch.ones(8, 32, dtype=torch.int16), r"head.weight holds int16, not float16"),
        ("head.bias", torch.zeros(9), "tensors are not those that its configuration asks for"),
        ("head.bias", None, "tensors are not those"),
        ("extra", torch.zeros(1), "tensors are not those"),
    ],
)
def test_tensors_that_no_encoder_has_are_refused(path, name, value, message):
    change(path, {name: value})
    refused(path, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"colour": "red", "age": 3}, "does not know age, colour"),
        ({"latents": 9}, "tensors are not those|makes no sense"),
        ({"latents": "8"}, "makes no sense"),
        ({"latents": 10**9}, "makes no sense"),
        ({"size": -1}, "size must be"),
        ({"fit": "squeeze"}, "fit must be"),
        ({"width": 0}, "makes no sense"),
        ({"width": 10**12}, "tensors are not those|makes no sense"),
        ({"mean": [1]}, "makes no sense"),
        ({"ladder": [[8]]}, "makes no sense"),
        ({"posterior": ["bernoulli"]}, "makes no sense"),
        ({"backbone": None}, "backbone must be text"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(path, config, message):
    change(path, fields=config)
    refused(path, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "[1, 2]", "[" * 100_000])
@pytest.mark.parametrize("part", ["config", "record"])
def test_metadata_of_another_form_is_refused_or_is_nothing(path, part, text):
    change(path, **{part: text})
    if (part, text) == ("record", "[]"):
        assert load_model(path).record == {}
    else:
        refused(path, "makes no sense|tensors are not those")


def test_a_foreign_safetensors_file_is_said_to_be_one(path):
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))
    refused(path, f"not a stochcl model of a kind .* says None, not '{KIND}'")
    path.write_bytes(safetensors.torch.save({}, {"kind": "stochcl-encoder-9"}))
    refused(path, "it says 'stochcl-encoder-9'")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "zip", "legacy"])
def test_a_pickle_is_never_loaded(path, protocol):
    if isinstance(protocol, str):
        torch.save({"weight": Trap()}, path, _use_new_zipfile_serialization=protocol == "zip")
    else:
        path.write_bytes(pickle.dumps(Trap(), protocol))
    refused(path, "this is a pickle .*which could run any program" if protocol not in (0, 1) else "not a stochcl")


def test_what_cannot_be_read_or_written_is_said(encoder, tmp_path):
    refused(tmp_path / "none.safetensors", "cannot be read: no such file")
    refused(tmp_path, "cannot be read: is a directory")
    with pytest.raises(OutputError, match="cannot be written: no such file"):
        save_model(encoder, tmp_path / "none" / "m.safetensors", {})


def test_a_model_that_could_not_be_read_again_is_not_written(tmp_path):
    encoder = make_encoder(latents=8)
    with torch.no_grad():
        encoder.head.weight[0, 0] = 1e6  # more than float16 can hold
    with pytest.raises(ModelError, match=r"head\.weight holds numbers that are not finite"):
        save_model(encoder, tmp_path / "m.safetensors", {})
    assert list(tmp_path.iterdir()) == []
