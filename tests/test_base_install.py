"""The base installation: what compresses, reads and searches runs without PyTorch, matplotlib and Jinja."""

import ast
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stochcl
from stochcl.encoders.engine import OnnxNetwork
from tests.making import make_head, write_images

EXTRAS = ("torch", "lightning_fabric", "lightning_utilities", "matplotlib", "jinja2", "markupsafe",
          "timm", "tensorboard", "faiss", "pyarrow")  # fmt: skip
IN_TORCH = ("encoders.backbones", "encoders.encoder", "encoders.inference",
            "encoders.posteriors", "encoders.pretrained", "encoders.priors", "torch",
            "training.")  # fmt: skip

BLOCKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

MAIN_JOB = """
import numpy as np
import stochcl
from stochcl.api.archives import decompress

folder, images, matrix, head = sys.argv[1:]
for source, model in ((images, "general"), (matrix, head)):
    path = f"{folder}/{model.replace('/', '')}.bin"
    codec = stochcl.load(model)
    report = codec.compress(source, path)
    assert report.images and report.runtime == ("numpy" if codec.columns else "onnx")
    assert codec.encode(np.load(source) if codec.columns else [np.zeros((9, 9, 3), np.uint8)]).uncertainty is not None
    with stochcl.open(path) as archive:
        archive.verify()
        assert archive.to_vectors().shape == (len(archive), archive.header.feature_dim)
    decompress(path, path + ".npy")
    stochcl.transcode(path, path + ".short", latents=8)
"""


