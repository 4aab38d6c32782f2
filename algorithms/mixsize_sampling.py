"""MixSize sampling attached to a Composer Trainer."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from mixsize.algorithms.regime import Regime
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.ffcv_loaders.plan import EpochPlan, Step

#: (size_px, global batch_size, duplicates)
Shape = tuple[int, int, int]


class MixSizeSampling(Algorithm):
    """Trains at image sizes, batch sizes and duplicates drawn from a regime at every step.

    Binds the regime to the Trainer's :class:`~mixsize.ffcv_loaders.MixSizeLoader` before iteration starts, keeps
    the loader's epoch in step with the Trainer's, and checks each batch's shape against the plan.

    Runs on ``BEFORE_LOAD`` and ``FIT_START`` (bind), ``EPOCH_START`` and ``EPOCH_END`` (epoch), ``AFTER_DATALOADER``
    (check) and ``BATCH_END`` (sample count).

    +---------------------------------+-------------------------------------------------------------+
    | Key                             | Logged data                                                 |
    +=================================+=============================================================+
    | ``mixsize/size_px``             | image side of the batch, in pixels, each step               |
    +---------------------------------+-------------------------------------------------------------+
    | ``mixsize/batch_size``          | distinct images of the batch, over all ranks, each step     |
    +---------------------------------+-------------------------------------------------------------+
    | ``mixsize/duplicates``          | augmented copies of each image, each step                   |
    +---------------------------------+-------------------------------------------------------------+
    | ``mixsize/sample_share/{S}px``  | fraction of the epoch's distinct images trained on at side S |
    |                                 | since the epoch or the run's start, at each epoch's end     |
    +---------------------------------+-------------------------------------------------------------+

    Args:
        regime: what is drawn; by default the loader's own.

    Raises:
        ValueError: attached to a Trainer whose loader is not a ``MixSizeLoader``, with automatic microbatching, or
            with a loader passed to the Trainer without its :meth:`~mixsize.ffcv_loaders.MixSizeLoader.data_spec`.

    Example:
        >>> regime = Regime.from_sizes("s144", Base(224, 256), "B+", batch_multiple=8)
        >>> loader = MixSizeLoader("train.beton", regime)
        >>> Trainer(model, loader.data_spec(), algorithms=[MixSizeSampling()], max_duration="90ep")
    """

    def __init__(self, regime: Regime | None = None) -> None:
        self.regime = regime
        #: How often each shape occurred in the run so far: (size_px, batch_size, duplicates) -> steps.
        self.shapes: Counter[Shape] = Counter()
        #: Checksum of the shapes in the order they occurred; ranks that drew alike agree on it.
        self.sequence_crc = 0
        self._epoch_shapes: Counter[Shape] = Counter()
        self._plan: EpochPlan | None = None

    def match(self, event: Event, state: State) -> bool:
        """Run wherever the loader's plan and the Trainer's clock must agree."""
        return event in _HANDLERS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Hand the event to its method."""
        _HANDLERS[event](self, state, logger)

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
        if state.train_dataloader is None:
            return  # It comes with fit(), whose FIT_START binds it.
        loader = _mixsize_loader(state)
        if state.auto_microbatching:
            raise ValueError(
                "device_train_microbatch_size='auto' settles on the first batches' memory and cannot follow changing "
                "shapes; give a number of images, or leave it out"
            )
        if self.regime is not None and self.regime != loader.regime:
            length, largest = len(loader), loader.batch_size
            loader.bind(self.regime)
            _follow_length(state, loader, length)
            if state.device_train_microbatch_size == largest:  # Not asked for: Composer took it from the loader.
                state.device_train_microbatch_size = loader.batch_size

    def _start(self, state: State, logger: Logger) -> None:
        self._bind(state, logger)
        self._enter_epoch(state, logger)

    def _enter_epoch(self, state: State, logger: Logger) -> None:
        loader = _mixsize_loader(state)
        before = len(loader)
        loader.set_epoch(int(state.timestamp.epoch))
        _follow_length(state, loader, before)
        self._plan = loader.dataset.plan()
        if int(state.timestamp.batch_in_epoch) == 0:
            self._epoch_shapes.clear()

    def _check(self, state: State, logger: Logger) -> None:
        assert self._plan is not None
        step = self._plan[int(state.timestamp.batch_in_epoch)]
        images = state.batch[0]
        expected = (step.num_images, 3, step.size_px, step.size_px)
        if tuple(images.shape) != expected:
            raise RuntimeError(
                f"batch {int(state.timestamp.batch_in_epoch)} of epoch {int(state.timestamp.epoch)} has shape "
                f"{tuple(images.shape)}; the plan says {expected}: another algorithm or transform changed it"
            )
        shape = _global_shape(step)
        self.shapes[shape] += 1
        self._epoch_shapes[shape] += 1
        self.sequence_crc = zlib.crc32(repr(shape).encode(), self.sequence_crc)
        logger.log_metrics(
            {"mixsize/size_px": shape[0], "mixsize/batch_size": shape[1], "mixsize/duplicates": shape[2]}
        )

    def _check_count(self, state: State, logger: Logger) -> None:
        assert self._plan is not None
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
        # A checkpoint taken from here on belongs to the next epoch.
        _mixsize_loader(state).set_epoch(int(state.timestamp.epoch))


_HANDLERS = {
    Event.BEFORE_LOAD: MixSizeSampling._bind,
    Event.FIT_START: MixSizeSampling._start,
    Event.EPOCH_START: MixSizeSampling._enter_epoch,
    Event.AFTER_DATALOADER: MixSizeSampling._check,
    Event.BATCH_END: MixSizeSampling._check_count,
    Event.EPOCH_END: MixSizeSampling._end_epoch,
}


def _mixsize_loader(state: State) -> MixSizeLoader:
    loader = state.train_dataloader
    if not isinstance(loader, MixSizeLoader):
        raise ValueError(
            f"MixSizeSampling plans the batches of a mixsize.ffcv_loaders.MixSizeLoader; the Trainer's "
            f"train_dataloader is a {type(loader).__name__}"
        )
    return loader


def _follow_length(state: State, loader: MixSizeLoader, before: int) -> None:
    """Composer keeps the length it first saw; one that the user cut short (a subset) stays."""
    if state.dataloader is loader and state.dataloader_len is not None and int(state.dataloader_len) == before:
        state.dataloader_len = len(loader)


def _global_shape(step: Step) -> Shape:
    return step.size_px, step.batch_size * dist.get_world_size(), step.duplicates


def _listed(shapes: Counter[Shape]) -> list[list[int]]:
    return [[*shape, steps] for shape, steps in sorted(shapes.items())]


def _counted(rows: list[list[int]]) -> Counter[Shape]:
    return Counter({(size, batch, duplicates): steps for size, batch, duplicates, steps in rows})
