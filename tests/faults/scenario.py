"""What a fault test runs in a process of its own: a training run, with a fault at one place.

Not a test: forked from a process that has imported everything and computed nothing, with ``ARGUMENTS`` set.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import resource
import shutil
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import composer.trainer.trainer as composer_trainer
import torch

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.cli import main
from mixsize.ffcv_loaders.decode import decode
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader
from mixsize.recipes.build.trainer import trainer as build
from mixsize.recipes.callbacks import checkpoints, wandb_logger
from mixsize.recipes.commands import train
from mixsize.recipes.records.run_folder import RECORD_FILE


def at_call(owner: object, name: str, number: int, act: Callable[[], None]) -> None:
    """Act at the given call of a function, counted from 1."""
    whole, calls = getattr(owner, name), []

    def counting(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            act()
        return whole(*args, **kwargs)

    setattr(owner, name, counting)


def at_batch(loader: type, number: int, act: Callable[[], None]) -> None:
    """Act before a batch of a loader, counted from 1 over all its iterations."""
    whole, served = loader.__iter__, []

    def counting(self):
        for batch in whole(self):
            served.append(1)
            if len(served) == number:
                act()
            yield batch

    loader.__iter__ = counting


def killed_in(place: str, act: Callable[[], None]) -> None:
    """Set an act up at one place of a run."""
    if place == "training":
        at_batch(MixSizeLoader, 12, act)
    elif place == "evaluation":
        # Composer draws one batch for each of the two sizes before the first step.
        at_batch(EvalLoader, 5, act)
    elif place == "calibration":
        at_call(StatisticsBank, "calibrate", 2, act)
    elif place == "checkpointing":
        # The second checkpoint is written, and has not got its name yet.
        save, saves = checkpoints.save_checkpoint, []

        def saving(*args, **kwargs):
            saves.append(save(*args, **kwargs))
            if len(saves) == 2:
                act()

        checkpoints.save_checkpoint = saving
    elif place == "checkpointing's beginning":
        at_call(checkpoints, "save_checkpoint", 2, act)
    elif place == "recording":
        whole = train.write_text

        def before_the_record(path, text):
            if path.name == RECORD_FILE:
                act()
            whole(path, text)

        train.write_text = before_the_record
    else:
        raise AssertionError(place)


def full_disk(megabytes: float) -> None:
    """Writing a file beyond a size fails, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 2**20), limit[1]))


def bad_loss(value: float) -> None:
    """From the twelfth step on the loss is multiplied by a number."""
    steps = []
    whole = torch.nn.functional.cross_entropy

    def spoilt(*args, **kwargs):
        loss = whole(*args, **kwargs)
        if loss.requires_grad:
            steps.append(1)
        return loss * value if len(steps) >= 12 else loss

    torch.nn.functional.cross_entropy = spoilt


def bad_weights() -> None:
    """The twelfth step's loss is finite, and the weights after it are not."""
    whole, steps = TrainingClock.batch_end, []

    def spoiling(self, state, logger):
        steps.append(1)
        if len(steps) == 12:
            next(state.model.parameters()).data.fill_(float("nan"))
        whole(self, state, logger)

    TrainingClock.batch_end = spoiling


def at_fit(act: Callable[[build.Run], None]) -> None:
    """Act on a run before it begins."""
    whole = train.fit

    def fitting(run):
        act(run)
        return whole(run)

    train.fit = fitting


def bad_gradients(number: int) -> None:
    """From one step on a part of the gradients is no number, and of that step the loss still is."""
    steps = []

    def spoil(gradient):
        steps.append(1)
        return gradient * float("nan") if len(steps) >= number else gradient

    at_fit(lambda run: next(run.trainer.state.model.parameters()).register_hook(spoil))


def too_little_memory(place: str) -> None:
    """From the twelfth step, or from the first evaluation on, the network asks for more memory than there is."""
    steps = []

    def ask(network, images):
        steps.extend([1] if network.training else [])
        if network.training == (place == "training") and len(steps) >= 12:
            torch.empty(2**50)

    at_fit(lambda run: run.trainer.state.model.module.register_forward_pre_hook(ask))


