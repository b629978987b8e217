"""Pages that explain an archive, or show what a search found."""

from __future__ import annotations

from stochcl.report.report import SAMPLE, SCHEMA, write_report, write_search_page

__all__ = ["SAMPLE", "SCHEMA", "write_report", "write_search_page"]
