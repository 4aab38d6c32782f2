"""The part of a loader of planned batches that algorithms rely on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime


class PlannedDataset(Protocol):
    """The ``dataset`` of a loader of planned batches.

    Attributes:
        current_step: the step that the last batch belongs to; None before the first.
    """

    current_step: Step | None

    def peek(self) -> Iterator[Any]:
        """The current epoch's batches from its start; counts neither epochs nor steps."""
        ...


@runtime_checkable
class PlannedLoader(Protocol):
    """A loader whose batches follow an epoch plan, for instance :class:`~mixsize.ffcv_loaders.MixSizeLoader`."""

    @property
    def dataset(self) -> PlannedDataset:
        """Serves the batches."""
        ...

    @property
    def regime(self) -> Regime | Progression:
        """The regime that epochs are planned from."""
        ...

    @property
    def batch_size(self) -> int | None:
        """Images in this rank's largest batch, duplicates counted."""
        ...

    @property
    def world_size(self) -> int:
        """Ranks that share each batch."""
        ...

    def bind(self, regime: Regime | Progression) -> None:
        """Plan from another regime from the next iteration on."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Serve ``epoch``, counted from 0, at the next iteration."""
        ...

    def plan(self) -> EpochPlan:
        """The current epoch's steps on this rank."""
        ...

    def __len__(self) -> int:
        """Steps of the current epoch."""
        ...
