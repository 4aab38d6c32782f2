"""Batch-norm calibration before each evaluation of a Composer Trainer."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State, TimeUnit
from composer.loggers import Logger
from torch import Tensor, nn

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.algorithms.execution.composer_model import network_of, training_precision

_SIZE_IN_LABEL = re.compile(r"(?:^|_)(\d+)px$")


class BNCalibrate(Algorithm):
    """Evaluates at each size with batch-norm statistics measured at that size (MixSize paper, section 4.2).

    Before an evaluator's first batch, ``num_batches`` forward passes over training images of its size re-estimate the
    mean and variance of every batch-norm layer (:func:`~mixsize.algorithms.calibrate_batch_norm`). The network carries
    them while that evaluator runs and gets its own back, bit for bit, afterwards. Checkpoints always hold the network's
    own statistics.

    For networks trained at mixed sizes: calibration costs accuracy on networks trained at one size. For a moving
    average of the weights, list :class:`~mixsize.algorithms.ModelEMA` after it. Composer's ``EMA`` would take the
    statistics of the evaluation for those of its average.

    Runs on ``INIT`` and ``FIT_START`` (check), ``EVAL_BEFORE_ALL`` and ``EVAL_STANDALONE_START`` (is it the last
    evaluation), ``EVAL_START`` (calibrate) and ``EVAL_END`` (restore). After an evaluation that raised an exception,
    the next ``INIT``, ``BATCH_START``, ``EVAL_START`` or ``PREDICT_START`` restores.

    +---------------------------------+-----------------------------------------------------------+
    | Key                             | Logged data, at each calibration                          |
    +=================================+===========================================================+
    | ``calibration/{label}/batches`` | forward passes on this rank                               |
    +---------------------------------+-----------------------------------------------------------+
    | ``calibration/{label}/seconds`` | wall-clock time of the forward passes, loading included   |
    +---------------------------------+-----------------------------------------------------------+

    Args:
        loader_for: takes an image side in pixels and returns batches of training images of that side: tensors, or
            tuples or lists that begin with one; each rank its own part. Augment them as in training, as the paper's
            released code does. Called anew for each calibration. The first ``num_batches`` must be a fair sample, so
            shuffle a file that is sorted by class.
        num_batches: upper bound on the forward passes on each rank; the paper uses 200.
        when: ``"each"`` evaluation, or only the ``"last"``: at the end of training, and in ``Trainer.eval()``.
        sizes: evaluator label -> image side in pixels, or None to evaluate with the network's own statistics. A label
            that is not listed must end in its size, as in ``eval_224px``.

    Attributes:
        bank: the statistics last measured at each size; saved in checkpoints.
        seconds: wall-clock time of all calibrations in this process, loading included.

    Raises:
        ValueError: an argument out of its range. At ``FIT_START``: an evaluator of unknown size, or a label in
            ``sizes`` that no evaluator has.
        NoEffectWarning: warned for a network without batch norm, which is evaluated as it is.

    Example:
        >>> def loader_for(size_px):
        ...     return (torch.rand(16, 3, size_px, size_px) for _ in range(10))
        >>> calibrate = BNCalibrate(loader_for, num_batches=10, when="last", sizes={"validation": 224})
    """

    def __init__(
        self,
        loader_for: Callable[[int], Iterable[Any]],
        *,
        num_batches: int = 200,
        when: Literal["each", "last"] = "each",
        sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        if num_batches < 1:
            raise ValueError(f"num_batches is {num_batches}; it must be at least 1")
        if when not in ("each", "last"):
            raise ValueError(f"when is {when!r}; it must be 'each' or 'last'")
        for label, size_px in (sizes or {}).items():
            if size_px is not None and size_px < 1:
                raise ValueError(f"sizes[{label!r}] is {size_px}; it must be at least 1, or None")
        self.bank = StatisticsBank()
        self.seconds = 0.0
        self._loader_for = loader_for
        self._num_batches = num_batches
        self._when = when
        self._sizes = dict(sizes or {})
        self._is_last = False
        self._in_use: ExitStack | None = None

    @property
    def is_active(self) -> bool:
        """Whether the evaluation that runs, or ran last, has calibrated statistics where there is batch norm."""
        return self._when == "each" or self._is_last

    def match(self, event: Event, state: State) -> bool:
        """Run around evaluations, and on other events only while the network carries an evaluation's statistics."""
        return event in _HANDLERS and (event not in _ONLY_RESTORE or self._in_use is not None)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Call the event's method."""
        _HANDLERS[event](self, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The bank in plain values and tensors."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore the bank."""
        self.bank.load_state_dict(state["bank"])

    def _check_network(self, state: State, logger: Logger) -> None:
        self._restore(state, logger)
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
                f"sizes lists the evaluator {unknown[0]!r}; the Trainer has {', '.join(map(repr, labels)) or 'none'}"
            )
        for label in labels:
            self._size_of(label)

    def _note_last(self, state: State, logger: Logger) -> None:
        self._is_last = _training_ends(state)

    def _note_standalone(self, state: State, logger: Logger) -> None:
        self._is_last = True

    def _calibrate(self, state: State, logger: Logger) -> None:
        self._restore(state, logger)
        label = state.dataloader_label
        assert label is not None
        network, size_px = network_of(state), self._size_of(label)
        if size_px is None or (self._when == "last" and not self._is_last) or not batch_norm_layers(network):
            return
        started = time.perf_counter()
        with training_precision(state):
            result = self.bank.calibrate(network, size_px, self._loader_for(size_px), max_batches=self._num_batches)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        logger.log_metrics(
            {f"calibration/{label}/batches": result.batches_used, f"calibration/{label}/seconds": seconds}
        )
        with ExitStack() as stack:
            own = stack.enter_context(self.bank.use(network, size_px))
            stack.callback(network.register_state_dict_post_hook(_saving(own)).remove)
            self._in_use = stack.pop_all()

    def _restore(self, state: State, logger: Logger) -> None:
        if self._in_use is not None:
            self._in_use.close()
            self._in_use = None

    def _size_of(self, label: str) -> int | None:
        if label in self._sizes:
            return self._sizes[label]
        found = _SIZE_IN_LABEL.search(label)
        if found is None:
            raise ValueError(
                f"the label of evaluator {label!r} does not end in its image size, as in 'eval_224px'; list it in "
                "sizes, with None to leave it uncalibrated"
            )
        return int(found[1])


