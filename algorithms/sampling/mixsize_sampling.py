"""MixSize sampling attached to a Composer Trainer."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from mixsize.algorithms.execution.planned_loader import PlannedLoader
from mixsize.algorithms.regime.plan import EpochPlan, plan_sizes
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.sampling.resizing import resize_batch

log = logging.getLogger(__name__)

#: (size_px, global batch_size, duplicates)
Shape = tuple[int, int, int]


class MixSizeSampling(Algorithm):
    """Trains at image sizes, batch sizes and duplicates drawn from a regime at every step.

    With a loader of planned batches (:class:`~mixsize.ffcv_loaders.MixSizeLoader`,
    :class:`~mixsize.ffcv_loaders.TorchMixSizeLoader`) it binds the regime before iteration starts, keeps the
    loader's epoch in step with the Trainer's, and checks each batch's shape against the plan.

    With any other loader it resizes each batch on the device to a side drawn with the regime's shares; batch and
    duplicates then stay as the loader brings them, which is said once in the log.

    Runs on ``BEFORE_LOAD`` and ``FIT_START`` (bind), ``EPOCH_START`` and ``EPOCH_END`` (epoch), ``AFTER_DATALOADER``
    (check), ``BEFORE_FORWARD`` (resize) and ``BATCH_END`` (sample count).

    +---------------------------------+--------------------------------------------------------------+
    | Key                             | Logged data                                                  |
    +=================================+==============================================================+
    | ``mixsize/size_px``             | image side of the batch, in pixels, each step                |
    +---------------------------------+--------------------------------------------------------------+
    | ``mixsize/batch_size``          | distinct images of the batch, over all ranks, each step      |
    +---------------------------------+--------------------------------------------------------------+
    | ``mixsize/duplicates``          | augmented copies of each image, each step                    |
    +---------------------------------+--------------------------------------------------------------+
    | ``mixsize/sample_share/{S}px``  | fraction of the epoch's distinct images trained on at side S |
    |                                 | since the epoch or the run's start, at each epoch's end      |
    +---------------------------------+--------------------------------------------------------------+

    Args:
        regime: what is drawn; by default the loader's own, which only a loader of planned batches has.
        input_key: where the images stand in a batch, as in Composer's own algorithms; used to resize.
        seed: of the sides drawn for other loaders; by default the Trainer's.

    Raises:
        ValueError: no regime for a loader that has none, automatic microbatching, or a planned loader passed to the
            Trainer without its :meth:`~mixsize.ffcv_loaders.MixSizeLoader.data_spec`.

    Example:
        >>> regime = Regime.from_sizes("s144", Base(224, 256), "B+", batch_multiple=8)
        >>> loader = MixSizeLoader("train.beton", regime)
        >>> Trainer(model, loader.data_spec(), algorithms=[MixSizeSampling()], max_duration="90ep")
    """

    def __init__(
        self, regime: Regime | Progression | None = None, *, input_key: Any = 0, seed: int | None = None
    ) -> None:
        self.regime = regime
        self.input_key = input_key
        self.seed = seed
        #: How often each shape occurred in the run so far: (size_px, batch_size, duplicates) -> steps.
        self.shapes: Counter[Shape] = Counter()
        #: The shape of the step at hand, None before the first.
        self.last_shape: Shape | None = None
        #: Checksum of the shapes in the order they occurred; ranks that drew alike agree on it.
        self.sequence_crc = 0
        self._epoch_shapes: Counter[Shape] = Counter()
        self._length: int | None = None
        self._plan: EpochPlan | None = None
        self._sizes: np.ndarray | None = None

    def match(self, event: Event, state: State) -> bool:
        """Run wherever the plan and the Trainer's clock must agree."""
        return event in self.handlers()

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Hand the event to its method."""
        self.handlers()[event](state, logger)

    def handlers(self) -> dict[Event, Callable[[State, Logger], None]]:
        """The method that each event goes to."""
        return {
            Event.BEFORE_LOAD: self._bind,
            Event.FIT_START: self._start,
            Event.EPOCH_START: self._enter_epoch,
            Event.AFTER_DATALOADER: self._check,
            Event.BEFORE_FORWARD: self._resize,
            Event.BATCH_END: self._check_count,
            Event.EPOCH_END: self._end_epoch,
        }

    def state_dict(self) -> dict[str, Any]:
        """The shapes that occurred, in plain values."""
        return {
            "shapes": _listed(self.shapes),
            "epoch_shapes": _listed(self._epoch_shapes),
            "sequence_crc": self.sequence_crc,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Take up the count of shapes."""
        self.shapes = _counted(state["shapes"])
        self._epoch_shapes = _counted(state["epoch_shapes"])
        self.sequence_crc = int(state["sequence_crc"])

    def _bind(self, state: State, logger: Logger) -> None:
        loader = state.train_dataloader
        if loader is None:
            return  # It comes with fit(), whose FIT_START binds it.
        if state.auto_microbatching:
            raise ValueError(
                "device_train_microbatch_size='auto' settles on the first batches' memory and cannot follow changing "
                "shapes; give a number of images, or leave it out"
            )
        if not isinstance(loader, PlannedLoader):
            if self.regime is None:
                raise ValueError(
                    f"the Trainer's train_dataloader is a {type(loader).__name__}, which has no regime of its own; "
                    f"give {type(self).__name__} one, or use a mixsize loader"
                )
            return
        if self._length is None:
            self._length = len(loader)
        if self.regime is not None and self.regime != loader.regime:
            largest = loader.batch_size
            loader.bind(self.regime)
            self._follow_length(state, loader)
            if state.device_train_microbatch_size == largest:  # Not asked for: Composer took it from the loader.
                state.device_train_microbatch_size = loader.batch_size

    def _start(self, state: State, logger: Logger) -> None:
        self._bind(state, logger)
        if not isinstance(state.train_dataloader, PlannedLoader):
            log.warning(
                "%s: images of a %s are resized on the device; its batches and duplicates stay as they come",
                type(self).__name__,
                type(state.train_dataloader).__name__,
            )
        self._enter_epoch(state, logger)

    def _enter_epoch(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch_in_epoch) == 0:
            self._epoch_shapes.clear()
        epoch = int(state.timestamp.epoch)
        loader = state.train_dataloader
        if isinstance(loader, PlannedLoader):
            loader.set_epoch(epoch)
            self._follow_length(state, loader)
            self._plan = loader.plan()
            return
        if state.dataloader_len is None:
            raise ValueError("the train_dataloader has no length; sides are drawn for an epoch of known length")
        assert self.regime is not None
        seed = state.rank_zero_seed if self.seed is None else self.seed
        self._plan, self._sizes = None, plan_sizes(self.regime.at_epoch(epoch), int(state.dataloader_len), seed, epoch)

    def _follow_length(self, state: State, loader: PlannedLoader) -> None:
        """Composer keeps the length it first saw; one that the user cut short (a subset) stays."""
        if state.dataloader is loader and state.dataloader_len is not None:
            if int(state.dataloader_len) == self._length:
                state.dataloader_len = len(loader)
            self._length = len(loader)

    def _check(self, state: State, logger: Logger) -> None:
        index = int(state.timestamp.batch_in_epoch)
        images = state.batch_get_item(self.input_key)
        if self._plan is None:
            assert self._sizes is not None
            shape = (int(self._sizes[index]), len(images) * dist.get_world_size(), 1)
        else:
            step = self._plan[index]
            expected = (step.num_images, 3, step.size_px, step.size_px)
            if tuple(images.shape) != expected:
                raise RuntimeError(
                    f"batch {index} of epoch {int(state.timestamp.epoch)} has shape {tuple(images.shape)}; the plan "
                    f"says {expected}: another algorithm or transform changed it"
                )
            shape = (step.size_px, step.batch_size * dist.get_world_size(), step.duplicates)
        self.last_shape = shape
        self.shapes[shape] += 1
        self._epoch_shapes[shape] += 1
        self.sequence_crc = zlib.crc32(repr(shape).encode(), self.sequence_crc)
        logger.log_metrics(
            {"mixsize/size_px": shape[0], "mixsize/batch_size": shape[1], "mixsize/duplicates": shape[2]}
        )

    def _resize(self, state: State, logger: Logger) -> None:
        if self._sizes is None:
            return
        # Here rather than earlier: the batch, or the microbatch, is on the device by now.
        size_px = int(self._sizes[int(state.timestamp.batch_in_epoch)])
        state.batch_set_item(self.input_key, resize_batch(state.batch_get_item(self.input_key), size_px))

    def _check_count(self, state: State, logger: Logger) -> None:
        if self._plan is None:
            return
        done = int(state.timestamp.batch_in_epoch)
        expected = int(self._plan.offsets[done]) * self._plan.world_size
        counted = int(state.timestamp.sample_in_epoch)
        if counted != expected:
            raise ValueError(
                f"the Trainer counted {counted} samples in {done} steps that trained on {expected} distinct "
                "images: pass loader.data_spec() to the Trainer, not the loader itself"
            )

    def _end_epoch(self, state: State, logger: Logger) -> None:
        samples: Counter[int] = Counter()
        for (size_px, batch_size, _), steps in self._epoch_shapes.items():
            samples[size_px] += steps * batch_size
        total = sum(samples.values())
        logger.log_metrics({f"mixsize/sample_share/{size}px": count / total for size, count in samples.items()})
        if isinstance(state.train_dataloader, PlannedLoader):
            # A checkpoint taken from here on belongs to the next epoch.
            state.train_dataloader.set_epoch(int(state.timestamp.epoch))


def _listed(shapes: Counter[Shape]) -> list[list[int]]:
    return [[*shape, steps] for shape, steps in sorted(shapes.items())]


def _counted(rows: list[list[int]]) -> Counter[Shape]:
    return Counter({(size, batch, duplicates): steps for size, batch, duplicates, steps in rows})
