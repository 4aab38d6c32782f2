"""Random numbers inside the network that depend on the step alone, so that a resumed run draws the same."""

from __future__ import annotations

import random

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist


class StepSeed(Algorithm):
    """Seeds dropout, stochastic depth and other draws of a training step from (seed, step, rank).

    Composer restores the random state only where a checkpoint was taken between epochs. With this, a run that
    resumes anywhere goes on as if it had never stopped, and neither an evaluation nor a data loader in between moves
    what training draws. Python's, NumPy's and PyTorch's generators are set, those of CUDA included, when the batch
    arrives: put it before algorithms that draw.

    Args:
        seed: by default the Trainer's.

    Example:
        >>> Trainer(model, loader.data_spec(), algorithms=[StepSeed(), MixSizeSampling()], seed=17)
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed is {seed}; it must be at least 0")
        self.seed = seed

    def match(self, event: Event, state: State) -> bool:
        """Run at every training batch, before anything looks at it."""
        return event == Event.AFTER_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Seed the generators."""
        seed = state.rank_zero_seed if self.seed is None else self.seed
        drawn = np.random.SeedSequence(seed, spawn_key=(int(state.timestamp.batch), dist.get_global_rank()))
        value = int(drawn.generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002 -- the generator that other people's code draws from
        torch.manual_seed(value)
