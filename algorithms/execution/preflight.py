"""A visit to every shape of the regime before training, attached to a Composer Trainer."""

from __future__ import annotations

import logging
from typing import cast

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import dist

from mixsize.algorithms.execution.visit import visit_shapes
from mixsize.algorithms.regime.planned_loader import PlannedLoader
from mixsize.algorithms.regime.shapes import shapes_of

log = logging.getLogger(__name__)


class Preflight(Algorithm):
    """Visits every shape of the regime once before the first step, with the Trainer's own passes.

    A shape that does not fit into memory ends the run at once with an error that names it. The optimiser takes no step:
    memory for its state is not reserved. Runs on ``FIT_START``; list it after
    :class:`~mixsize.algorithms.MixSizeSampling`.

    Args:
        channels_last: memory format of the images.
        progress: show a bar on standard error, on rank zero.

    Attributes:
        seconds: duration of the last visit; None before it.

    Raises:
        ValueError: a loader without planned batches, or a shape that does not fit.

    Example:
        >>> algorithms = [MixSizeSampling(), Preflight(channels_last=True)]
    """

    def __init__(self, channels_last: bool = False, progress: bool = False) -> None:
        self.channels_last = channels_last
        self.progress = progress
        self.seconds: float | None = None

    def match(self, event: Event, state: State) -> bool:
        """Run once, before the first step or the first after a resume."""
        return event == Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Visit the shapes."""
        loader = state.train_dataloader
        if not isinstance(loader, PlannedLoader):
            raise ValueError(
                f"{type(self).__name__} visits the shapes that a mixsize loader has planned; the train_dataloader is a "
                f"{type(loader).__name__}"
            )
        micro = state.device_train_microbatch_size
        shapes = shapes_of(loader.regime, loader.world_size, None if micro is None else int(micro))
        model = cast(ComposerModel, state.model.module if state.is_model_ddp else state.model)
        state.model.train()

        def step(images: torch.Tensor, labels: torch.Tensor) -> None:
            batch = (images, labels)
            with get_precision_context(state.precision, state.precision_config):
                loss = model.loss(state.model(batch), batch)
            cast(torch.Tensor, loss).backward()

        self.seconds = visit_shapes(
            step,
            state.model,
            shapes,
            channels_last=self.channels_last,
            progress=self.progress and dist.get_global_rank() == 0,
        )
        log.info("visited %d shapes in %.1f s", len(shapes), self.seconds)