def run(code: str, *arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def cli(*arguments) -> subprocess.CompletedProcess[str]:
    return run("from stochcl.cli import main; main(prog_name='stochcl')", *arguments)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"), per_class=6)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    vectors = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    head = make_head(folder / "head.safetensors", vectors, posterior="residual", latents=40, reduced=8)
    return folder / "vectors.npy", head


def test_every_module_but_those_of_training_is_imported_without_extras():
    names = [module.name for module in pkgutil.walk_packages(stochcl.__path__, "stochcl.")]
    free = [name for name in names if not name.removeprefix("stochcl.").startswith(IN_TORCH)]
    free += ["stochcl.training.options"]
    assert len(free) > 80
    done = run(f"from importlib import import_module\nfor name in {free}: import_module(name)")
    assert done.returncode == 0, done.stderr


def test_only_training_and_networks_in_pytorch_import_it_at_once():
    for path in Path(stochcl.__file__).parent.rglob("*.py"):
        name = ".".join(path.relative_to(Path(stochcl.__file__).parent).with_suffix("").parts)
        top = ast.parse(path.read_text("utf-8")).body
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
        if any(found.partition(".")[0] in EXTRAS for found in names):
            assert name.startswith(IN_TORCH), name


def test_the_main_job_runs_without_extras(images, matrix, tmp_path):
    done = run(MAIN_JOB, tmp_path, images, *matrix)
    assert done.returncode == 0, done.stderr


def test_commands_run_without_extras(images, tmp_path):
    out = tmp_path / "codes.bin"
    for arguments in (
        ("compress", images, "-o", out, "--uncertainty"), ("info", out), ("verify", out), ("evaluate", out),
        ("search", out, images / "cats" / "00.png", "-k", "3"), ("decompress", out, "-o", tmp_path / "v.npy"),
        ("transcode", out, "-o", tmp_path / "s.bin", "--latents", "16"), ("append", out, images),
        ("models",), ("--help",), ("benchmark", "--help"),
    ):  # fmt: skip
        done = cli(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["train", "{images}", "-o", "m.safetensors"], "torch", "train"),
        (["train", "{matrix}", "-o", "m.safetensors"], "torch", "train"),
        (["adapt", "{images}", "-o", "m.safetensors"], "torch", "train"),
        (["finetune", "general", "{images}", "-o", "m.safetensors"], "torch", "train"),
        (["compress", "{images}", "-o", "c.bin", "--device", "cuda"], "torch", "train"),
        (["compress", "{images}", "-o", "c.bin", "--precision", "bf16"], "torch", "train"),
        (["report", "{archive}", "-o", "r.html"], "jinja2", "plots"),
        (["benchmark", "rate-accuracy", "digits", "-o", "results"], "torch", "train"),
        (["evaluate", "{table}", "-m", "{head}"], "pyarrow", "arrow"),
        (["evaluate", "{archive}", "--labels", "{table}"], "pyarrow", "arrow"),
        (["evaluate", "{archive}", "--groups", "{table}"], "pyarrow", "arrow"),
        (
            ["evaluate", "{archive}", "--test", "{archive}", "--labels", "{csv}", "--test-labels", "{table}"],
            "pyarrow",
            "arrow",
        ),
        (["select", "{archive}", "--labels", "{table}", "--latents", "4", "-o", "s.json"], "pyarrow", "arrow"),
        (["uncertainty", "{archive}", "--labels", "{table}"], "pyarrow", "arrow"),
        (["decompress", "{archive}", "--labels", "{table}", "-o", "o.npz"], "pyarrow", "arrow"),
        (["transcode", "{archive}", "--labels", "{table}", "-o", "t.bin"], "pyarrow", "arrow"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(arguments, package, extra, images, matrix, tmp_path):
    archive = Path(__file__).parent / "golden" / "binary.bin"
    table, csv = tmp_path / "labels.parquet", tmp_path / "labels.csv"
    table.write_bytes(b"PAR1 and no more")
    with stochcl.open(archive) as opened:
        csv.write_text(
            "name,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(opened.names)), errors="replace"
        )
    files = {"matrix": matrix[0], "head": matrix[1], "table": table, "csv": csv}
    places = {"images": images, "archive": archive, **files}
    given = [a.format(**places) if "{" in a or "." not in a else tmp_path / a for a in arguments]
    done = cli(*given)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f" needs {package}, which is not installed; run: pip install 'stochcl[{extra}]'." in done.stderr


@pytest.mark.parametrize(
    "arguments", [["search", "{archive}", "{image}"], ["append", "{archive}", "{images}"]], ids=lambda given: given[0]
)
def test_an_archive_in_bf16_says_what_its_encoder_needs(arguments, images, tmp_path):
    archive = tmp_path / "codes.bin"
    stochcl.load(device="cpu", precision="bf16").compress(write_images(tmp_path / "few", per_class=1), archive)
    places = {"archive": archive, "images": images, "image": images / "cats" / "00.png"}
    done = cli(*[a.format(**places) for a in arguments])
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "bf16 needs torch, which is not installed; run: pip install 'stochcl[train]'." in done.stderr


def test_an_append_that_adds_nothing_names_no_second_runtime(images, tmp_path, monkeypatch):
    stochcl.load(device="cpu").with_runtime("torch").compress(images, tmp_path / "codes.bin")
    monkeypatch.setattr("stochcl.api.append.find_spec", lambda name: None)
    assert not any("computed" in note for note in stochcl.append(tmp_path / "codes.bin", images).notes)


def test_importing_the_data_sets_of_pytorch_without_it_says_what_to_install():
    done = run("import stochcl.torch")
    assert (
        "MissingExtraError: stochcl.torch needs torch, which is not installed; run: pip install 'stochcl[train]'."
        in done.stderr
    )


def test_a_processor_runs_networks_in_onnx_runtime_by_default():
    codec = stochcl.load(device="cpu")
    assert (codec.runtime, codec.header(latents=8, source_kind="").runtime) == ("onnx", "onnx")
    assert isinstance(codec._network, OnnxNetwork)
    assert codec.with_runtime("torch").header(latents=8, source_kind="").runtime == "torch"
    assert codec.with_precision("bf16").runtime == "torch"


def test_a_codec_is_pickled_without_what_a_runtime_holds():
    codec = stochcl.load(device="cpu")
    image = [np.zeros((9, 9, 3), np.uint8)]
    expected = codec.encode(image).packed
    assert np.array_equal(pickle.loads(pickle.dumps(codec)).encode(image).packed, expected)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_an_archive_goes_on_in_the_runtime_that_made_it(runtime, images, tmp_path, monkeypatch):
    """Where that is not installed, the command says that two runtimes computed the codes."""
    few = write_images(tmp_path / "few", per_class=1)
    codec = stochcl.load(device="cpu").with_runtime(runtime)
    codec.compress(few, tmp_path / "codes.bin")
    edit = stochcl.append(tmp_path / "codes.bin", images)
    assert not any("computed" in note for note in edit.notes)
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert archive.header.runtime == runtime
    codec.compress(few, tmp_path / "other.bin")
    monkeypatch.setattr("stochcl.api.append.find_spec", lambda name: None)
    edit = stochcl.append(tmp_path / "other.bin", images)
    assert any("torch computed" in note and "onnx" in note for note in edit.notes) == (runtime == "torch")
