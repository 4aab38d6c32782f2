"""One set of batch-norm statistics for an evaluation on several ranks."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from mixsize.algorithms.execution.composer_model import network_of


class SharedStatistics(Callback):
    """Gives every rank the buffers of rank zero before an evaluation.

    Each rank keeps running statistics of its own part of the batches, and PyTorch evens them out only when the next
    training step begins. Evaluated as they are, a run on several ranks would have accuracies that belong to no set of
    weights, and not to the ones in its checkpoint, which are rank zero's.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        """Send them round."""
        if dist.get_world_size() > 1:
            for buffer in network_of(state).buffers():
                dist.broadcast(buffer, src=0)
