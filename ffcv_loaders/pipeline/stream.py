"""Batches of a plan, decoded ahead of their use by a thread that ends with the iteration."""

from __future__ import annotations

import atexit
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import Augment, Interpolation, draw_windows, resample_of
from mixsize.ffcv_loaders.decode.decode import MIN_OVERSAMPLING, Decoder
from mixsize.ffcv_loaders.decode.policy import open_policy
from mixsize.ffcv_loaders.decode.views import open_changes
from mixsize.ffcv_loaders.pipeline.readahead import open_readahead
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD, Staged, Stager
from mixsize.system.ranks import default_threads

#: One function for each iteration under way; it ends the iteration.
_running: set[Callable[[], None]] = set()


@atexit.register
def _end_all() -> None:
    # A program may keep a half-used iterator to its end: the interpreter must not exit while a thread is decoding.
    # Registered once, as the interpreter's list grows with every function, also with those that are taken off it.
    for end in list(_running):
        end()


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are decoded and brought to their device; :class:`~mixsize.ffcv_loaders.MixSizeLoader` explains each.

    Raises:
        ValueError: ``num_workers`` or ``batches_ahead`` below 1, or an unknown interpolation.
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    num_workers: int | None = None
    batches_ahead: int = 2
    min_oversampling: float = MIN_OVERSAMPLING
    interpolation: Interpolation = "bilinear"
    device: str | torch.device | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name in ("num_workers", "batches_ahead"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        resample_of(self.interpolation)


class Source:
    """A ``.beton`` file and the way from it to a device.

    Args:
        data: a ``.beton`` file or one already open.
        augment: how views are cut.
        options: the remaining options.
    """

    def __init__(self, data: str | Path | Beton, augment: Augment, options: LoaderOptions) -> None:
        self.beton = data if isinstance(data, Beton) else Beton.open(data)
        self.augment = augment
        self.num_workers = default_threads() if options.num_workers is None else options.num_workers
        self.batches_ahead = options.batches_ahead
        self.min_oversampling = options.min_oversampling
        self.interpolation: Interpolation = options.interpolation
        self.stager = Stager(
            options.mean,
            options.std,
            torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")),
            options.dtype,
            options.channels_last,
        )

    def stream(
        self,
        plan: EpochPlan,
        *,
        seed: int,
        augment: Augment | None = None,
        first_step: int = 0,
        quasi_random: QuasiRandom | None = None,
    ) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
        """Serve the steps of a plan.

        Closing the generator, or dropping the last reference to it, ends its threads and frees its buffers.

        Args:
            plan: the epoch's steps on this rank.
            seed: the run's seed.
            augment: how views are cut in this epoch, where it differs from the source's.
            first_step: where to start; the steps before are not decoded.
            quasi_random: the order that the plan was drawn from, where it is quasi-random.

        Yields:
            The step, its images ``(B * D, 3, S, S)`` and its labels ``(B * D,)``. A sample's D views lie side by side.

        Raises:
            BetonError: an image that does not decode, or a file that was written to meanwhile.
            ValueError: an augmentation that these images cannot have.
        """
        producer = _Producer(self, plan, augment or self.augment, seed, first_step, quasi_random)
        producer.start()
        _running.add(producer.end)
        try:
            yield from _staged(producer, self.stager)
        finally:
            _running.discard(producer.end)
            producer.end()


@dataclass
class _Slot:
    """One buffer of the ring, and the event after which it may be overwritten."""

    memory: torch.Tensor
    free_after: torch.cuda.Event | None = None


@dataclass
class _Batch:
    """A batch in its buffer; ``wait`` returns when its pixels are decoded."""

    step: Step
    slot: _Slot
    pixels: torch.Tensor
    wait: Callable[[], None]


class _Producer:
    """A thread that decodes a plan's batches, in order, into a ring of buffers."""

    def __init__(
        self,
        source: Source,
        plan: EpochPlan,
        augment: Augment,
        seed: int,
        first_step: int,
        quasi_random: QuasiRandom | None,
    ) -> None:
        self._beton, self._file = source.beton, source.beton.file
        self._plan, self._augment, self._seed, self._first_step = plan, augment, seed, first_step
        self._policy = open_policy(augment, source.beton, source.stager.mean, seed, plan.epoch)
        self._changes = open_changes(augment, source.stager.mean, seed, plan.epoch)
        self._decoder = Decoder(source.beton, source.num_workers, source.min_oversampling, source.interpolation)
        self._readahead = open_readahead(source.beton, plan, quasi_random, source.min_oversampling)
        self._ready: queue.SimpleQueue[_Batch | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        for _ in range(source.batches_ahead + 1):
            self._free.put(_Slot(source.stager.buffer(plan.max_step_pixels * 3)))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mixsize-prefetch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop after the batch in hand and wait for it."""
        self._stop.set()
        self._free.put(None)
        self._thread.join()
        self._decoder.close()

    def labels(self, step: Step) -> torch.Tensor:
        """A step's labels, int64, ``(B * D,)``."""
        return torch.from_numpy(np.repeat(self._beton.labels[step.samples], step.duplicates))

    def next(self, block: bool) -> _Batch | None:
        """The next decoded batch, or None after the last.

        Raises:
            queue.Empty: there is none yet, and ``block`` is False.
        """
        item = self._ready.get(block=block)
        if isinstance(item, BaseException):
            raise item
        return item

    def recycle(self, slot: _Slot, free_after: torch.cuda.Event | None) -> None:
        """Give a buffer back; it is overwritten once the event has passed."""
        slot.free_after = free_after
        self._free.put(slot)

    def _run(self) -> None:
        try:
            self._decode_all()
            self._ready.put(None)
        except BaseException as error:
            # Every error belongs to the thread that waits for the batch.
            self._ready.put(self._cause(error))

    def _decode_all(self) -> None:
        begun: _Batch | None = None
        for step, windows in self._announced_steps():
            slot = self._free.get()
            if slot is None or self._stop.is_set():
                return
            if slot.free_after is not None:
                slot.free_after.synchronize()
            following = self._begin(step, windows, slot)
            # The batch before is waited for only now: the threads that it leaves idle have work already.
            if begun is not None:
                self._publish(begun)
            begun = following
        if begun is not None:
            self._publish(begun)

    def _announced_steps(self) -> Iterator[tuple[Step, np.ndarray]]:
        """Each step with its views' windows, announced ``images_ahead`` images before it is decoded."""
        waiting: deque[tuple[Step, np.ndarray]] = deque()
        ahead = 0 if self._readahead is None else self._readahead.images_ahead
        images = 0
        for index in range(self._first_step, len(self._plan)):
            step = self._plan[index]
            windows = self._draw(step)
            if self._readahead is not None:
                self._readahead.announce(index, step, windows)
            waiting.append((step, windows))
            images += step.batch_size
            while waiting and images - waiting[0][0].batch_size >= ahead:
                images -= waiting[0][0].batch_size
                yield waiting.popleft()
        yield from waiting

    def _draw(self, step: Step) -> np.ndarray:
        heights, widths = self._beton.heights[step.samples], self._beton.widths[step.samples]
        views = (step.samples, step.duplicates, step.size_px)
        return draw_windows(self._augment, heights, widths, *views, self._seed, self._plan.epoch)

    def _begin(self, step: Step, windows: np.ndarray, slot: _Slot) -> _Batch:
        shape = (step.num_images, step.size_px, step.size_px, 3)
        pixels = slot.memory[: int(np.prod(shape))].view(shape)
        views = (step.samples, step.duplicates, windows, pixels.numpy())
        changes = None if self._changes is None else self._changes.at(step.size_px)
        return _Batch(step, slot, pixels, self._decoder.submit(*views, self._policy, changes))

    def _publish(self, batch: _Batch) -> None:
        batch.wait()
        self._file.check_unchanged()
        self._ready.put(batch)

    def _cause(self, error: BaseException) -> BaseException:
        """The error; where the file has changed, one that says so, as its images may then fail to decode in any way."""
        try:
            self._file.check_unchanged()
        except BetonError as changed:
            return changed
        return error


def _staged(producer: _Producer, stager: Stager) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
    """Each batch on its device, with ``stager.lookahead`` more on their way."""
    under_way: deque[tuple[Step, Staged]] = deque()
    exhausted = False
    while not exhausted or under_way:
        while not exhausted and len(under_way) <= stager.lookahead:
            try:
                # Wait only for the batch that is needed now; one for later is taken if it is there.
                batch = producer.next(block=not under_way)
            except queue.Empty:
                break
            if batch is None:
                exhausted = True
                break
            staged = stager.stage(batch.pixels, producer.labels(batch.step))
            producer.recycle(batch.slot, staged.arrived)
            under_way.append((batch.step, staged))
        if under_way:
            step, staged = under_way.popleft()
            yield step, *staged.wait()
