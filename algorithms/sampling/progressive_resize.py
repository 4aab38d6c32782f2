"""Progressive resizing attached to a Composer Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from composer.core import Event, State, TimeUnit
from composer.loggers import Logger
from torch.nn.modules.batchnorm import _BatchNorm

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm
from mixsize.algorithms.execution.composer_model import network_of, training_precision
from mixsize.algorithms.regime.planned_loader import PlannedLoader
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.sampling.batches import PlannedBatches
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.training.epoch_schedule import position_in_epochs

log = logging.getLogger(__name__)

BatchNormAt = Literal["keep", "reset", "freeze"]


class ProgressiveResize(MixSizeSampling):
    """Trains from small images to large ones in phases, each at one size or at several.

    The loader decodes each phase's sizes, with a batch fitted to the base's budget. FFCV's own ``Loader`` decodes each
    phase's size, too; batches of other loaders are resized on the device, see :class:`MixSizeSampling`. Both keep their
    batch size and crops. Composer's own ``ProgressiveResizing`` always resizes on the device.

    Runs on the events of :class:`MixSizeSampling` and on ``BATCH_START`` (batch norm, learning rate) and ``FIT_END``.
    Logs its keys, and:

    +----------------------------+------------------------------------------------------------------------+
    | Key                        | Logged data                                                            |
    +============================+========================================================================+
    | ``mixsize/phase``          | index of the phase, each step                                          |
    +----------------------------+------------------------------------------------------------------------+
    | ``mixsize/lr_factor``      | factor of the learning rate from the phase and its warm-up, each step  |
    +----------------------------+------------------------------------------------------------------------+

    The factor applies while the optimiser steps; schedulers, checkpoints and the events around the step see the
    learning rate without it. Except under ``amp_fp16``, Composer passes the optimiser a closure: forward and backward
    passes then run inside the step, and algorithms on the events from ``BEFORE_TRAIN_BATCH`` to ``AFTER_TRAIN_BATCH``
    see the rate with the factor.

    Args:
        progression: the phases.
        batch_norm: at a transition, ``keep`` the running statistics, ``reset`` them (re-estimated on the new phase's
            first batches; needs a loader of planned batches), or ``freeze`` them for ``freeze_steps`` steps.
        freeze_steps: steps of ``freeze``, at least 1 with it and 0 without.
        reset_batches: number of batches that ``reset`` re-estimates on.
        input_key: see :class:`MixSizeSampling`.
        seed: see :class:`MixSizeSampling`.

    Raises:
        ValueError: an unknown ``batch_norm``, a count out of range, ``reset`` with a loader without planned batches, or
            ``freeze`` with a phase that draws its sizes by epoch.

    Example:
        >>> phases = (Phase(128, 30), Phase(192, 30, lr_factor=0.5), Phase(224, 30, lr_factor=0.1))
        >>> algorithm = ProgressiveResize(Progression(Base(224, 256), phases, warmup_epochs=1), batch_norm="reset")
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
        if batch_norm == "freeze" and any(regime.draw == "epoch" for regime in progression.regimes):
            raise ValueError(
                "batch_norm is 'freeze', which counts steps in epochs of equal length; a phase draws its sizes by "
                "epoch (draw 'epoch'): use 'keep' or 'reset'"
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

    def match(self, event: Event, state: State) -> bool:
        """Run on the events of sampling and on those of phases."""
        return event in _HANDLERS or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Sample, then call the event's own method."""
        if super().match(event, state):
            super().apply(event, state, logger)
        if event in _HANDLERS:
            _HANDLERS[event](self, state, logger)

    def _check_loader(self, state: State, logger: Logger) -> None:
        loader = state.train_dataloader
        if self.batch_norm == "reset" and loader is not None and not isinstance(loader, PlannedLoader):
            raise ValueError(
                f"batch_norm is 'reset', which re-estimates on the new phase's batches ahead of training; the "
                f"train_dataloader is a {type(loader).__name__}, which does not plan them: use a mixsize loader, or "
                "batch_norm 'keep' or 'freeze'"
            )

    def _start_run(self, state: State, logger: Logger) -> None:
        self._check_loader(state, logger)
        if not self._hooks:
            for optimizer in state.optimizers:
                self._hooks += _scaled_steps(optimizer, lambda: self._lr_factor)
        self._warn_of_unreached(state)
        self._start_phase(state, logger)

    def _warn_of_unreached(self, state: State) -> None:
        end, start = state.max_duration, self.progression.starts[-1]
        if end is not None and end.unit == TimeUnit.EPOCH and int(end) <= start:
            log.warning("ProgressiveResize: the last phase starts at epoch %d; training ends after %d", start, int(end))

    def _start_phase(self, state: State, logger: Logger) -> None:
        epoch = int(state.timestamp.epoch)
        starts_phase = epoch in self.progression.starts[1:] and int(state.timestamp.batch_in_epoch) == 0
        # FIT_START and EPOCH_START both come here if a run starts or resumes at a phase.
        if self.batch_norm == "reset" and starts_phase and epoch not in self._reset_at:
            self._reset_at.add(epoch)
            assert isinstance(self._batches, PlannedBatches)
            ahead = self._batches.loader.dataset.peek()
            with training_precision(state):
                calibrate_batch_norm(network_of(state), ahead, max_batches=self.reset_batches)

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
        length = len(loader) if isinstance(loader, PlannedLoader) else state.dataloader_len
        assert length is not None
        return (epoch - start) * int(length) + int(state.timestamp.batch_in_epoch)

    def _release(self, state: State, logger: Logger) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


_HANDLERS = {
    Event.BEFORE_LOAD: ProgressiveResize._check_loader,
    Event.FIT_START: ProgressiveResize._start_run,
    Event.EPOCH_START: ProgressiveResize._start_phase,
    Event.BATCH_START: ProgressiveResize._start_step,
    Event.FIT_END: ProgressiveResize._release,
}


def _scaled_steps(optimizer: torch.optim.Optimizer, factor: Callable[[], float]) -> list[Any]:
    """Multiply the learning rates by ``factor()`` during each step; returns the handles of the hooks."""
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
