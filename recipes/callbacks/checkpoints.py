"""Checkpoints that a kill at any moment leaves whole, and the newest of them."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from composer.utils.checkpoint import save_checkpoint

from mixsize.algorithms.execution.composer_model import network_of
from mixsize.recipes.callbacks.lost_ranks import is_lost_rank
from mixsize.recipes.records.run_folder import saved_checkpoints

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves the training state at an interval and at the end, and removes what is older.

    Composer's own saver writes under the final name, and takes the mark of the latest away before it sets the new
    one: a kill at the wrong moment leaves half a file, or none to find. Here a name only ever holds a whole file.

    Args:
        folder: where they go, as ``ep{epochs}-ba{steps}.pt``.
        interval: a duration such as ``1ep`` or ``500ba``.
        keep: how many to keep; 0 keeps all.

    Raises:
        OSError: a file that cannot be written, or a folder that was removed meanwhile; the one before stays.
        FloatingPointError: weights that are no longer finite, which would take the place of those that are.
    """

    def __init__(self, folder: Path, interval: str, keep: int = 1) -> None:
        if keep < 0:
            raise ValueError(f"keep is {keep}; it must be at least 1, or 0 to keep all")
        self.folder = folder
        self.keep = keep
        self._due = create_interval_scheduler(interval, include_end_of_training=True)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Make the folder."""
        if dist.get_global_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save where the interval counts steps, or the run ends inside an epoch."""
        if self._due(state, Event.BATCH_CHECKPOINT):
            self._save(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save where the interval counts epochs, or the run ends with one."""
        if self._due(state, Event.EPOCH_CHECKPOINT):
            self._save(state)

    def _save(self, state: State) -> None:
        time = state.timestamp
        path = self.folder / f"ep{int(time.epoch)}-ba{int(time.batch)}.pt"
        # Saved twice at one step, after its batch and after its epoch, the later one tells more: the epoch has ended.
        partial = self.folder / f".partial-{path.name}"  # Composer compresses by the ending.
        check_finite(network_of(state), path, "; the checkpoint before stays the newest")
        if dist.get_global_rank() == 0 and not self.folder.is_dir():
            # Composer would make it, and a run could not go on from a checkpoint alone.
            raise FileNotFoundError(
                errno.ENOENT, "the folder of the checkpoint was removed while the run went on", str(path)
            )
        try:
            save_checkpoint(state, str(partial).replace("{", "{{").replace("}", "}}"))  # It fills in placeholders.
            if dist.get_global_rank() == 0:
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
        except (OSError, RuntimeError) as error:  # PyTorch's writer has no other word for a full disk.
            partial.unlink(missing_ok=True)
            if is_lost_rank(error):
                raise
            raise OSError(f"{path}: the checkpoint cannot be written, the one before stays: {error}") from error
        if dist.get_global_rank() == 0:
            self._remove_older(path)
        dist.barrier()  # No rank goes on, and perhaps fails, before the others may rely on the file.

    def _remove_older(self, newest: Path) -> None:
        if self.keep == 0:
            return
        older = [path for path in saved_checkpoints(self.folder) if path != newest]
        for path in older[: max(0, len(older) - self.keep + 1)]:
            path.unlink(missing_ok=True)


def check_finite(network: torch.nn.Module, path: Path, hint: str = "") -> None:
    """Refuse to save weights or statistics that training has spoilt.

    Args:
        network: whose parameters and buffers they are.
        path: the file that they would go to.
        hint: ends the message.

    Raises:
        FloatingPointError: naming the file and the first tensor that is not finite.
    """
    for name, values in (*network.named_parameters(), *network.named_buffers()):
        if not bool(torch.isfinite(values).all()):
            raise FloatingPointError(
                f"{path} is not written, as {name} is no longer finite: training has diverged{hint}"
            )
