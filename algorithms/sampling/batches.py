"""The two ways in which batches get their sizes: planned by the loader, or resized on the device.

Both say the shape of the current batch as (size_px, batch_size over all ranks, duplicates).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from composer.core import State
from composer.utils import dist

from mixsize.algorithms.regime.plan import EpochPlan, plan_sizes
from mixsize.algorithms.regime.planned_loader import PlannedLoader
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.sampling.resizing import resize_batch

#: (size_px, global batch_size, duplicates)
Shape = tuple[int, int, int]


class PlannedBatches:
    """Keeps a loader of planned batches and the Trainer at the same epoch, and checks batches against the plan.

    Args:
        loader: the Trainer's.
        input_key: of the images in a batch.
    """

    def __init__(self, loader: PlannedLoader, input_key: Any) -> None:
        self.loader = loader
        self._input_key = input_key
        self._length = len(loader)
        self._plan: EpochPlan | None = None

    def bind(self, regime: Regime | Progression, state: State) -> None:
        """Make the loader plan from another regime."""
        if regime == self.loader.regime:
            return
        largest = self.loader.batch_size
        self.loader.bind(regime)
        self._follow_length(state)
        if state.device_train_microbatch_size == largest:  # Not chosen by the user: Composer took it from the loader.
            state.device_train_microbatch_size = self.loader.batch_size

    def enter_epoch(self, state: State) -> None:
        """Plan the Trainer's epoch."""
        self.loader.set_epoch(int(state.timestamp.epoch))
        self._follow_length(state)
        self._plan = self.loader.plan()

    def leave_epoch(self, state: State) -> None:
        """Move the loader on: a checkpoint taken from here on belongs to the next epoch, which may be shorter."""
        self.loader.set_epoch(int(state.timestamp.epoch))
        self._follow_length(state)

    def shape(self, state: State) -> Shape:
        """The planned shape of the batch.

        Raises:
            RuntimeError: the batch has another shape.
        """
        assert self._plan is not None
        index = int(state.timestamp.batch_in_epoch)
        step, found = self._plan[index], tuple(state.batch_get_item(self._input_key).shape)
        expected = (step.num_images, 3, step.size_px, step.size_px)
        if found != expected:
            raise RuntimeError(
                f"batch {index} of epoch {int(state.timestamp.epoch)} has shape {found}; the plan says {expected}: "
                "another algorithm or transform changed it"
            )
        return step.size_px, step.batch_size * dist.get_world_size(), step.duplicates

    def resize(self, state: State) -> None:
        """Nothing: the loader decodes to the planned size."""

    def check_count(self, state: State) -> None:
        """Compare the Trainer's count of samples with the plan.

        Raises:
            ValueError: the Trainer counted duplicates as samples.
        """
        assert self._plan is not None
        done = int(state.timestamp.batch_in_epoch)
        expected = int(self._plan.offsets[done]) * self._plan.world_size
        counted = int(state.timestamp.sample_in_epoch)
        if counted != expected:
            raise ValueError(
                f"the Trainer counted {counted} samples in {done} steps on {expected} distinct images: pass "
                "loader.data_spec() to the Trainer, not the loader itself"
            )

    def _follow_length(self, state: State) -> None:
        """Correct the length that Composer saw first, but not one that the user cut short (a subset)."""
        if state.dataloader is self.loader and state.dataloader_len is not None:
            if int(state.dataloader_len) == self._length:
                state.dataloader_len = len(self.loader)
            self._length = len(self.loader)


class ResizedBatches:
    """Resizes the batches of any loader on the device, to sides drawn with the regime's shares.

    Args:
        regime: sides and shares.
        input_key: of the images in a batch.
        seed: of the draws; None for the Trainer's.
    """

    def __init__(self, regime: Regime | Progression, input_key: Any, seed: int | None) -> None:
        self._regime = regime
        self._input_key = input_key
        self._seed = seed
        self._sizes = np.empty(0, dtype=np.int32)

    def enter_epoch(self, state: State) -> None:
        """Draw the sides of the epoch; an FFCV loader decodes at the largest of them.

        Raises:
            ValueError: a loader without a length.
        """
        if state.dataloader_len is None:
            raise ValueError("the train_dataloader has no length; sides are drawn for an epoch of known length")
        seed, epoch = state.rank_zero_seed if self._seed is None else self._seed, int(state.timestamp.epoch)
        regime = self._regime.at_epoch(epoch)
        self._sizes = plan_sizes(regime, int(state.dataloader_len), seed, epoch)
        _decode_at(state.train_dataloader, max(choice.size_px for choice in regime.choices))

    def leave_epoch(self, state: State) -> None:
        """Nothing: sides are drawn when the next epoch is entered."""

    def shape(self, state: State) -> Shape:
        """The side drawn for the batch, with the images that it came with."""
        return self._size_px(state), len(state.batch_get_item(self._input_key)) * dist.get_world_size(), 1

    def resize(self, state: State) -> None:
        """Resize the batch, or the microbatch, which is on the device by now."""
        images = state.batch_get_item(self._input_key)
        state.batch_set_item(self._input_key, resize_batch(images, self._size_px(state)))

    def check_count(self, state: State) -> None:
        """Nothing: every image is a sample."""

    def _size_px(self, state: State) -> int:
        return int(self._sizes[int(state.timestamp.batch_in_epoch)])


def _decode_at(loader: Any, size_px: int) -> None:
    """Set the side that an FFCV loader's decoders produce; it allocates buffers for it when it is next iterated."""
    for pipeline in getattr(loader, "pipeline_specs", {}).values():
        if hasattr(pipeline.decoder, "output_size"):
            pipeline.decoder.output_size = (size_px, size_px)
