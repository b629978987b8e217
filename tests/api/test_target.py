"""Quality in place of bits: the narrowest code that keeps enough, and what it would all come to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stochcl
from stochcl.api import archives
from stochcl.api.estimate import estimate
from stochcl.api.target import Sample, Target, narrowest, sample_of
from stochcl.api.train import train
from stochcl.data import open_source
from stochcl.downstream.metrics import wilson
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(7)
KINDS = RNG.integers(0, 8, 2000)
VECTORS = (3 * RNG.normal(size=(8, 24))[KINDS] + RNG.normal(size=(2000, 24))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made: Path = tmp_path_factory.mktemp("target")
    np.save(made / "rows.npy", VECTORS)
    table = pa.table({"uid": range(2000), "vector": list(VECTORS), "topic": [f"t{kind}" for kind in KINDS]})
    parquet.write_table(table, made / "rows.parquet", row_group_size=300)
    train([made / "rows.npy"], made / "m.safetensors", rate=64, entropy="independent", objective="reconstruct")
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy -1", Target("accuracy", -0.01)),
        ("accuracy 80%", Target("accuracy", 0.8)),
        ("recall@5 0.9", Target("recall", 0.9, 5)),
        (" recall@10 -2.5% ", Target("recall", -0.025)),
    ],
)
def test_a_target_is_read(text: str, expected: Target) -> None:
    assert Target.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy 80", "recall 0.9", "recall@0 0.9", "map@10 1", "accuracy x"]
)
def test_what_is_no_target_is_refused(folder: Path, tmp_path: Path, text: str) -> None:
    codec = stochcl.load(folder / "m.safetensors")
    with pytest.raises(UsageError, match="target"):
        codec.compress(folder / "rows.npy", tmp_path / "a.bin", target=text)


def test_the_narrowest_that_holds_is_taken() -> None:
    """Widths are tried from the narrowest on, and held-out rows decide."""
    tried = []

    def decode(latents: int) -> Any:
        tried.append(latents)
        return VECTORS + RNG.normal(size=VECTORS.shape).astype(np.float32) * 40 / latents**2

    sample = Sample(VECTORS, [str(kind) for kind in KINDS], decode)
    latents, facts = narrowest(sample, Target.parse("accuracy -1"), (1, 2, 4, 8, 16, 32), "rows")
    assert tried == [rung for rung in (1, 2, 4, 8, 16, 32) if rung <= latents]
    assert 2 < latents < 32
    assert facts["value"] >= facts["goal"] == pytest.approx(facts["vectors"] - 0.01, abs=1e-3)
    with pytest.raises(UsageError, match="no width keeps"):
        narrowest(sample, Target.parse("recall@10 1.0"), (1, 2), "rows")
    with pytest.raises(UsageError, match="labels"):
        narrowest(Sample(VECTORS, None, decode), Target.parse("accuracy -1"), (1, 2), "rows")


def test_compress_and_transcode_keep_a_quality(folder: Path, tmp_path: Path) -> None:
    codec = stochcl.load(folder / "m.safetensors")
    how = {"label_column": "topic", "id_column": "uid"}
    report = codec.compress(folder / "rows.parquet", tmp_path / "a.bin", target="accuracy -2", **how)
    assert report.latents < 64
    assert report.to_json("compress")["target"]["latents"] == report.latents
    assert any("target" in line for line in report.lines())
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert len(archive) == 2000
    codec.compress(folder / "rows.parquet", tmp_path / "whole.bin", **how)
    edit = archives.transcode(tmp_path / "whole.bin", tmp_path / "b.bin", target="accuracy -2")
    assert edit.report.latents == edit.report.target["latents"] < 64
    by_recall = archives.transcode(tmp_path / "whole.bin", tmp_path / "c.bin", target="recall@10 0.3")
    assert by_recall.report.target["value"] >= 0.3
    with pytest.raises(UsageError, match="contradict"):
        archives.transcode(tmp_path / "whole.bin", tmp_path / "d.bin", target="recall@10 0.5", latents=8)
    with pytest.raises(UsageError, match="contradict"):
        codec.compress(folder / "rows.npy", tmp_path / "d.bin", target="recall@10 0.5", rate=8)
    with pytest.raises(UsageError, match="labels") as refused:
        codec.compress(folder / "rows.npy", tmp_path / "d.bin", target="accuracy -1")
    assert "--labels" not in str(refused.value)  # which compressing lacks


def test_an_estimate_is_what_it_comes_to(folder: Path, tmp_path: Path) -> None:
    """Bytes of every width within a twentieth of those of the archive, and nothing is written."""
    before = sorted(folder.iterdir())
    found = estimate(folder / "rows.parquet", folder / "m.safetensors", label_column="topic", id_column="uid")
    assert sorted(folder.iterdir()) == before
    assert (found.rows, found.looked_at, found.unit) == (2000, 2000, "row")
    codec = stochcl.load(folder / "m.safetensors")
    for rung in found.rungs:
        report = codec.compress(
            folder / "rows.parquet", tmp_path / f"{rung.latents}.bin", latents=rung.latents, label_column="topic",
            id_column="uid",
        )  # fmt: skip
        assert report.bytes == pytest.approx(rung.bytes, rel=0.05)
    assert found.accuracy > 0.95
    recalls = [rung.recall for rung in found.rungs]
    assert recalls == sorted(recalls)
    assert len(found.lines()) == 3 + len(found.rungs) + 2
    low, high = found.rungs[0].interval
    assert found.rungs[0].interval == pytest.approx(wilson(round(600 * found.rungs[0].accuracy), 600))  # 0.3 of 2,000
    assert f"({100 * low:.1f} to {100 * high:.1f})" in found.lines()[3]


def test_an_estimate_without_a_model_trains_one(folder: Path) -> None:
    found = estimate(folder / "rows.npy", rate=16)
    assert found.training is not None
    assert found.accuracy is None
    assert found.rungs[-1].latents == 16
    assert found.looked_at == 800  # two fifths, which the model has not seen


def test_the_time_to_load_a_network_is_not_that_of_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch takes 100 s here, and others a second."""
    codec, clock = stochcl.load(folder / "m.safetensors"), [0.0]
    encode = codec.encode_prepared

    def timed(*args: Any, **options: Any) -> Any:
        clock[0] += 1 if clock[0] else 100
        return encode(*args, **options)

    monkeypatch.setattr(codec, "encode_prepared", timed)
    monkeypatch.setattr("stochcl.api.target.time", SimpleNamespace(monotonic=lambda: clock[0]))
    for batch in (4096, 500):  # one, and four
        monkeypatch.setattr("stochcl.api.target._ROWS", batch)
        clock[0] = 0.0
        few = sample_of(codec, open_source(folder / "rows.npy"), codec.preprocess)
        assert few.seconds == pytest.approx(2000 / min(batch, 2000))


def test_an_estimate_of_images(images: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="too few"):
        estimate(images, model)
