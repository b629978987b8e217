"""Carry measured costs to 10^8 and 10^9 images, as docs/explanation/scale.md has them.

    python tools/reckon_scale.py            # prints the two tables
    python tools/reckon_scale.py --write    # and puts them into docs/explanation/scale.md

Every figure is read from a file of benchmarks/results; assumptions (cores of a machine, a network's speed) are
constants here and stated on the page. A test compares the page with this output.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "explanation" / "scale.md"
COUNTS = (10**8, 10**9)
CORES = 64  # per machine; assumed
NETWORK = 10e9 / 8  # bytes per second between storage and machines, 10 Gbit/s; assumed
SHARD = 100_000  # images, stochcl.api.shards.SHARD_IMAGES
ENTRY = 200  # bytes per shard in the manifest: stochcl/compress/sharded.py
BEGIN, END = "<!-- reckoned: begin -->", "<!-- reckoned: end -->"


def of(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text("utf-8"))


def stage(found: dict[str, Any], *names: str) -> float:
    """Return the core-seconds per image of some stages together."""
    return sum(row["core_ms_each"] for row in found["rows"] if row["stage"] in names) / 1e3


@dataclass(frozen=True)
class Costs:
    """Core-seconds or bytes per image."""

    general: float
    feeding: float
    resnet50: float
    feeding50: float
    engine: float
    decode: float
    decode32: float
    fit: float
    stream: float
    tar: float
    tar_bytes: int
    folder_bytes: int
    source_bytes: float
    code_bytes: float
    name_bytes: float
    open_ms: float
    latents: int
    packed_bytes: int

    @classmethod
    def measured(cls) -> Costs:
        general, resnet50 = of("throughput-general.json"), of("throughput-resnet50.json")
        scale, listing, decoding, loading = (
            of(name) for name in ("scale.json", "listing.json", "decoding.json", "loading.json")
        )
        whole, first32 = decoding["archives"]
        cpu = ("read", "decode", "resize", "entropy-code", "write")  # all but the network
        return cls(
            general=stage(general, "whole"),
            feeding=stage(general, *cpu),
            resnet50=stage(resnet50, "whole"),
            feeding50=stage(resnet50, *cpu),
            engine=1 / scale["flatness"]["images_per_processor_second"]["all"],
            decode=whole["processor_us_each"] / 1e6,
            decode32=first32["processor_us_each"] / 1e6,
            fit=1 / scale["reading"]["partial_fit"]["rows_per_second"],
            stream=1 / loading["steps"]["CodesStream, shuffled"]["rows_per_processor_second"],
            tar=listing["sources"]["tar"]["processor_us_each"] / 1e6,
            tar_bytes=listing["sources"]["tar"]["bytes_each"],
            folder_bytes=listing["sources"]["folder"]["bytes_each"],
            source_bytes=scale["source_reduction"] * scale["bytes"] / scale["images"],
            code_bytes=sum(whole["bytes_per_row"].values()),
            name_bytes=scale["parts"]["names"] / scale["images"],
            open_ms=scale["reading"]["open_ms"],
            latents=whole["latents"],
            packed_bytes=whole["latents"] * (whole["alphabet"] - 1).bit_length() // 8,
        )


def hours(seconds: float) -> str:
    """Format a time.

    >>> [hours(s) for s in (30, 600, 9000, 900_000)]
    ['30 s', '10 min', '2.5 h', '10 d']
    """
    value, unit = seconds, "s"
    for length, name, least in ((60, "min", 120), (3600, "h", 3600), (86_400, "d", 2 * 86_400)):
        if seconds >= least:
            value, unit = seconds / length, name
    return f"{value:.1f} {unit}".replace(".0 ", " ") if value < 9.95 else f"{value:,.0f} {unit}"


def size(count: float) -> str:
    """Format a number of bytes.

    >>> [size(n) for n in (2e5, 3.1e9, 1.9e12)]
    ['0.2 MB', '3.1 GB', '1.9 TB']
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 1e6:.2g} MB"


def tables(costs: Costs) -> str:
    return measured_table(costs) + "\n" + carried_table(costs)


