"""Checkpoints that are whole after a kill at any moment."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import save_checkpoint

from mixsize.algorithms.execution.composer_model import network_of
from mixsize.recipes.records.run_folder import saved_checkpoints
from mixsize.system.files import in_one_piece


class Checkpoints(Callback):
    """Saves the training state at an interval and at the end of the run, and removes older checkpoints.

    Composer's own saver writes under the final name, so a kill can leave half a file. Here each file gets its name once
    it is complete.

    Args:
        folder: where they go, as ``ep{epochs}-ba{steps}.pt``.
        interval: a duration such as ``1ep`` or ``500ba``.
        keep: how many to keep; 0 keeps all.

    Raises:
        OSError: a file cannot be written; the checkpoint before it stays.
        FloatingPointError: weights are not finite; the checkpoint before stays the newest.
    """

    def __init__(self, folder: Path, interval: str, keep: int = 1) -> None:
        if keep < 0:
            raise ValueError(f"keep is {keep}; it must be at least 1, or 0 to keep all")
        self.folder = folder
        self.keep = keep
        self._due = create_interval_scheduler(interval, include_end_of_training=True)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if the interval counts steps, or the run ends inside an epoch."""
        if self._due(state, Event.BATCH_CHECKPOINT):
            self._save(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if the interval counts epochs, or the run ends with one."""
        if self._due(state, Event.EPOCH_CHECKPOINT):
            self._save(state)

    def _save(self, state: State) -> None:
        time = state.timestamp
        path = self.folder / f"ep{int(time.epoch)}-ba{int(time.batch)}.pt"
        check_finite(network_of(state), path, "; the checkpoint before stays the newest")
        is_writer = dist.get_global_rank() == 0
        try:
            with in_one_piece(path) if is_writer else nullcontext(path) as partial:
                save_checkpoint(state, str(partial).replace("{", "{{").replace("}", "}}"))  # It fills in placeholders.
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError when the disk is full.
            raise OSError(f"{path}: the checkpoint is not saved, the one before stays: {error}") from error
        if is_writer:
            self._remove_older(path)
        dist.barrier()  # No rank continues, and perhaps fails, before the file exists.

    def _remove_older(self, newest: Path) -> None:
        if self.keep == 0:
            return
        older = [path for path in saved_checkpoints(self.folder) if path != newest]
        for path in older[: max(0, len(older) - self.keep + 1)]:
            path.unlink(missing_ok=True)


def check_finite(network: torch.nn.Module, path: Path, hint: str = "") -> None:
    """Refuse to save weights or batch-norm statistics that are not finite.

    Args:
        network: its parameters and buffers are checked.
        path: the file they would be saved to, for the message.
        hint: ends the message.

    Raises:
        FloatingPointError: the message names the file and the first tensor that is not finite.
    """
    for name, values in (*network.named_parameters(), *network.named_buffers()):
        if not bool(torch.isfinite(values).all()):
            raise FloatingPointError(f"{path} is not written: {name} is not finite; training has diverged{hint}")
