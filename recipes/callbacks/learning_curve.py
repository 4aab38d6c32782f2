"""Accuracy and cost of a run at each evaluation."""

from __future__ import annotations

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.recipes.records.run_record import CurvePoint


class LearningCurve(Callback):
    """Records accuracies, steps, seconds and pixels at every evaluation during training; kept in checkpoints.

    Args:
        sampling: counts the shapes trained on.
        clock: counts the seconds.
        accuracy: name of the evaluation metric, a fraction.
        labels: evaluator's label -> image size in pixels.

    Attributes:
        points: one for each evaluation, in order.
    """

    def __init__(self, sampling: MixSizeSampling, clock: TrainingClock, accuracy: str, labels: dict[str, int]) -> None:
        self._sampling = sampling
        self._clock = clock
        self._accuracy = accuracy
        self._labels = labels
        self.points: list[CurvePoint] = []
        self._loss_sum = 0.0
        self._loss_steps = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add up the losses, which Composer has already read off the device."""
        loss = (state.total_loss_dict or {}).get("loss/train/total")
        if loss is not None:
            self._loss_sum += float(loss)
            self._loss_steps += 1

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Add a point."""
        self.note(state)

    def note(self, state: State) -> None:
        """Add a point for the last evaluation; it replaces a point of the same step."""
        time = state.timestamp
        metrics = state.eval_metrics
        point = CurvePoint(
            step=int(time.batch),
            epoch=int(time.epoch),
            seconds=self._clock.seconds,
            pixels=sum(s**2 * b * d * steps for (s, b, d), steps in self._sampling.shapes.items()),
            train_loss=self._loss_sum / self._loss_steps if self._loss_steps else None,
            accuracy={
                str(size): float(metrics[label][self._accuracy].compute()) for label, size in self._labels.items()
            },
        )
        if self.points and self.points[-1].step == point.step:
            self.points[-1] = point.model_copy(update={"train_loss": self.points[-1].train_loss})
        else:
            self.points.append(point)
        self._loss_sum, self._loss_steps = 0.0, 0

    def continue_from(self, points: list[CurvePoint]) -> None:
        """Take the points of a record of the run; what follows begins after them."""
        self.points = list(points)
        self._loss_sum, self._loss_steps = 0.0, 0

    def replace_last_accuracy(self, accuracy: dict[str, float]) -> None:
        """Replace the accuracies of the last point."""
        self.points[-1] = self.points[-1].model_copy(update={"accuracy": accuracy})

    def state_dict(self) -> dict[str, Any]:
        """The points so far, in plain values."""
        return {
            "points": [point.model_dump() for point in self.points],
            "loss_sum": self._loss_sum,
            "loss_steps": self._loss_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the points."""
        self.points = [CurvePoint.model_validate(point) for point in state["points"]]
        self._loss_sum, self._loss_steps = state["loss_sum"], state["loss_steps"]
