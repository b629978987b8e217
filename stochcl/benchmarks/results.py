"""Results as files: JSON with everything, and CSV for spreadsheets, each complete or as it was."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from stochcl.errors import OutputError
from stochcl.files import replacing
from stochcl.messages import escape_name as printable
from stochcl.messages import os_reason as why

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COLUMNS: tuple[str, ...] = (
    "method",
    "bytes/image",
    "x ideal",
    "encode/s",
    "decode/s",
    "peak MB",
    "tables B",
    "correct",
)
"""Of the table for people: x ideal is the size by that of the ideal, tables B what is needed beside the file."""


def make_folder(folder: Path) -> None:
    """Make the folder of results where there is none, before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{printable(folder)}: this folder cannot be made: {why(exc)}.") from exc


def write_results(result: dict[str, Any], folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.json`` and ``name.csv``, in place of earlier ones, and return their paths."""
    texts = {
        folder / f"{name}.json": json.dumps(result, indent=2, allow_nan=False) + "\n",
        folder / f"{name}.csv": to_csv(result),
    }
    for path, text in texts.items():
        try:
            with replacing(path) as file:
                file.write(text.encode())
        except OSError as exc:
            raise OutputError(f"{printable(path)}: it cannot be written: {why(exc)}.") from exc
    return folder / f"{name}.json", folder / f"{name}.csv"


def to_csv(result: dict[str, Any]) -> str:
    """Return the rows of a result as CSV; each carries seed, machine, versions and command, for rows get about."""
    facts = {
        "seed": result["seed"],
        "hardware": _joined(result["hardware"]),
        "versions": _joined(result["versions"]),
        "commit": result["commit"],
        "command": result["command"],
    }
    out = io.StringIO()
    rows = [row | facts for row in result["rows"]]
    writer = csv.DictWriter(out, list(rows[0]) if rows else list(facts), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _joined(facts: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def tables(result: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield a title, the columns and the lines of each set's table, for people."""
    for entry in result["sets"]:
        ideal = f"{entry['ideal_bits_per_image']:,.1f} bits ({entry['ideal_model']}, {entry['ideal_origin']})"
        title = f"{entry['set']}: {entry['n']:,} images, {entry['about']}; ideal {ideal}"
        if entry["source_bits_per_image"] is not None:
            title += f"; the source itself {entry['source_bits_per_image']:,.1f} bits"
        lines: list[tuple[str, ...]] = [
            (
                row["method"],
                f"{row['bytes_per_image']:,.2f}",
                f"{row['ratio_to_ideal']:.4f}",
                f"{row['encode_images_per_second']:,.0f}",
                f"{row['decode_images_per_second']:,.0f}",
                f"{max(row['encode_peak_bytes'], row['decode_peak_bytes']) / 1e6:,.1f}",
                f"{row['tables_bytes']:,}",
                "yes" if row["correct"] else "NO",
            )
            for row in result["rows"]
            if row["set"] == entry["set"]
        ]
        yield title, COLUMNS, lines
