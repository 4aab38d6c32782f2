"""Random numbers inside the network that depend on the step alone."""

from __future__ import annotations

import random

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist


class StepSeed(Algorithm):
    """Seeds dropout, stochastic depth and other draws of a training step from (seed, step, rank).

    Composer restores the random state only from a checkpoint between epochs. With this algorithm a run resumes exactly
    at any step, and neither an evaluation nor a data loader changes the draws of training. Seeds the generators of
    Python, NumPy and PyTorch, CUDA included, on ``AFTER_DATALOADER``: list it before algorithms that draw.

    Args:
        seed: by default the Trainer's.

    Example:
        >>> algorithms = [StepSeed(seed=17), MixSizeSampling()]
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed is {seed}; it must be at least 0")
        self.seed = seed

    def match(self, event: Event, state: State) -> bool:
        """Run at every training batch."""
        return event == Event.AFTER_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Seed the generators."""
        seed = state.rank_zero_seed if self.seed is None else self.seed
        drawn = np.random.SeedSequence(seed, spawn_key=(int(state.timestamp.batch), dist.get_global_rank()))
        value = int(drawn.generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002 -- the generator that other people's code draws from
        torch.manual_seed(value)
