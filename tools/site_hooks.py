"""An mkdocs hook: turn Sphinx roles in docstrings (``:class:`~a.b.C```) into plain code, and tidy types."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles from a page; ``~`` keeps only the last part of a name, as in Sphinx."""
    html = re.sub(r":(?:func|class|meth|data|attr|mod):<code>~(?:\w+\.)*", "<code>", html)
    html = re.sub(r":(?:func|class|meth|data|attr|mod):(?=<code>)", "", html)
    html = re.sub(r"\b(path|array|file)(</\w+>)? - (<\w+[^>]*>)?like\b", r"\1\2-\3like", html)  # not a subtraction
    nothing = r'\s+\u2013\s*<div class="doc-md-description">\s*</div>'
    return re.sub(nothing, "", html)
