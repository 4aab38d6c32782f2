"""The example scripts run, on what they say they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_loop_needs_neither_composer_nor_ffcv():
    code = (
        "import runpy, sys; sys.modules['composer'] = sys.modules['ffcv'] = None;"
        "sys.argv = ['plain_loop.py', '--epochs', '3'];"
        f"runpy.run_path({str(EXAMPLES / 'plain_loop.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch", "epoch", "size", "32", "48", "64", "96"]
    losses = [float(line.split()[-1]) for line in lines[:3]]
    assert losses[-1] < losses[0]
    for line in lines[4:]:
        assert all(0 <= float(value) <= 100 for value in line.split()[1:])
