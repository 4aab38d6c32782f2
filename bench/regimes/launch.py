"""Composer's launcher, which ends its ranks when the process that started it is gone.

``python -m mixsize.bench.regimes.launch`` takes the arguments of ``composer``. A killed process cannot stop its
children: without this, a suite started again would train beside the ranks of the one before.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _follow_parent() -> None:
    """Ask Linux for an interrupt when the parent ends; elsewhere there is no such thing."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() == 1:  # It ended before it was asked for.
        raise SystemExit(1)


if __name__ == "__main__":
    # Before Composer is imported, which takes seconds.
    _follow_parent()
    from composer.cli.launcher import main

    raise SystemExit(main())
