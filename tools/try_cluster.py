"""Compress on a Ray cluster of two local nodes, kill a worker, take a node away, and compare with local codes.

    python tools/try_cluster.py --images 2000 --shard-images 50 --kill --remove

Needs the extra `ray`. The images are smooth noise from a seed. Everything runs on this machine: what it shows is that
no image is lost or encoded otherwise, and what a loss costs, not how fast a cluster is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

MARK = "STOCHCL_TRY_CLUSTER"  # in the environment of this cluster's processes only


def make_images(path: Path, count: int, size: int, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 8, size // 8, 3), np.uint8)
    np.save(path, coarse.repeat(8, 1).repeat(8, 2))


def workers(mark: str) -> list[int]:
    """Return this cluster's processes that run a model."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if ours and b"ShardWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


class Trouble:
    """Kills a worker and removes a node, each once enough is done; the run reports progress to it."""

    def __init__(self, mark: str, cluster, node, *, kill: bool, remove: bool) -> None:
        self.mark, self.cluster, self.node, self.kill, self.remove = mark, cluster, node, kill, remove
        self.log: list[dict] = []
        self.started = time.monotonic()

    def told(self, done: int, total: int) -> None:
        share = done / total
        self.say("done", images=done)
        if self.kill and share >= 0.1 and (there := workers(self.mark)):
            self.kill = False
            os.kill(there[0], signal.SIGKILL)
            self.say("killed a worker", of=len(there))
        if self.remove and share >= 0.3:
            self.remove = False
            self.say("takes a node away")
            threading.Thread(target=self.cluster.remove_node, args=(self.node, False), daemon=True).start()

    def say(self, what: str, **more) -> None:
        self.log.append({"seconds": round(time.monotonic() - self.started, 1), "what": what} | more)
        print(f"{self.log[-1]['seconds']:7.1f} s  {what} {more or ''}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--shard-images", type=int, default=50)
    parser.add_argument("--model", default="general")
    parser.add_argument("--kill", action="store_true", help="kill a worker with SIGKILL")
    parser.add_argument("--remove", action="store_true", help="take one of the two nodes away")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    with redirect_stdout(sys.stderr):  # Ray reports dead processes there
        result = run(asked)
    print(json.dumps(result, indent=2))
    done = {event["what"] for event in result["happened"]}
    asked_for = ({"killed a worker"} if asked.kill else set()) | ({"takes a node away"} if asked.remove else set())
    whole = result["codes_equal"] and result["names_equal"] and result["images"] == asked.images
    return 0 if whole and asked_for <= done else 1


def run(asked: argparse.Namespace) -> dict:
    mark = os.environ[MARK] = uuid.uuid4().hex
    import ray
    from ray.cluster_utils import Cluster

    import stochcl
    from stochcl.ray import compress_folder

    codec = stochcl.load(asked.model, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        images, folder, whole = (Path(scratch, name) for name in ("images.npy", "codes", "whole.bin"))
        make_images(images, asked.images, asked.size, asked.seed)
        began = time.monotonic()
        codec.compress(images, whole, workers=1)
        local = time.monotonic() - began
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            trouble = Trouble(mark, cluster, nodes[1], kill=asked.kill, remove=asked.remove)
            report = compress_folder(
                codec, images, folder, model=asked.model, engine="ray", shard_images=asked.shard_images,
                progress=trouble.told,
            )  # fmt: skip
            spent = time.monotonic() - trouble.started
            left = sum(node["Alive"] for node in ray.nodes()) - 1
        finally:
            ray.shutdown()
            cluster.shutdown()
        with stochcl.open(folder) as archive, stochcl.open(whole) as one:
            archive.verify()
            same = bool(np.array_equal(archive.to_numpy(), one.to_numpy()))
            names = archive.names == tuple(one.names or ())
        return {
            "schema": "stochcl.try_cluster/0",
            "images": report.images,
            "of": asked.images,
            "codes_equal": same,
            "names_equal": names,
            "seconds": round(spent, 1),
            "seconds_local": round(local, 1),
            "happened": [event for event in trouble.log if event["what"] != "done"],
            "nodes_left": left,
        }


if __name__ == "__main__":
    sys.exit(main())
