"""A hook of mkdocs: Sphinx's roles in docstrings (``:class:`~a.b.C```) become plain code."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles off a page; ``~`` stands for the last part of a name, as in Sphinx."""
    html = re.sub(r":(?:func|class|meth|data|attr|mod):<code>~(?:\w+\.)*", "<code>", html)
    return re.sub(r":(?:func|class|meth|data|attr|mod):(?=<code>)", "", html)
