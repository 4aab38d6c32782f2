"""A bound on the time that Weights & Biases takes to end a run whose service no longer answers.

wandb 0.18 has none: ``finish``, and the hook that it runs when the interpreter exits, wait until everything is sent.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

log = logging.getLogger(__name__)

#: wandb's process writes a run's file by blocks of this many bytes, and the last of them when the run has ended.
_BLOCK = 32 << 10
_WRITING_SECONDS = 10.0


class Deadline:
    """Ends wandb's process where a run's end takes too long, with what was logged in the run's file.

    The time begins with :meth:`begin`, or when the interpreter exits, and is over with :meth:`end`. A wait for wandb
    that is under way when it is over raises wandb's own error.

    Args:
        run: under way.
        seconds: that its end may take.
    """

    def __init__(self, run: WandbRun, seconds: float) -> None:
        self._run = run
        self._seconds = seconds
        self._process = service_process()
        self._has_begun, self._has_ended = threading.Event(), threading.Event()
        #: Whether it was missed.
        self.has_passed = False
        # Started now: newer interpreters start no thread when they exit. As the last hook it runs before wandb's.
        self._watcher = threading.Thread(target=self._watch, name="wandb deadline", daemon=True)
        self._watcher.start()
        atexit.register(self._begin_at_exit)

    def begin(self) -> None:
        """Count from now."""
        self._has_begun.set()

    def end(self) -> None:
        """Count no more: the run has ended."""
        atexit.unregister(self._begin_at_exit)
        self._has_ended.set()
        self._has_begun.set()
        self._watcher.join()

    def _begin_at_exit(self) -> None:
        # Before wandb's hook, after which its process takes nothing more.
        with contextlib.suppress(Exception):
            _write_out(self._run)
        self.begin()

    def _watch(self) -> None:
        self._has_begun.wait()
        if self._has_ended.wait(self._seconds):
            return
        self.has_passed = True
        folder = self._run.settings.sync_dir
        log.warning(
            "Weights & Biases has not ended its run within %g s, and is left behind: what was logged is in %s; send it "
            "with wandb sync %s",
            self._seconds,
            folder,
            folder,
        )
        # Whatever it is that wandb raises: its process is to end.
        with contextlib.suppress(Exception):
            _write_out(self._run)
        end_service(self._process)


def service_process() -> subprocess.Popen[bytes] | None:
    """wandb's process; None where another process than this one has started it, or it is not found."""
    import wandb

    try:
        # wandb has no public name for it.
        service = wandb.setup().service._proc
        return None if service is None else service._internal_proc
    except AttributeError:
        log.warning("wandb %s keeps its process elsewhere: nothing bounds what it takes to end", wandb.__version__)
        return None


def end_service(process: subprocess.Popen[bytes] | None) -> None:
    """Kill wandb's process, which has no other end while there is something to send."""
    if process is not None:
        process.kill()
        process.wait()


def forget_service() -> None:
    """Let wandb drop its process, gone or not, so that its hook at the exit does not speak to it."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # It exits with its process's exit code.
        wandb.teardown()


def _write_out(run: WandbRun) -> None:
    """Have the last block of a run's file written, by a line of blanks on the run's console that is longer than it."""
    path = run.settings.sync_file
    before = os.path.getsize(path)
    run._backend.interface.publish_output("stdout", " " * (2 * _BLOCK) + "\n")
    until = time.monotonic() + _WRITING_SECONDS
    while os.path.getsize(path) < before + _BLOCK and time.monotonic() < until:
        time.sleep(0.05)
