"""Write docs/reference/cli.md from the commands themselves.

python tools/make_reference.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "cli.md"
START = """# Command line

<!-- Made by tools/make_reference.py from the commands; a test compares. -->

Results go to standard output, everything else to standard error. `--json` prints a result as one JSON object with a
`schema`. Exit codes: 0 done, 1 the data is wrong, 2 the request is.

For completion in bash put this line into `~/.bashrc` (zsh and fish: `zsh_source`, `fish_source`):

    eval "$(_STOCHCL_COMPLETE=bash_source stochcl)"
"""


def sections(command: click.Command, name: str, parent: click.Context | None = None) -> list[str]:
    """Return the help of a command and its subcommands, each under its own heading."""
    settings = command.context_settings | {"max_content_width": 88, "terminal_width": 88}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    text = command.get_help(context).rstrip()
    found = [f"## {context.command_path}\n\n```text\n{text}\n```\n"]
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            child = command.get_command(context, part)
            if child is not None and not child.hidden:
                found += sections(child, part, context)
    return found


def reference() -> str:
    from stochcl.cli import main

    return "\n".join([START, *sections(main, "stochcl")])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
