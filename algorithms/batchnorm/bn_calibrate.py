"""Batch-norm calibration before each evaluation of a Composer Trainer."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State, TimeUnit, get_precision_context
from composer.loggers import Logger
from torch import Tensor, nn

from mixsize.algorithms.batchnorm.calibration import StatisticsBank, batch_norm_layers
from mixsize.algorithms.execution.composer_model import network_of

_SIZE_IN_LABEL = re.compile(r"(?:^|_)(\d+)px$")


class BNCalibrate(Algorithm):
    """Evaluates at each size with batch-norm statistics measured at that size (MixSize paper, section 4.2).

    Before an evaluator's first batch, ``num_batches`` forward passes over training images of its size re-estimate every
    batch-norm layer's mean and variance (:func:`~mixsize.algorithms.calibrate_batch_norm`). The network
    carries them while that evaluator runs, so they are what its metrics are computed with, and has its own back, bit
    for bit, afterwards. A checkpoint holds the network's own statistics whenever it is taken.

    For networks trained at mixed sizes. On networks trained at one size calibration costs accuracy, and the paper
    reports those without it. In a list of algorithms it belongs behind those that change the weights for evaluation,
    such as Composer's ``EMA``: it then measures the weights that are evaluated.

    Runs on ``INIT`` and ``FIT_START`` (checks), ``EVAL_BEFORE_ALL`` and ``EVAL_STANDALONE_START`` (is it the last),
    ``EVAL_START`` (measure and put in) and ``EVAL_END`` (put back). After an evaluation that ended in an exception, the
    next ``INIT``, ``BATCH_START``, ``EVAL_START`` or ``PREDICT_START`` puts back.

    +---------------------------------+-------------------------------------------------------------+
    | Key                             | Logged data                                                 |
    +=================================+=============================================================+
    | ``calibration/{label}/batches`` | forward passes on this rank that the evaluator's statistics |
    |                                 | were measured on, each calibration                          |
    +---------------------------------+-------------------------------------------------------------+
    | ``calibration/{label}/seconds`` | wall-clock time of them, loading included                   |
    +---------------------------------+-------------------------------------------------------------+

    Args:
        loader_for: takes an image side in pixels and gives batches of training images of that side as the network
            takes them, alone or first in a tuple or list; each rank its own part. Called anew for each calibration.
            The first ``num_batches`` must be a fair sample, so shuffle a file that is sorted by class.
        num_batches: forward passes on each rank, at most; the paper uses 200.
        when: "each" evaluation, or the "last" only: the one at the end of training, and those of ``Trainer.eval()``.
        tolerance: ends a calibration early, see :func:`~mixsize.algorithms.batchnorm.calibration.calibrate_batch_norm`.
        sizes: evaluator label -> image side in pixels, None to evaluate with the network's own statistics. A label that
            is not listed must end in its size, as in ``eval_224px``.

    Attributes:
        bank: the statistics last measured at each size; travels in checkpoints.
        seconds: wall-clock time of all calibrations in this process, loading included.

    Raises:
        ValueError: at ``FIT_START``, evaluators whose size is not known or listed labels that no evaluator has.
        NoEffectWarning: warned of for a network without batch norm; evaluation then goes on as it is.

    Example:
        >>> def loader_for(size_px):
        ...     return MixSizeLoader("train.beton", Regime.fixed(Base(size_px, 256)), augment=CenterCrop())
        >>> Trainer(model, train_loader, eval_dataloader=evaluators, algorithms=[BNCalibrate(loader_for)])
    """

    def __init__(
        self,
        loader_for: Callable[[int], Iterable[Any]],
        *,
        num_batches: int = 200,
        when: Literal["each", "last"] = "each",
        tolerance: float | None = None,
        sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        if num_batches < 1:
            raise ValueError(f"num_batches is {num_batches}; it must be at least 1")
        if when not in ("each", "last"):
            raise ValueError(f"when is {when!r}; it must be 'each' or 'last'")
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance is {tolerance}; it must lie above 0")
        for label, size_px in (sizes or {}).items():
            if size_px is not None and size_px < 1:
                raise ValueError(f"sizes[{label!r}] is {size_px}; it must be at least 1, or None")
        self.bank = StatisticsBank()
        self.seconds = 0.0
        self._loader_for = loader_for
        self._num_batches = num_batches
        self._when = when
        self._tolerance = tolerance
        self._sizes = dict(sizes or {})
        self._at_end = False
        self._put_in: ExitStack | None = None

    def match(self, event: Event, state: State) -> bool:
        """Run around evaluations, and before a training step only where one left something to put back."""
        return event in _HANDLERS and (event not in _ONLY_PUT_BACK or self._put_in is not None)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Hand the event to its method."""
        _HANDLERS[event](self, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The statistics last measured at each size, in plain values and tensors."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up the statistics."""
        self.bank.load_state_dict(state["bank"])

    def _begin(self, state: State, logger: Logger) -> None:
        self._put_back(state, logger)
        network = network_of(state)
        if not batch_norm_layers(network):
            warnings.warn(
                NoEffectWarning(f"{type(network).__name__} has no batch-norm layer; BNCalibrate changes nothing"),
                stacklevel=2,
            )

    def _check_labels(self, state: State, logger: Logger) -> None:
        labels = [evaluator.label for evaluator in state.evaluators]
        unknown = [label for label in self._sizes if label not in labels]
        if unknown:
            raise ValueError(
                f"sizes lists the evaluator {unknown[0]!r}; the Trainer's are {', '.join(map(repr, labels)) or 'none'}"
            )
        for label in labels:
            self._size_of(label)

    def _note_end(self, state: State, logger: Logger) -> None:
        self._at_end = _training_ends(state)

    def _note_standalone(self, state: State, logger: Logger) -> None:
        self._at_end = True

    def _enter(self, state: State, logger: Logger) -> None:
        self._put_back(state, logger)
        label = state.dataloader_label
        assert label is not None
        network, size_px = network_of(state), self._size_of(label)
        if size_px is None or (self._when == "last" and not self._at_end) or not batch_norm_layers(network):
            return
        started = time.perf_counter()
        # As Composer evaluates: FP8 wants batches of special sizes.
        with get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False):
            result = self.bank.calibrate(
                network,
                size_px,
                self._loader_for(size_px),
                max_batches=self._num_batches,
                tolerance=self._tolerance,
            )
        seconds = time.perf_counter() - started
        self.seconds += seconds
        logger.log_metrics(
            {f"calibration/{label}/batches": result.batches_used, f"calibration/{label}/seconds": seconds}
        )
        with ExitStack() as stack:
            own = stack.enter_context(self.bank.use(network, size_px))
            stack.callback(network.register_state_dict_post_hook(_saving(own)).remove)
            self._put_in = stack.pop_all()

    def _put_back(self, state: State, logger: Logger) -> None:
        if self._put_in is not None:
            self._put_in.close()
            self._put_in = None

    def _size_of(self, label: str) -> int | None:
        if label in self._sizes:
            return self._sizes[label]
        found = _SIZE_IN_LABEL.search(label)
        if found is None:
            raise ValueError(
                f"the evaluator {label!r} does not end in its image size, as in 'eval_224px'; give it in sizes, or "
                "None there to leave it uncalibrated"
            )
        return int(found[1])