def measured_table(costs: Costs) -> str:
    """Return the table of costs per image, with their result files."""
    general, resnet50, scale = "throughput-general.json", "throughput-resnet50.json", "scale.json"
    decoding, ms, us = "decoding.json", "{:.2f} ms", "{:.1f} µs"
    rows = [
        ("compress, `general`, files of 64 px: whole", ms.format(1e3 * costs.general), general),
        ("of it all but the network", ms.format(1e3 * costs.feeding), general),
        ("compress, an untrained ResNet-50, files of 336 px: whole", ms.format(1e3 * costs.resnet50), resnet50),
        ("of it all but the network", ms.format(1e3 * costs.feeding50), resnet50),
        ("compress a million images through a pipe, a tiny network", ms.format(1e3 * costs.engine), scale),
        (f"decode all {costs.latents} latents of `general`", us.format(1e6 * costs.decode), decoding),
        ("decode the first 32 of them", us.format(1e6 * costs.decode32), decoding),
        ("decode 64 independent latents and `partial_fit` (on the clock)", us.format(1e6 * costs.fit), scale),
        ("`CodesStream`, 128 latents, shuffled", us.format(1e6 * costs.stream), "loading.json"),
        ("list tar shards", f"{us.format(1e6 * costs.tar)}, {costs.tar_bytes} bytes held", "listing.json"),
        ("list a folder (time: the file system's)", f"{costs.folder_bytes} bytes held", "listing.json"),
        ("codes of `general`, CIFAR-10, all latents, with the index", f"{costs.code_bytes:.1f} bytes", decoding),
        ("names of a class and nine digits", f"{costs.name_bytes:.1f} bytes", scale),
        ("image files of 32 to 128 px", f"{costs.source_bytes:,.0f} bytes", scale),
        ("open an archive", f"{costs.open_ms:.1f} ms, once", scale),
    ]  # fmt: skip
    head = "| an image costs, on one core | | from benchmarks/results/ |\n|---|---|---|\n"
    return head + "".join(f"| {what} | {cost} | {file} |\n" for what, cost, file in rows)


def carried_table(costs: Costs) -> str:
    """Return the table of costs of many images."""

    def row(what: str, *cells: str) -> str:
        return f"| {what} | " + " | ".join(cells) + " |\n"

    def shared(what: str, each: float) -> str:
        """Return a row of times on one core, one machine and ten machines."""
        times = [[hours(n * each / parts) for parts in (1, CORES, 10 * CORES)] for n in COUNTS]
        return row(what, *("; ".join(found) for found in times))

    def alone(what: str, each: float) -> str:
        return row(what, *(hours(n * each) for n in COUNTS))

    def held(what: str, each: float) -> str:
        return row(what, *(size(n * each) for n in COUNTS))

    files = (f"{n // SHARD:,}; {size(n // SHARD * ENTRY)}" for n in COUNTS)
    return "".join([
        row("", *(f"10^{len(str(n)) - 1} images" for n in COUNTS)),
        "|---|---|---|\n",
        row("**time of one core; one machine of 64; ten of them**", "", ""),
        shared("compress with `general`", costs.general),
        shared("compress with a ResNet-50 at 224 px, no GPU", costs.resnet50),
        shared("all but the network, with `general`", costs.feeding),
        shared("all but the network, with a ResNet-50", costs.feeding50),
        shared("decode all latents of `general` once", costs.decode),
        shared("decode the first 32 once", costs.decode32),
        row("**time of one core, however many there are**", "", ""),
        alone("list tar shards", costs.tar),
        alone("an epoch of `partial_fit`, 64 latents", costs.fit),
        alone("an epoch of `CodesStream`, 128 latents, one worker", costs.stream),
        alone("bring image files of 32 to 128 px over 10 Gbit/s", costs.source_bytes / NETWORK),
        row("**bytes**", "", ""),
        held("image files of 32 to 128 px", costs.source_bytes),
        held("codes and names on disk", costs.code_bytes + costs.name_bytes),
        row("shards of 100,000; their manifest", *files),
        held("the list of tar shards, in the command", costs.tar_bytes),
        held("packed codes of `general` in memory", costs.packed_bytes),
        held("their symbols in memory, a byte each", costs.latents),
        row("**a worker that dies costs, at most**", *(f"{hours(SHARD * costs.general)} of a core" for _ in COUNTS)),
    ])  # fmt: skip


def in_page(text: str, found: str) -> str:
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n\n{found}\n{END}", text, flags=re.DOTALL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/explanation/scale.md")
    found = tables(Costs.measured())
    if parser.parse_args().write:
        PAGE.write_text(in_page(PAGE.read_text("utf-8"), found), encoding="utf-8")
    print(found, end="")


if __name__ == "__main__":
    main()
