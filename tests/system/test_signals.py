"""SIGTERM ends a command as an interrupt does."""

from __future__ import annotations

import signal
import threading

import pytest

from mixsize.system.signals import ending_on_sigterm


def test_what_was_begun_is_cleared_up_on_sigterm_and_the_handler_is_put_back():
    before, cleared = signal.getsignal(signal.SIGTERM), []

    def command():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleared.append(True)

    with pytest.raises(SystemExit) as ended, ending_on_sigterm():
        command()
    assert ended.value.code == 143
    assert cleared == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_in_another_thread_runs_without_it():
    ran = []

    def command():
        with ending_on_sigterm():
            ran.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert ran == [signal.getsignal(signal.SIGTERM)]
