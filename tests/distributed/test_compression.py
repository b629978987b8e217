"""Engines, the command line of shards, and, where Ray is installed, Ray itself, in processes of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stochcl
from stochcl.api.compress import CompressOptions
from stochcl.api.shards import compress_to_folder, shard_inputs
from stochcl.errors import ImageError, MissingExtraError, SourceError, UsageError
from stochcl.ray import MOST_TRIES, ShardWorker, _read, compress_folder, need_ray
from tests.making import json_of, process, write_images

ROOT = Path(__file__).parents[2]
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'stochcl[ray]'")


def through_workers(plan, numbers, codec, source):
    """What Ray does, without Ray: workers that get a pickled plan, and answers that are JSON."""
    import pickle

    pool = [ShardWorker(pickle.loads(pickle.dumps(plan))) for _ in range(2)]
    for i, number in enumerate(numbers):
        answer = pool[i % 2]({"number": np.array([number])})
        yield int(answer["number"][0]), _read(answer["made"][0])


def test_the_command_writes_and_reads_a_folder(images, model, codes, tmp_path):
    out = tmp_path / "codes"
    result = process("compress", images, "-m", model, "-o", out, "--shard-images", "20", "--json")
    assert result.returncode == 0, result.stderr
    found = json_of(result)
    assert (found["schema"], found["images"]) == ("stochcl.compress/0", 42)
    again = json_of(process("info", out, "--json"))
    assert again["bytes"] == found["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert json_of(process("verify", out, "--json"))["ok"]
    assert process("merge", out, "-o", tmp_path / "merged.bin").returncode == 0
    with stochcl.open(tmp_path / "merged.bin") as merged, stochcl.open(codes) as one:
        np.testing.assert_array_equal(merged.to_numpy(), one.to_numpy())
        assert merged.names == tuple(one.names)
    refused = process("transcode", out, "-o", tmp_path / "t.bin")
    assert refused.returncode == 1
    assert "`stochcl merge` makes one of a folder" in refused.stderr


def test_workers_elsewhere_give_the_codes_of_this_process(images, model, codec, codes, tmp_path):
    photos = shutil.copytree(images, tmp_path / "photos")
    (photos / "z\udcff.png").write_bytes(b"")  # a name that is not UTF-8 comes back as it was
    options = CompressOptions(workers=1)
    compress_to_folder(
        codec, [photos], tmp_path / "codes", options, model=str(model), shard_images=9,
        run=through_workers,
    )  # fmt: skip
    with stochcl.open(tmp_path / "codes") as archive, stochcl.open(codes) as one:
        np.testing.assert_array_equal(archive.to_numpy(), one.to_numpy())
        assert archive.names == tuple(one.names)
        assert [name for name, _ in archive.skipped] == ["z\udcff.png"]


@pytest.mark.parametrize("run", [None, through_workers])
def test_damaged_images_are_counted_and_strict_refuses_them(model, codec, tmp_path, run):
    photos = write_images(tmp_path / "photos", per_class=7)
    noise = np.random.default_rng(3).integers(0, 255, (54, 81, 3)).astype(np.uint8)
    for name in ("02.jpg", "05.jpg"):
        path = photos / "cats" / name
        Image.fromarray(noise).save(path, quality=85)
        path.write_bytes(path.read_bytes()[:-2])  # its end marker
    report = compress_to_folder(
        codec, [photos], tmp_path / "codes", CompressOptions(), model=str(model), shard_images=3, run=run
    )
    assert report.damaged == codec.compress(photos, tmp_path / "a.bin").damaged
    assert [failure.name for failure in report.damaged] == ["cats/02.jpg", "cats/05.jpg"]
    assert any("2 images are damaged" in line for line in report.warnings)
    with pytest.raises(ImageError, match="strict"):
        compress_to_folder(
            codec, [photos], tmp_path / "strict", CompressOptions(strict=True), model=str(model), shard_images=3,
            run=run,
        )  # fmt: skip


def through_pieces(plan, numbers, codec, source):
    """The same, each worker being told which of several sources a shard is made of."""
    pieces = shard_inputs(source, ((number, plan.rows(number)) for number in numbers))
    worker = ShardWorker(plan)
    for number, piece in zip(numbers, pieces, strict=True):
        answer = worker({"number": np.array([number]), "piece": np.array(["" if piece is None else piece.to_json()])})
        assert worker._source is None
        assert len(worker._held) <= 2
        yield number, _read(answer["made"][0])


def test_workers_list_only_the_sources_of_their_shard(images, model, codec, codes, tmp_path):
    for i, path in enumerate(sorted(path for path in images.rglob("*") if path.is_file())):
        with tarfile.open(tmp_path / f"s-{i // 7}.tar", "a") as out:
            out.add(path, path.relative_to(images))
    with tarfile.open(tmp_path / "s-3.tar", "a") as out:  # which is refused before anything is read
        link = tarfile.TarInfo("link.png")
        link.type = tarfile.SYMTYPE
        out.addfile(link)

    def compress(run, out):
        source = [str(tmp_path / "s-{0..5}.tar")]
        return compress_to_folder(codec, source, out, CompressOptions(), model=str(model), shard_images=5, run=run)

    compress(through_pieces, tmp_path / "a")
    compress(through_workers, tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()
    with stochcl.open(tmp_path / "a") as archive, stochcl.open(codes) as one:
        np.testing.assert_array_equal(archive.to_numpy(), one.to_numpy())
        assert [name for name, _ in archive.skipped] == ["link.png"]

    def meanwhile(plan, numbers, codec, source):
        for number, made in through_pieces(plan, numbers, codec, source):
            os.utime(tmp_path / "s-4.tar", (1, 1))
            yield number, made

    with pytest.raises(SourceError, match=r"s-4\.tar: a worker sees other files"):
        compress(meanwhile, tmp_path / "c")


def test_a_worker_that_sees_something_else_says_so(images, model, codec, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=3)

    def meanwhile(plan, numbers, codec, source):
        (photos / "cats" / "00.png").unlink()
        return through_workers(plan, numbers, codec, source)

    with pytest.raises(SourceError, match="a worker sees other files"):
        compress_to_folder(codec, [photos], tmp_path / "codes", CompressOptions(), model=str(model), run=meanwhile)
    (photos / "cats" / "01.jpg").write_bytes(b"bad")
    with pytest.raises(ImageError, match="strict"):
        compress_to_folder(
            codec, [photos], tmp_path / "strict", CompressOptions(strict=True), model=str(model), run=through_workers
        )


def test_requests_that_make_no_sense_are_refused(images, model, codec, tmp_path):
    def ask(source=images, folder=tmp_path / "codes", **options):
        compress_folder(codec, source, folder, model=str(model), **options)

    with pytest.raises(UsageError, match="no engine 'spark'"):
        ask(engine="spark")
    with pytest.raises(UsageError, match="address"):
        ask(address="auto")
    with pytest.raises(UsageError, match="shard_images must be at least 1"):
        ask(shard_images=0)
    with pytest.raises(UsageError, match="standard input"):
        ask(source="-")
    with pytest.raises(UsageError, match="every worker can open by name"):
        ask(source=sys.stdin.buffer)
    with pytest.raises(UsageError, match="not to standard output"):
        ask(folder=sys.stdout.buffer)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("stochcl.ray.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"^engine ray needs Ray; install it with: pip install .*ray.*\.$"):
        need_ray()


def test_a_shard_that_kills_every_worker_is_given_up(images, model, codec, tmp_path):
    """As Ray does it: who dies answers nothing, and the next worker is asked."""
    died = []

    class Dying(ShardWorker):
        def make(self, number, piece):
            if number == 1:
                died.append(number)
                raise KeyboardInterrupt
            return super().make(number, piece)

    def run(plan, numbers, codec, source):
        for number in numbers:
            answer = None
            while answer is None:
                with suppress(KeyboardInterrupt):
                    answer = Dying(plan)({"number": np.array([number])})
            yield number, _read(answer["made"][0])

    out = tmp_path / "codes"
    with pytest.raises(SourceError, match=r"shard-00001\.bin: 5 workers died, .* of images 20 to 39: "):
        compress_to_folder(codec, [images], out, CompressOptions(), model=str(model), shard_images=20, run=run)
    assert len(died) == MOST_TRIES
    assert (out / "shard-00000.bin").exists()
    report = compress_to_folder(
        codec, [images], out, CompressOptions(), model=str(model), shard_images=20, run=through_workers
    )
    assert report.images == 42  # the next run counts anew, and leaves nothing of it
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@with_ray
def test_a_cluster_that_is_not_there_is_refused_at_once(images, model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    result = process(
        "compress", images, "-m", model, "-o", tmp_path / "codes", "--engine", "ray", "--address", address
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"stochcl: Ray has no cluster: there is none at {address} (")
    assert result.stderr.count("\n") == 1


@with_ray
def test_ray_stops_where_a_shard_kills_every_worker(images, model, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import os, signal, stochcl
from stochcl.ray import compress_folder, ray_data

class Dying(ray_data.ShardWorker):
    def __call__(self, batch):
        ray_data.MOST_TRIES = 2  # starting a worker takes seconds
        return super().__call__(batch)

    def make(self, number, piece):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(number, piece)

ray_data.ShardWorker = Dying
model, images, out = {[str(model), str(images), str(tmp_path / "codes")]!r}
codec = stochcl.load(model, device="cpu")
compress_folder(codec, images, out, model=model, engine="ray", shard_images=20, workers=1)
"""
    )
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=180, check=False, cwd=ROOT
    )
    assert result.returncode == 1
    assert "shard-00001.bin: 2 workers died" in result.stderr.splitlines()[-1]


@with_ray
def test_ray_gives_the_codes_of_this_process(images, model, codes, tmp_path):
    out = tmp_path / "codes"
    result = process(
        "compress",
        images,
        "-m",
        model,
        "-o",
        out,
        "--engine",
        "ray",
        "--workers",
        "2",
        "--shard-images",
        "9",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    assert json_of(result)["images"] == 42
    with stochcl.open(out) as archive, stochcl.open(codes) as one:
        np.testing.assert_array_equal(archive.to_numpy(), one.to_numpy())
        assert archive.names == tuple(one.names)
        archive.verify()


@with_ray
def test_a_worker_that_is_killed_loses_no_image(model, tmp_path):
    command = [sys.executable, ROOT / "tools" / "try_cluster.py", "--images", "400", "--shard-images", "10", "--kill"]
    result = subprocess.run(
        [*command, "--model", model], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["codes_equal"]
    assert (found["images"], found["happened"][0]["what"]) == (400, "killed a worker")