def bound_by_permissions() -> None:
    """Permissions hold for this process, even if it is root's: it gives up all that Linux lets root do."""
    version_3, this_process = 0x20080522, 0
    header, none = (ctypes.c_uint32 * 2)(version_3, this_process), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0, os.strerror(ctypes.get_errno())


def changed_file(path: Path, how: str) -> None:
    """The training file changes on the disk before the twelfth batch is drawn."""

    def change():
        if how.startswith("cut short"):
            os.truncate(path, path.stat().st_size // 2)
        elif how == "written to":
            with open(path, "r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(bytes(100))
        elif how == "replaced":
            other = path.with_suffix(".other")
            other.write_bytes(b"something else")
            other.replace(path)
        else:
            path.unlink()

    if how == "cut short while it is decoded":
        at_call(decode.Decoder, "submit", 12, change)
    else:
        at_batch(MixSizeLoader, 12, change)


class JumpingClock(datetime.datetime):
    """The time of day, which goes back by an hour, and forth by two, at some calls."""

    calls = 0

    @classmethod
    def now(cls, tz=None):
        cls.calls += 1
        return super().now(tz) + datetime.timedelta(hours={15: -1, 40: 2}.get(cls.calls, 0))


class Dates:
    """Stands in for the module ``datetime``."""

    datetime, timedelta = JumpingClock, datetime.timedelta


def decoding_fails() -> None:
    """The decoding thread raises in the middle of the run."""

    def fail():
        raise MemoryError("no memory for another image")

    at_call(decode.Decoder, "submit", 12, fail)


def wandb_killed() -> None:
    """The process that logs for Weights & Biases is gone in the middle of the run."""

    def kill():
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        mine = [int(child) for file in children for child in file.read_text().split()]
        named = [child for child in mine if Path(f"/proc/{child}/comm").read_text() == "wandb-core\n"]
        assert named
        for child in named:
            os.kill(child, signal.SIGKILL)

    at_batch(MixSizeLoader, 12, kill)


def service_lost(how: str, url: str) -> None:
    """Weights & Biases' service, of ``test_wandb_network.py``, is told to fall silent or to go."""
    os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
    wandb_logger._CLOSING_SECONDS = 3.0

    def tell():
        urllib.request.urlopen(f"{url}/{how}").close()

    if how == "mute":
        whole = build.settings
        build.settings = lambda: (settings := whole()).update(init_timeout=3.0) or settings
        tell()
    else:
        at_batch(MixSizeLoader, 12, tell)


def set_up(fault: str) -> None:
    """Set up ``kind:argument``."""
    kind, _, argument = fault.partition(":")
    if kind in ("SIGKILL", "SIGTERM"):
        killed_in(argument, lambda: os.kill(os.getpid(), getattr(signal, kind)))
    elif kind == "disk":
        full_disk(float(argument))
    elif kind == "loss":
        bad_loss(float(argument))
    elif kind == "weights":
        bad_weights()
    elif kind == "gradients":
        bad_gradients(int(argument))
    elif kind == "memory":
        too_little_memory(argument)
    elif kind == "permissions":
        bound_by_permissions()
    elif kind == "folder":
        at_batch(MixSizeLoader, 12, lambda: shutil.rmtree(argument))
    elif kind == "file":
        how, _, path = argument.partition("@")
        changed_file(Path(path), how)
    elif kind == "no service":
        os.environ |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    elif kind == "wandb":
        wandb_killed()
    elif kind == "service":
        service_lost(*argument.split("@"))
    elif kind == "clock":
        composer_trainer.datetime = Dates
    elif kind == "thread":
        decoding_fails()
    elif fault:
        raise AssertionError(fault)


def run(fault: str, log: Path, argv: list[str], environment: dict[str, str]) -> None:
    """Run a command line with a fault; what it prints goes to a file.

    Args:
        fault: see :func:`set_up`.
        log: the file.
        argv: of the command ``mixsize``.
        environment: what a launcher would set.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.setsid()
    os.environ |= {"WANDB_DIR": str(log.parent), **environment}
    set_up(fault)
    sys.exit(main(argv))


if __name__ == "__main__":
    run(*ARGUMENTS)  # noqa: F821 -- runpy sets it
