"""MixSize sampling attached to a Composer Trainer."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from mixsize.algorithms.regime.planned_loader import PlannedLoader
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.sampling.batches import PlannedBatches, ResizedBatches, Shape

log = logging.getLogger(__name__)


class MixSizeSampling(Algorithm):
    """Trains at image sizes, batch sizes and duplicates drawn from a regime at every step.

    With a loader of planned batches (:class:`~mixsize.ffcv_loaders.MixSizeLoader`,
    :class:`~mixsize.ffcv_loaders.TorchMixSizeLoader`) it binds the regime before iteration starts, keeps the loader's
    epoch in step with the Trainer's, and checks each batch's shape against the plan.

    With any other loader it resizes each batch on the device to a side drawn with the regime's shares. Batch size and
    duplicates then stay as the loader brings them; a warning says so once. FFCV's own ``Loader`` decodes at the largest
    side of the epoch: the decoder's ``output_size`` is set before the epoch starts.

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
        regime: the regime to draw from; by default that of the loader, if it plans its batches.
        input_key: of the images in a batch, as in Composer's own algorithms.
        seed: of the sides drawn for other loaders; by default the Trainer's.

    Attributes:
        shapes: (size_px, global batch_size, duplicates) -> steps of the run so far.
        last_shape: the shape of the current step, None before the first.
        sequence_crc: checksum of the shapes in order; equal on ranks that drew the same.

    Raises:
        ValueError: no regime for a loader that has none, automatic microbatching, or a planned loader passed to the
            Trainer without its :meth:`~mixsize.ffcv_loaders.MixSizeLoader.data_spec`.

    Example:
        >>> regime = Regime.from_sizes("s144", Base(224, 256), "B+", batch_multiple=8)
        >>> algorithm = MixSizeSampling(regime)
    """

    def __init__(
        self, regime: Regime | Progression | None = None, *, input_key: Any = 0, seed: int | None = None
    ) -> None:
        self.regime = regime
        self.input_key = input_key
        self.seed = seed
        self.shapes: Counter[Shape] = Counter()
        self.last_shape: Shape | None = None
        self.sequence_crc = 0
        self._epoch_shapes: Counter[Shape] = Counter()
        self._batches: PlannedBatches | ResizedBatches | None = None

    def match(self, event: Event, state: State) -> bool:
        """Run where the plan and the Trainer's clock must agree."""
        return event in _HANDLERS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Call the event's method."""
        _HANDLERS[event](self, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """The shapes that occurred, in plain values."""
        return {
            "shapes": _rows(self.shapes),
            "epoch_shapes": _rows(self._epoch_shapes),
            "sequence_crc": self.sequence_crc,
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore the shapes that occurred."""
        self.shapes = _counted(state["shapes"])
        self._epoch_shapes = _counted(state["epoch_shapes"])
        self.sequence_crc = int(state["sequence_crc"])

    def _bind(self, state: State, logger: Logger) -> None:
        loader = state.train_dataloader
        if loader is None:
            return  # It comes with fit(), whose FIT_START binds it.
        if state.auto_microbatching:
            raise ValueError(
                "device_train_microbatch_size is 'auto', which settles on the first batches' memory and cannot follow "
                "changing shapes; give a number of images, or leave it out"
            )
        if isinstance(loader, PlannedLoader):
            if not isinstance(self._batches, PlannedBatches) or self._batches.loader is not loader:
                self._batches = PlannedBatches(loader, self.input_key)
            if self.regime is not None:
                self._batches.bind(self.regime, state)
        elif self.regime is not None:
            self._batches = ResizedBatches(self.regime, self.input_key, self.seed)
        else:
            raise ValueError(
                f"the Trainer's train_dataloader is a {type(loader).__name__}, which has no regime of its own; "
                f"give {type(self).__name__} one, or use a mixsize loader"
            )

    def _start(self, state: State, logger: Logger) -> None:
        self._bind(state, logger)
        if isinstance(self._batches, ResizedBatches):
            log.warning(
                "%s: images of a %s are resized on the device; its batch size, duplicates and crops stay as they come",
                type(self).__name__,
                type(state.train_dataloader).__name__,
            )
        self._enter_epoch(state, logger)

    def _enter_epoch(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch_in_epoch) == 0:
            self._epoch_shapes.clear()
        self._bound.enter_epoch(state)

    def _count_shape(self, state: State, logger: Logger) -> None:
        shape = self._bound.shape(state)
        self.last_shape = shape
        self.shapes[shape] += 1
        self._epoch_shapes[shape] += 1
        self.sequence_crc = zlib.crc32(repr(shape).encode(), self.sequence_crc)
        logger.log_metrics(
            {"mixsize/size_px": shape[0], "mixsize/batch_size": shape[1], "mixsize/duplicates": shape[2]}
        )

    def _resize(self, state: State, logger: Logger) -> None:
        self._bound.resize(state)

    def _check_count(self, state: State, logger: Logger) -> None:
        self._bound.check_count(state)

    def _leave_epoch(self, state: State, logger: Logger) -> None:
        samples: Counter[int] = Counter()
        for (size_px, batch_size, _), steps in self._epoch_shapes.items():
            samples[size_px] += steps * batch_size
        total = sum(samples.values())
        logger.log_metrics({f"mixsize/sample_share/{size}px": count / total for size, count in samples.items()})
        self._bound.leave_epoch(state)

    @property
    def _bound(self) -> PlannedBatches | ResizedBatches:
        assert self._batches is not None
        return self._batches


_HANDLERS = {
    Event.BEFORE_LOAD: MixSizeSampling._bind,
    Event.FIT_START: MixSizeSampling._start,
    Event.EPOCH_START: MixSizeSampling._enter_epoch,
    Event.AFTER_DATALOADER: MixSizeSampling._count_shape,
    Event.BEFORE_FORWARD: MixSizeSampling._resize,
    Event.BATCH_END: MixSizeSampling._check_count,
    Event.EPOCH_END: MixSizeSampling._leave_epoch,
}


def _rows(shapes: Counter[Shape]) -> list[list[int]]:
    return [[*shape, steps] for shape, steps in sorted(shapes.items())]


def _counted(rows: list[list[int]]) -> Counter[Shape]:
    return Counter({(size, batch, duplicates): steps for size, batch, duplicates, steps in rows})
