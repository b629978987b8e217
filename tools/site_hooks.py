"""A hook of mkdocs: Sphinx's roles in docstrings (``:class:`~a.b.C```) become plain code; types are tidied."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles off a page; ``~`` stands for the last part of a name, as in Sphinx."""
    html = re.sub(r":(?:func|class|meth|data|attr|mod):<code>~(?:\w+\.)*", "<code>", html)
    html = re.sub(r":(?:func|class|meth|data|attr|mod):(?=<code>)", "", html)
    html = re.sub(r"\b(path|array|file)(</\w+>)? - (<\w+[^>]*>)?like\b", r"\1\2-\3like", html)  # not a subtraction
    nothing = r'\s+\u2013\s*<div class="doc-md-description">\s*</div>'
    return re.sub(nothing, "", html)
