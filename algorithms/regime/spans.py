"""The steps of a whole run, without drawing its epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixsize.algorithms.regime.checks import MAX_EPOCHS
from mixsize.algorithms.regime.drawing import choices_of_epochs
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime


@dataclass(frozen=True)
class Span:
    """Consecutive epochs of one regime with the same steps.

    Attributes:
        regime: index in ``regimes``: of a progression, the phase.
        steps: of each choice of the regime, in each epoch.
        epochs: number of epochs; of a run's last span, not always whole.
    """

    regime: int
    steps: tuple[int, ...]
    epochs: float

    @property
    def steps_per_epoch(self) -> int:
        """Steps of each epoch."""
        return sum(self.steps)


def spans_of(
    regime: Regime | Progression,
    num_samples: int,
    seed: int,
    *,
    epochs: float | None = None,
    steps: int | None = None,
) -> Iterator[Span]:
    """The spans of a run of so many epochs or steps.

    Raises:
        ValueError: too few images for a regime, or a run of more than a million epochs.

    Example:
        >>> progression = Progression(Base(32, 64), (Phase(16, 2), Phase(32, 8)))
        >>> [(span.epochs, span.steps_per_epoch) for span in spans_of(progression, 6400, seed=0, epochs=5)]
        [(2, 25), (3, 100)]
    """
    assert (epochs is None) != (steps is None)
    for span in _endless(regime, num_samples, seed):
        asked = epochs if steps is None else steps / span.steps_per_epoch
        assert asked is not None
        if asked <= span.epochs:
            yield Span(span.regime, span.steps, asked)
            return
        yield span
        if steps is not None:
            steps -= int(span.epochs) * span.steps_per_epoch
        else:
            epochs = asked - span.epochs
    raise ValueError(f"the run is longer than {MAX_EPOCHS:,} epochs, the most that a plan has")


def part_of_pixels(regime: Regime | Progression, spans: Sequence[Span]) -> Callable[[float], float]:
    """Position in epochs -> part of the run's pixels that is done by then, in a line within each epoch.

    Args:
        regime: the regime of the run.
        spans: those of the run.

    Example:
        >>> progression = Progression(Base(32, 64), (Phase(16, 4), Phase(32, 1)))
        >>> done = part_of_pixels(progression, list(spans_of(progression, 6400, seed=0, epochs=5)))
        >>> [done(epoch) for epoch in (0, 2, 4, 4.5, 5)]
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    epochs, pixels = [0.0], [0.0]
    for span in spans:
        choices = regime.regimes[span.regime].choices
        of_epoch = sum(steps * choice.pixels for steps, choice in zip(span.steps, choices, strict=True))
        epochs.append(epochs[-1] + span.epochs)
        pixels.append(pixels[-1] + span.epochs * of_epoch)
    ends, parts = np.array(epochs), np.array(pixels) / pixels[-1]
    return lambda position: float(np.interp(position, ends, parts))


def _endless(regime: Regime | Progression, num_samples: int, seed: int) -> Iterator[Span]:
    starts = regime.starts if isinstance(regime, Progression) else (0,)
    for index, (part, start, end) in enumerate(zip(regime.regimes, starts, (*starts[1:], MAX_EPOCHS), strict=True)):
        if part.draw == "step":
            yield Span(index, part.step_counts(num_samples), end - start)
        else:
            yield from _of_drawn_epochs(part, index, num_samples, seed, start, end)


def _of_drawn_epochs(regime: Regime, index: int, num_samples: int, seed: int, start: int, end: int) -> Iterator[Span]:
    of_choice = [
        tuple(regime.epoch_steps(choice, num_samples) if choice is other else 0 for other in regime.choices)
        for choice in regime.choices
    ]
    done = start
    while done < end:
        drawn = choices_of_epochs(regime.sample_shares, min(max(64, 2 * done), end), seed)
        for choice in drawn[done:].tolist():
            yield Span(index, of_choice[choice], 1)
        done = len(drawn)
