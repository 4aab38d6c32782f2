"""Gradient smoothing attached to a Composer Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from composer.algorithms import GradientClipping
from composer.core import Algorithm, Event, State
from composer.loggers import Logger, WandBLogger
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from mixsize.algorithms.execution.composer_model import trained_parameters
from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother, Smoothing, Update

#: Where smoothing stands among the algorithms that change gradients.
Order = Literal["before_clipping", "after_clipping"]


class GradSmoothing(Algorithm):
    """Scales each step's gradients so that their global L2 norm follows its running average.

    Source: MixSize (ICLR 2021 submission), section "Gradient smoothing": ``gbar_t = a * gbar_{t-1} + (1 - a) * g_t``,
    ``gbar_0 = g_0``, gradients times ``gbar_t / (g_t + eps)``, computed by
    :class:`~mixsize.algorithms.GradientSmoother`.

    Runs on ``AFTER_TRAIN_BATCH`` (smooth): once per step whatever the microbatches, on gradients averaged over ranks
    and, under AMP, unscaled. The norm is over the parameters of the optimisers. A norm that is not finite leaves
    gradients and average as they are. Also runs on ``INIT`` (order), ``FIT_START`` (check), and ``BATCH_END``,
    ``EPOCH_END`` and ``FIT_END`` (log).

    +--------------------------+---------------------------------------------------------------------+
    | Key                      | Logged data                                                         |
    +==========================+=====================================================================+
    | ``smoothing/grad_norm``  | L2 norm over all gradients before smoothing, each step              |
    +--------------------------+---------------------------------------------------------------------+
    | ``smoothing/average``    | running average of the norm after the step (with ``per_size``, the  |
    |                          | average of the step's image side); NaN before the first finite norm |
    +--------------------------+---------------------------------------------------------------------+
    | ``smoothing/factor``     | the number that the step's gradients were multiplied by             |
    +--------------------------+---------------------------------------------------------------------+

    Values stay on the device and are logged together, each under its own step: every ``log_interval`` steps, at the
    end of an epoch and of the fit, and before a checkpoint. W&B rejects steps behind its newest and gets the newest
    values only, unless ``log_interval=1``. ``InMemoryLogger`` stamps values with the time of logging. A run that is
    killed loses the values not yet logged.

    Args:
        alpha: share of the old average kept in each step, in [0, 1).
        eps: added to the norm in the denominator, above 0.
        update: ``"before"``: the average takes in the step's norm before it is used, as in the paper's equation and
            its released code. ``"after"``: the step is scaled by the average of the preceding steps.
        order: ``"before_clipping"``: Composer's ``GradientClipping`` bounds the smoothed gradients.
            ``"after_clipping"``: the averaged norms are those of clipped gradients. Either moves this algorithm in
            ``state.algorithms``. None keeps the list as given, of which Composer runs the *last* first on
            ``AFTER_TRAIN_BATCH``.
        per_size: keep one average per image side instead of one for all.
        input_key: of the images in the batch, ``(N, C, H, W)``; read only with ``per_size``, which uses W.
        log_interval: steps between transfers of the logged values to the host.

    Raises:
        ValueError: an argument out of its range; sparse gradients; a model under FSDP1, whose gradients are parts; a
            batch without images under ``per_size``; a checkpoint saved with another ``per_size``.

    Example:
        >>> algorithm = GradSmoothing(alpha=0.95, per_size=True)
    """

    def __init__(
        self,
        alpha: float = 0.9,
        eps: float = 1e-6,
        update: Update = "before",
        *,
        order: Order | None = "before_clipping",
        per_size: bool = False,
        input_key: int | str = 0,
        log_interval: int = 50,
    ) -> None:
        if order is not None and order not in get_args(Order):
            raise ValueError(f"order is {order!r}; it must be None or one of {', '.join(map(repr, get_args(Order)))}")
        if log_interval < 1 or int(log_interval) != log_interval:
            raise ValueError(f"log_interval is {log_interval}; it must be a whole number of steps, at least 1")
        self.smoother = GradientSmoother(alpha, eps, update)
        self.order: Order | None = order
        self.per_size, self.input_key, self.log_interval = per_size, input_key, log_interval
        #: The newest step; None before the first and after a step without gradients.
        self.last: Smoothing | None = None
        self._unlogged: list[tuple[int, Smoothing]] = []
        self._logger: Logger | None = None

    def __repr__(self) -> str:
        core = self.smoother
        return (
            f"GradSmoothing(alpha={core.alpha}, eps={core.eps}, update={core.update!r}, order={self.order!r}, "
            f"per_size={self.per_size}, input_key={self.input_key!r}, log_interval={self.log_interval})"
        )

    def match(self, event: Event, state: State) -> bool:
        """Run when gradients are ready and when logged values are due."""
        return event in _HANDLERS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Call the event's method."""
        _HANDLERS[event](self, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The averages in plain values. Logs the waiting values, which a run resumed from here would not have."""
        self._log_all()
        return {"per_size": self.per_size, **self.smoother.state_dict()}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore the averages."""
        if state["per_size"] != self.per_size:
            raise ValueError(f"the checkpoint was saved with per_size={state['per_size']}, not {self.per_size}")
        self.smoother.load_state_dict(state)

    def _place(self, state: State, logger: Logger) -> None:
        self._logger = logger
        if self.order is not None:
            state.algorithms = _placed(self, state.algorithms, self.order)

    def _refuse_fsdp1(self, state: State, logger: Logger) -> None:
        if any(isinstance(module, FullyShardedDataParallel) for module in state.model.modules()):
            raise ValueError("GradSmoothing needs whole gradients or DTensors; train with DDP or FSDP2, not FSDP1")

    def _smooth(self, state: State, logger: Logger) -> None:
        key = self._size_px(state) if self.per_size else None
        self.last = step = self.smoother.smooth(trained_parameters(state), key=key)
        if step is not None and logger.destinations:
            self._unlogged.append((int(state.timestamp.batch), step))

    def _size_px(self, state: State) -> int:
        images = state.batch_get_item(self.input_key)
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"per_size needs a batch whose item {self.input_key!r} is images (N, C, H, W), not {found}"
            )
        return images.shape[-1]

    def _log_due(self, state: State, logger: Logger) -> None:
        # Composer has just read the loss: the device is idle, and the transfer waits for nothing.
        if len(self._unlogged) >= self.log_interval:
            self._log(behind=0)

    def _log_all(self, state: State | None = None, logger: Logger | None = None) -> None:
        if self._unlogged:
            self._log(behind=1)

    def _log(self, behind: int) -> None:
        """Log the waiting values; ``behind`` is by how many steps the loggers' clock is ahead of the newest."""
        assert self._logger is not None
        steps = [step for step, _ in self._unlogged]
        values = torch.stack([value for _, smoothing in self._unlogged for value in smoothing]).view(-1, 3).tolist()
        self._unlogged.clear()
        rows = [{f"smoothing/{name}": v for name, v in zip(Smoothing._fields, row, strict=True)} for row in values]
        for destination in self._logger.destinations:
            if isinstance(destination, WandBLogger):
                destination.log_metrics(rows[-1], step=steps[-1] + behind)
                continue
            for step, row in zip(steps, rows, strict=True):
                destination.log_metrics(row, step=step)


_HANDLERS = {
    Event.INIT: GradSmoothing._place,
    Event.FIT_START: GradSmoothing._refuse_fsdp1,
    Event.AFTER_TRAIN_BATCH: GradSmoothing._smooth,
    Event.BATCH_END: GradSmoothing._log_due,
    Event.EPOCH_END: GradSmoothing._log_all,
    Event.FIT_END: GradSmoothing._log_all,
}


def _placed(smoothing: GradSmoothing, algorithms: Sequence[Algorithm], order: Order) -> list[Algorithm]:
    """Composer runs the list backwards on its ``AFTER_`` events: the first to act stands last."""
    rest = [algorithm for algorithm in algorithms if algorithm is not smoothing]
    clipping = [i for i, algorithm in enumerate(rest) if isinstance(algorithm, GradientClipping)]
    if not clipping:
        return list(algorithms)
    at = clipping[-1] + 1 if order == "before_clipping" else clipping[0]
    return [*rest[:at], smoothing, *rest[at:]]
