"""Fuzzing of the reader that is guided by coverage: ``python -m tests.fuzz.guided [libFuzzer's options] [folders]``.

It needs atheris (``pip install atheris``; Linux, not among the dependencies of the tests), which keeps inputs that
reach new lines. Checksums are not looked at, as no mutation would get past them; all else must be a FormatError or
be read.
``tests/fuzz/corpus`` begins it, and tests read it again without atheris. To try for ten minutes, and to keep the
smallest inputs that reach all that was reached:

    python -m tests.fuzz.guided -max_total_time=600 -timeout=10 -rss_limit_mb=2048 found/ tests/fuzz/corpus/
    python -m tests.fuzz.guided -merge=1 tests/fuzz/corpus/ found/
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus")
_CHECKED = ("framing", "compress.archive", "compress.segment", "entropy.tables")
_MOST_ROWS = 4096


def without_checksums() -> None:
    """Let readers believe every checksum."""
    for module in _CHECKED:
        found = sys.modules[f"stochcl.{module}"]
        assert hasattr(found, "check_crc"), f"{module} checks in another way, which is still on"
        found.check_crc = lambda expected, what, *parts: None  # type: ignore[attr-defined]


def read(data: bytes) -> str:
    """Read all of an archive, or of tables; anything that is raised but a FormatError is a finding."""
    from stochcl.compress import Archive
    from stochcl.entropy.tables import MAGIC, Tables
    from stochcl.errors import FormatError, ModelMismatch

    try:
        if data.startswith(MAGIC):
            tables = Tables.from_bytes(data)
            return f"tables of {tables.latents} latents"
        with Archive(io.BytesIO(data), trusted=False) as archive:
            archive.verify()
            if len(archive) <= _MOST_ROWS:
                codes = archive[:]
                _ = list(codes.names or ()), list(codes.labels or ()), codes.symbols()
            return f"{len(archive)} rows"
    except (FormatError, ModelMismatch) as exc:
        return type(exc).__name__


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["stochcl"]):
        import stochcl.compress  # noqa: F401
    without_checksums()
    warnings.simplefilter("error")

    def one(data: bytes) -> Any:
        read(data)

    itself = f"{sys.executable} -m tests.fuzz.guided"  # which -merge and -jobs call
    options = sys.argv[1:] if any(not a.startswith("-") for a in sys.argv[1:]) else [*sys.argv[1:], str(CORPUS)]
    atheris.Setup([itself, *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
