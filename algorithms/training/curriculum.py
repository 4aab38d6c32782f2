"""Strengths of training settings that follow a progression."""

from __future__ import annotations

from collections.abc import Mapping

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.training.setters import Setter

#: A loader cuts and changes its views by it.
_OF_THE_LOADER = "magnitude"


class Curriculum(Algorithm):
    """Sets the strengths of a progression's phases at the start of each epoch.

    The ``magnitude`` of an augmentation policy is not among them: the loader reads it from the progression.

    Runs on ``EPOCH_START`` and on ``FIT_START``, for a run that resumes in mid-epoch. Has no state of its own: the
    values follow from the epoch.

    +------------------------+-------------------------------------------------------------------------------------+
    | Key                    | Logged data                                                                         |
    +========================+=====================================================================================+
    | ``mixsize/{setting}``  | value from here on, for each setting, at the start of each epoch                    |
    +------------------------+-------------------------------------------------------------------------------------+

    Args:
        progression: its phases have strengths.
        setters: setting -> function that takes its value, for instance :func:`drop_path_setter`, or None for the
            configured one, in phases that do not set it.

    Raises:
        ValueError: a setting of the progression without a setter.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(8, 4))
        >>> phases = (Phase(128, 30, strengths={"dropout": 0.1}), Phase(224, 30, strengths={"dropout": (0.1, 0.3)}))
        >>> progression = Progression(Base(224, 256), phases)
        >>> algorithm = Curriculum(progression, {"dropout": dropout_setter(network)})
    """

    def __init__(self, progression: Progression, setters: Mapping[str, Setter]) -> None:
        self.progression = progression
        self._setters: dict[str, Setter] = {}
        for name in progression.strengths:
            if name != _OF_THE_LOADER:
                if name not in setters:
                    raise ValueError(f"the progression sets {name}, which has no setter; give one, or leave it out")
                self._setters[name] = setters[name]

    def match(self, event: Event, state: State) -> bool:
        """Run before the first step of an epoch and of a resumed run."""
        return event in (Event.FIT_START, Event.EPOCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the epoch's values."""
        for name, set_value in self._setters.items():
            value = self.progression.strength_at(name, int(state.timestamp.epoch))
            set_value(value)
            if value is not None:
                logger.log_metrics({f"mixsize/{name}": value})
