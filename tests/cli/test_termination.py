"""SIGTERM means what Ctrl-C means, in every long command: no traceback, nothing half-written, exit code 143."""

import os
import signal
import sys

import pytest

from tests.making import signalled

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals as Unix has them")

# The command waits at a function that it comes to in the midst of its work, until it has been interrupted.
WAIT_AT = """
import time
from importlib import import_module
from pathlib import Path
module, mark = import_module({module!r}), Path({mark!r})
holder, name = module, {name!r}
while "." in name:
    first, _, name = name.partition(".")
    holder = getattr(holder, first)
called = getattr(holder, name)
def slow(*args, **kwargs):
    mark.touch()
    while mark.exists():
        time.sleep(0.01)
    return called(*args, **kwargs)
setattr(holder, name, slow)
"""


def interrupted(*arguments, mark, at, sent):
    module, _, name = at.partition(":")
    before = WAIT_AT.format(module=module, name=name, mark=os.fspath(mark))
    return signalled(*arguments, before=before, mark=mark, sent=sent)


COMMANDS = {
    "evaluate": (["evaluate", "CODES", "--save", "OUT.skops"], "stochcl.downstream:evaluate"),
    "search": (["search", "CODES", "--row", "0"], "stochcl.downstream.distances:Nearest.add"),
    "decompress": (["decompress", "CODES", "-o", "OUT.npz"], "stochcl.compress.export:_npy"),
    "merge": (["merge", "CODES", "CODES", "-o", "OUT.bin"], "stochcl.compress.edit:move_rows"),
    "transcode": (["transcode", "CODES", "--refit", "-o", "OUT.bin"], "stochcl.api.archives:fit_models"),
    "benchmark": (
        ["benchmark", "rate-accuracy", "IMAGES", "-m", "MODEL", "--baselines", "features", "-o", "OUT"],
        "stochcl.benchmarks.probes:Judge.__init__",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_ends_a_command_as_ctrl_c_does(command, images, model, codes, tmp_path):
    words, at = COMMANDS[command]
    named = {"CODES": codes, "IMAGES": images, "MODEL": model}
    arguments = [
        tmp_path / word.replace("OUT", "out") if word.startswith("OUT") else named.get(word, word) for word in words
    ]
    out, err, returned = interrupted(*arguments, mark=tmp_path / "mark", at=at, sent=signal.SIGTERM)
    assert (out, returned) == ("", 143), err
    assert err.splitlines()[-1].startswith("stochcl: interrupted.")
    assert "Traceback" not in err
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
