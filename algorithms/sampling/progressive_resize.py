"""Progressive resizing attached to a Composer Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from composer.core import Event, State, get_precision_context
from composer.loggers import Logger
from torch.nn.modules.batchnorm import _BatchNorm

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm
from mixsize.algorithms.execution.composer_model import network_of
from mixsize.algorithms.execution.planned_loader import PlannedLoader
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.training.epoch_schedule import position_in_epochs

BatchNormAt = Literal["keep", "reset", "freeze"]


class ProgressiveResize(MixSizeSampling):
    """Trains from small images to large ones in phases.

    The loader produces each phase's size, with a batch fitted to the base's budget; other loaders' batches are
    resized on the device, see :class:`MixSizeSampling`. Composer's own ``ProgressiveResizing`` always does the latter.

    Runs on the events of :class:`MixSizeSampling` and on ``BATCH_START`` (batch norm, learning rate) and ``FIT_END``.
    Logs its keys, and:

    +----------------------------+------------------------------------------------------------------------+
    | Key                        | Logged data                                                            |
    +============================+========================================================================+
    | ``mixsize/phase``          | index of the phase, each step                                          |
    +----------------------------+------------------------------------------------------------------------+
    | ``mixsize/lr_factor``      | what the phase and its warm-up multiply the learning rate by, each step |
    +----------------------------+------------------------------------------------------------------------+

    The factor applies while the optimiser steps and at no other time: schedulers, other algorithms and
    checkpoints see the learning rate without it.

    Args:
        progression: the phases.
        batch_norm: at a transition, ``keep`` the running statistics, ``reset`` them (re-estimated on the new phase's
            first batches; needs a loader of planned batches), or ``freeze`` them for ``freeze_steps`` steps.
        freeze_steps: steps of ``freeze``, at least 1 with it.
        reset_batches: batches that ``reset`` looks at.
        input_key: see :class:`MixSizeSampling`.
        seed: see :class:`MixSizeSampling`.

    Raises:
        ValueError: an unknown ``batch_norm``, a count out of range, or ``reset`` with a loader that plans nothing.

    Example:
        >>> phases = (Phase(128, 30), Phase(192, 30, lr_factor=0.5), Phase(224, 30, lr_factor=0.1))
        >>> progression = Progression(Base(224, 256), phases, warmup_epochs=1)
        >>> loader = MixSizeLoader("train.beton", progression)
        >>> Trainer(model, loader.data_spec(), algorithms=[ProgressiveResize(progression)], max_duration="90ep")
    """

    def __init__(
        self,
        progression: Progression,
        *,
        batch_norm: BatchNormAt = "keep",
        freeze_steps: int = 0,
        reset_batches: int = 50,
        input_key: Any = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(progression, input_key=input_key, seed=seed)
        if batch_norm not in get_args(BatchNormAt):
            raise ValueError(f"batch_norm is {batch_norm!r}; it must be one of {', '.join(get_args(BatchNormAt))}")
        if (freeze_steps < 1) if batch_norm == "freeze" else freeze_steps:
            raise ValueError(
                f"freeze_steps is {freeze_steps}; it must be at least 1 with batch_norm='freeze' and 0 without"
            )
        if reset_batches < 1:
            raise ValueError(f"reset_batches is {reset_batches}; it must be at least 1")
        self.progression = progression
        self.batch_norm = batch_norm
        self.freeze_steps = freeze_steps
        self.reset_batches = reset_batches
        self._lr_factor = 1.0
        self._reset_at: set[int] = set()
        self._hooks: list[Any] = []

    def handlers(self) -> dict[Event, Callable[[State, Logger], None]]:
        """The method that each event goes to."""
        return {**super().handlers(), Event.BATCH_START: self._start_step, Event.FIT_END: self._release}

    def _bind(self, state: State, logger: Logger) -> None:
        super()._bind(state, logger)
        loader = state.train_dataloader
        if self.batch_norm == "reset" and loader is not None and not isinstance(loader, PlannedLoader):
            raise ValueError(
                f"batch_norm='reset' re-estimates on the new phase's batches, which a {type(loader).__name__} cannot "
                "show ahead; use a mixsize loader, or batch_norm='keep' or 'freeze'"
            )

    def _start(self, state: State, logger: Logger) -> None:
        super()._start(state, logger)
        if not self._hooks:
            for optimizer in state.optimizers:
                self._hooks += _scaled_steps(optimizer, lambda: self._lr_factor)

    def _enter_epoch(self, state: State, logger: Logger) -> None:
        super()._enter_epoch(state, logger)
        epoch = int(state.timestamp.epoch)
        starts_phase = epoch in self.progression.starts[1:] and int(state.timestamp.batch_in_epoch) == 0
        # FIT_START and EPOCH_START both come here where a run starts or resumes at a phase.
        if self.batch_norm == "reset" and starts_phase and epoch not in self._reset_at:
            self._reset_at.add(epoch)
            loader = state.train_dataloader
            assert isinstance(loader, PlannedLoader)
            with get_precision_context(state.precision, state.precision_config):
                calibrate_batch_norm(network_of(state), loader.dataset.peek(), max_batches=self.reset_batches)

    def _start_step(self, state: State, logger: Logger) -> None:
        position = position_in_epochs(state)
        self._lr_factor = self.progression.lr_factor(position)
        phase = self.progression.phase_at(position)
        logger.log_metrics({"mixsize/phase": phase, "mixsize/lr_factor": self._lr_factor})
        if self.batch_norm == "freeze":
            frozen = phase > 0 and self._steps_since_transition(state, phase) < self.freeze_steps
            for module in state.model.modules():
                if isinstance(module, _BatchNorm):
                    module.train(not frozen)

    def _steps_since_transition(self, state: State, phase: int) -> int:
        loader, epoch = state.train_dataloader, int(state.timestamp.epoch)
        start = self.progression.starts[phase]
        # Within a phase all epochs are equally long.
        length = len(loader) if isinstance(loader, PlannedLoader) else int(state.dataloader_len)
        return (epoch - start) * length + int(state.timestamp.batch_in_epoch)

    def _release(self, state: State, logger: Logger) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _scaled_steps(optimizer: torch.optim.Optimizer, factor: Callable[[], float]) -> list[Any]:
    """Multiply the learning rates by ``factor()`` for the duration of each step; returns the hooks' handles."""
    kept: list[list[float]] = []

    def scale(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        kept.append([group["lr"] for group in optimizer.param_groups])
        # An optimiser whose step calls its base class's runs the hooks twice, one inside the other.
        if len(kept) == 1:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor()

    def restore(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, kept.pop(), strict=True):
            group["lr"] = lr

    return [optimizer.register_step_pre_hook(scale), optimizer.register_step_post_hook(restore)]
