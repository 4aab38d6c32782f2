"""The same batch-norm statistics on every rank in an evaluation."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from mixsize.algorithms.execution.composer_model import network_of


class SharedStatistics(Callback):
    """Copies the buffers of rank zero to every rank before an evaluation.

    Each rank keeps running statistics of its own part of the batches, and PyTorch synchronises them only when the next
    training step begins. Checkpoints hold those of rank zero, so the evaluation must use them as well.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        """Broadcast the buffers."""
        if dist.get_world_size() > 1:
            for buffer in network_of(state).buffers():
                dist.broadcast(buffer, src=0)