_HANDLERS = {
    Event.INIT: BNCalibrate._begin,
    Event.FIT_START: BNCalibrate._check_labels,
    Event.BATCH_START: BNCalibrate._put_back,
    Event.PREDICT_START: BNCalibrate._put_back,
    Event.EVAL_BEFORE_ALL: BNCalibrate._note_end,
    Event.EVAL_STANDALONE_START: BNCalibrate._note_standalone,
    Event.EVAL_START: BNCalibrate._enter,
    Event.EVAL_END: BNCalibrate._put_back,
}
_ONLY_PUT_BACK = (Event.BATCH_START, Event.PREDICT_START, Event.EVAL_END)


def _training_ends(state: State) -> bool:
    """Whether no training step is left; asked while the state still shows the training loader."""
    elapsed = state.get_elapsed_duration()
    if elapsed is None or elapsed >= 1.0:
        return True
    # An evaluation by batches comes before the epoch counts as done, and is then not repeated after it.
    assert state.max_duration is not None
    return (
        state.max_duration.unit == TimeUnit.EPOCH
        and int(state.timestamp.epoch) + 1 >= int(state.max_duration)
        and state.dataloader_len is not None
        and int(state.timestamp.batch_in_epoch) >= int(state.dataloader_len)
    )


def _saving(own: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., None]:
    """A hook that saves the network's own statistics in place of the evaluation's."""

    def after_state_dict(module: nn.Module, saved: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, (mean, var) in own.items():
            saved[f"{prefix}{name}.running_mean"] = mean
            saved[f"{prefix}{name}.running_var"] = var

    return after_state_dict
