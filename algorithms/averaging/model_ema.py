"""The exponential moving average of a network's weights, evaluated in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from composer.algorithms import EMA
from composer.core import Algorithm, Event, State, TimeUnit
from composer.loggers import Logger
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from mixsize.algorithms.execution.composer_model import network_of


class ModelEMA(Algorithm):
    """Averages weights and batch-norm statistics as timm does, with the arguments of Composer's ``EMA``.

    Evaluations see the average, and training goes on from its own weights, bit for bit. A checkpoint holds both. It
    stands in for Composer's ``EMA``, which

    - gives the average's statistics to the network and the evaluation's to the average where ``BNCalibrate`` restores
      statistics at the same event;
    - averages whole numbers in rounded steps, such as the position indices of Swin;
    - forgets the average without a word when a run on several ranks goes on with one, or the reverse;
    - cannot be made with ``smoothing`` alone.

    An update counts a step, or an epoch, whatever the step's batch: under changing batches a half-life in steps spans
    more images where batches are larger, and a half-life in epochs does not depend on them. List it after
    ``BNCalibrate``.

    Runs on ``BATCH_END`` or ``EPOCH_END`` (update), ``EVAL_BEFORE_ALL`` and ``EVAL_STANDALONE_START`` (put the average
    in place), ``EVAL_AFTER_ALL`` and ``EVAL_STANDALONE_END`` (restore). After an evaluation that raised an exception,
    the next ``BATCH_START`` restores.

    Args:
        half_life: after which weights count half, in steps (``"1000ba"``) or epochs (``"2ep"``); by default 1000 steps.
        smoothing: weight in (0, 1) of the average so far at an update, instead of ``half_life``.
        ema_start: the average begins with the first update after this much of training: ``"0.1dur"``, ``"5ep"`` or
            ``"500ba"``. Until then evaluations see the weights as they are.
        update_interval: between updates; by default one step or epoch, as the unit of ``half_life``.

    Raises:
        ValueError: both ``half_life`` and ``smoothing``, units that differ, or a time out of its range.

    Example:
        >>> algorithms = [ModelEMA(half_life="100ba")]
    """

    def __init__(
        self,
        half_life: str | None = None,
        smoothing: float | None = None,
        ema_start: str = "0.0dur",
        update_interval: str | None = None,
    ) -> None:
        if smoothing is None:
            half_life = half_life or "1000ba"
        elif half_life is None:
            update_interval = update_interval or "1ba"
        try:
            times = EMA(half_life, smoothing, ema_start, update_interval)  # Composer reads and checks the times.
        except ZeroDivisionError as error:
            raise ValueError(f"half_life is {half_life}; it must be at least 1") from error
        kept = times.smoothing
        if kept is None or not 0 < kept < 1:
            raise ValueError(
                f"an update would keep the fraction {kept} of the average; smoothing, or 0.5 to the power of "
                "update_interval / half_life, must be in (0, 1)"
            )
        self.smoothing: float = kept
        self._start, self._interval, self._update_event = times.ema_start, times.update_interval, times.update_event
        self._average: ModelEmaV3 | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._in_use: ExitStack | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there is an average, which evaluations see."""
        return self._average is not None or self._loaded is not None

    def match(self, event: Event, state: State) -> bool:
        """Run at updates and around evaluations."""
        return event == self._update_event or event in _BEGIN or event in _END

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Update, put the average in place, or restore."""
        if event == self._update_event:
            self._update(state)
            return
        if self._in_use is not None:
            self._in_use.close()
            self._in_use = None
        if event in _BEGIN:
            with ExitStack() as stack:
                stack.enter_context(self.in_place(state))
                self._in_use = stack.pop_all()

    @contextmanager
    def in_place(self, state: State) -> Iterator[None]:
        """A context in which the network has the averaged weights; its own return afterwards, bit for bit."""
        network = network_of(state)
        if not self.has_begun:
            yield
            return
        own = _copied(network.state_dict())
        network.load_state_dict(self._averaged(state).module.state_dict())
        try:
            yield
        finally:
            network.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights under the network's names; None before there are any."""
        weights = self._loaded if self._average is None else _copied(self._average.module.state_dict())
        return {"weights": weights}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore the averaged weights."""
        self._average, self._loaded = None, state["weights"]

    def _update(self, state: State) -> None:
        if not self.has_begun:
            if self._starts(state):
                self._averaged(state)
        elif int(state.timestamp.get(self._interval.unit)) % int(self._interval) == 0:
            self._averaged(state).update(network_of(state))

    def _starts(self, state: State) -> bool:
        if self._start.unit == TimeUnit.DURATION:
            elapsed = state.get_elapsed_duration()
            return elapsed is not None and elapsed >= self._start
        return state.timestamp.get(self._start.unit) >= self._start

    def _averaged(self, state: State) -> ModelEmaV3:
        """The average, on the network's device; that of the network's own weights if there was none."""
        if self._average is None:
            self._average = ModelEmaV3(network_of(state), decay=self.smoothing)
            if self._loaded is not None:
                self._average.module.load_state_dict(self._loaded)
                self._loaded = None
        return self._average


_BEGIN = (Event.EVAL_BEFORE_ALL, Event.EVAL_STANDALONE_START)
_END = (Event.EVAL_AFTER_ALL, Event.EVAL_STANDALONE_END, Event.BATCH_START)


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