_HANDLERS = {
    Event.INIT: BNCalibrate._check_network,
    Event.FIT_START: BNCalibrate._check_labels,
    Event.BATCH_START: BNCalibrate._restore,
    Event.PREDICT_START: BNCalibrate._restore,
    Event.EVAL_BEFORE_ALL: BNCalibrate._note_last,
    Event.EVAL_STANDALONE_START: BNCalibrate._note_standalone,
    Event.EVAL_START: BNCalibrate._calibrate,
    Event.EVAL_END: BNCalibrate._restore,
}
_ONLY_RESTORE = (Event.BATCH_START, Event.PREDICT_START, Event.EVAL_END)


def _training_ends(state: State) -> bool:
    """Whether no training step is left; the state must still hold the training loader."""
    elapsed = state.get_elapsed_duration()
    if elapsed is None or elapsed >= 1.0:
        return True
    # An evaluation after the last batch runs before the epoch counts as done.
    assert state.max_duration is not None
    return (
        state.max_duration.unit == TimeUnit.EPOCH
        and int(state.timestamp.epoch) + 1 >= int(state.max_duration)
        and state.dataloader_len is not None
        and int(state.timestamp.batch_in_epoch) >= int(state.dataloader_len)
    )


def _saving(own: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., None]:
    """A hook that writes the network's own statistics into a state dict in place of the evaluation's."""

    def after_state_dict(module: nn.Module, saved: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, (mean, var) in own.items():
            saved[f"{prefix}{name}.running_mean"] = mean
            saved[f"{prefix}{name}.running_var"] = var

    return after_state_dict
