"""A visit to every shape of the regime before training, attached to a Composer Trainer."""

from __future__ import annotations

import logging

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist

from mixsize.algorithms.execution.visit import visit_shapes
from mixsize.algorithms.regime.planned_loader import PlannedLoader
from mixsize.algorithms.regime.shapes import shapes_of

log = logging.getLogger(__name__)


class Preflight(Algorithm):
    """Visits every shape of the regime once before the first step, with the Trainer's own passes.

    A shape that does not fit into memory ends the run at once, with its name. The optimiser takes no step, so that what
    it keeps for each parameter is not reserved yet. Runs on ``FIT_START``, after
    :class:`~mixsize.algorithms.MixSizeSampling`: put it behind.

    Args:
        channels_last: memory format of the images.
        progress: show a bar on standard error, on rank zero.

    Raises:
        ValueError: a loader without planned batches, whose shapes are not known, or a shape that does not fit.

    Example:
        >>> Trainer(model, loader.data_spec(), algorithms=[MixSizeSampling(), Preflight()], max_duration="90ep")
    """

    def __init__(self, channels_last: bool = False, progress: bool = False) -> None:
        self.channels_last = channels_last
        self.progress = progress
        #: What the last visit took.
        self.seconds: float | None = None

    def match(self, event: Event, state: State) -> bool:
        """Run once, before the first step or the first after a resume."""
        return event == Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Visit the shapes."""
        loader = state.train_dataloader
        if not isinstance(loader, PlannedLoader):
            raise ValueError(
                f"{type(self).__name__} visits the shapes that a mixsize loader has planned; those of a "
                f"{type(loader).__name__} are not known"
            )
        micro = state.device_train_microbatch_size
        shapes = shapes_of(loader.regime, loader.world_size, None if micro is None else int(micro))
        model = state.model.module if state.is_model_ddp else state.model
        state.model.train()

        def step(images: torch.Tensor, labels: torch.Tensor) -> None:
            batch = (images, labels)
            with get_precision_context(state.precision, state.precision_config):
                loss = model.loss(state.model(batch), batch)
            loss.backward()

        self.seconds = visit_shapes(
            step,
            state.model,
            shapes,
            channels_last=self.channels_last,
            progress=self.progress and dist.get_global_rank() == 0,
        )
        log.info("visited %d shapes in %.1f s", len(shapes), self.seconds)
