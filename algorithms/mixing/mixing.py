"""Mixup and CutMix attached to a Composer Trainer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from mixsize.algorithms.mixing.mix_batch import mix_batch
from mixsize.algorithms.regime.planned_loader import PlannedLoader


class Mixing(Algorithm):
    """Mixes the images of each training batch by Mixup or CutMix, with one draw for a batch.

    A view is mixed with a view of another image; Composer's ``MixUp`` and ``CutMix`` would also pair two views of one
    image. The draws follow from (seed, epoch, step, rank), so that a run resumes exactly. See
    :func:`~mixsize.algorithms.mix_batch`.

    Runs on ``AFTER_DATALOADER``, before the batch is divided into microbatches: the labels ``(N,)`` become soft labels
    ``(N, num_classes)`` in every step. The loss must take them, as ``torch.nn.functional.cross_entropy`` does; that of
    ``ComposerClassifier`` by default warns where rounding leaves their sum below 1. Also runs on ``FIT_START``, where
    it removes the Trainer's training metrics: a mixed image has no one class.

    Args:
        num_classes: number of classes.
        mixup: alpha of Mixup's Beta(alpha, alpha); 0: no Mixup.
        cutmix: alpha of CutMix's; 0: no CutMix.
        prob: probability that a batch is mixed.
        switch_prob: probability of CutMix where both are on.
        seed: by default the Trainer's.
        input_key: of the images in a batch, as in Composer's own algorithms.
        target_key: of the labels in a batch.

    Attributes:
        mixup: may be set between steps.
        cutmix: may be set between steps.

    Raises:
        ValueError: an alpha below 0, or a probability outside of [0, 1].

    Example:
        >>> algorithms = [MixSizeSampling(), Mixing(num_classes=1000, cutmix=0)]
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.2,
        cutmix: float = 1.0,
        *,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        seed: int | None = None,
        input_key: Any = 0,
        target_key: Any = 1,
    ) -> None:
        for name, value, most in (
            ("mixup", mixup, math.inf),
            ("cutmix", cutmix, math.inf),
            ("prob", prob, 1),
            ("switch_prob", switch_prob, 1),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}; it must be at least 0" + (" and at most 1" if most == 1 else ""))
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.prob = prob
        self.switch_prob = switch_prob
        self.seed = seed
        self.input_key = input_key
        self.target_key = target_key

    def match(self, event: Event, state: State) -> bool:
        """Run at every training batch, and once before training."""
        return event in (Event.FIT_START, Event.AFTER_DATALOADER)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Mix the batch."""
        if event == Event.FIT_START:
            state.train_metrics = {}
            return
        images, labels = mix_batch(
            state.batch_get_item(self.input_key),
            state.batch_get_item(self.target_key),
            self._generator(state),
            self.num_classes,
            _duplicates(state),
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.prob,
            switch_prob=self.switch_prob,
        )
        state.batch_set_item(self.input_key, images)
        state.batch_set_item(self.target_key, labels)

    def _generator(self, state: State) -> np.random.Generator:
        seed = state.rank_zero_seed if self.seed is None else self.seed
        key = (int(state.timestamp.epoch), int(state.timestamp.batch_in_epoch), dist.get_global_rank())
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _duplicates(state: State) -> int:
    """Views of each image in the batch; batches of loaders without plans have one."""
    loader: Any = state.train_dataloader
    step = loader.dataset.current_step if isinstance(loader, PlannedLoader) else None
    return 1 if step is None else step.duplicates
