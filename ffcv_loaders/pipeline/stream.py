"""Batches of a plan, decoded ahead of their use by a thread that ends with the iteration."""

from __future__ import annotations

import atexit
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import Augment, draw_windows
from mixsize.ffcv_loaders.decode.decode import THRESHOLD, Decoder
from mixsize.ffcv_loaders.decode.policy import PolicyStage, open_stage
from mixsize.ffcv_loaders.pipeline.readahead import Readahead, open_readahead
from mixsize.ffcv_loaders.pipeline.staging import Staged, Stager

#: What ends each iteration that is under way.
_running: set[Callable[[], None]] = set()


@atexit.register
def _end_all() -> None:
    # Whoever keeps a half-used iterator to the end of the program: the interpreter must not go while a thread decodes.
    # Registered once, as the interpreter's list grows with every function, also with those that are taken off it.
    for end in list(_running):
        end()


@dataclass
class _Slot:
    """One buffer of the ring, and the event after which it may be overwritten."""

    memory: torch.Tensor
    free_after: torch.cuda.Event | None = None


@dataclass
class _Decoded:
    step: Step
    slot: _Slot
    pixels: torch.Tensor
    labels: torch.Tensor


def stream_batches(
    beton: Beton,
    plan: EpochPlan,
    augment: Augment,
    stager: Stager,
    *,
    seed: int,
    threads: int,
    prefetch: int,
    threshold: float = THRESHOLD,
    quasi_random: QuasiRandom | None = None,
    first_step: int = 0,
) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
    """Serve the steps of a plan.

    Closing the generator, or dropping the last reference to it, ends its threads and frees its buffers.

    Args:
        beton: the data set.
        plan: the epoch's steps on this rank.
        augment: how views are cut.
        stager: brings batches to their device.
        seed: the run's seed.
        threads: decoding threads.
        prefetch: batches decoded ahead of the one in use, at least 1.
        threshold: which views are read from smaller copies, see :class:`~mixsize.ffcv_loaders.decode.decode.Decoder`.
        quasi_random: what the plan's order was drawn from, where it is quasi-random.
        first_step: where to start; the steps before are not decoded.

    Yields:
        The step, its images ``(B * D, 3, S, S)`` and its labels ``(B * D,)``. A sample's D views lie side by side.

    Raises:
        BetonError: an image that does not decode, or a file that was written to meanwhile.
        ValueError: ``prefetch`` below 1, ``threshold`` not above 0, or an augmentation that these images cannot have.
    """
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}; it must be at least 1")
    stage = open_stage(augment, beton, stager.mean, threads)
    free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[_Decoded | BaseException | None] = queue.SimpleQueue()
    for _ in range(prefetch + 1):
        free.put(_Slot(stager.buffer(plan.max_step_pixels * 3)))
    decoder = Decoder(beton, threads, threshold)
    readahead = open_readahead(beton, plan, quasi_random, threshold)
    stop = threading.Event()
    drawn = _draw_ahead(beton, plan, augment, seed, first_step, readahead)
    producer = threading.Thread(
        target=_produce,
        args=(beton, plan, drawn, decoder, stage, seed, free, ready, stop),
        name="mixsize-prefetch",
        daemon=True,
    )

    def end() -> None:
        stop.set()
        free.put(None)
        producer.join()

    producer.start()
    _running.add(end)
    try:
        yield from _consume(free, ready, stager)
    finally:
        _running.discard(end)
        end()
        decoder.close()
        if readahead is not None:
            readahead.close()
        if stage is not None:
            stage.close()


def _draw_ahead(
    beton: Beton, plan: EpochPlan, augment: Augment, seed: int, first_step: int, readahead: Readahead | None
) -> Iterator[tuple[Step, np.ndarray]]:
    """Each step with its views' windows, announced as long before as ``readahead`` wants."""
    waiting: deque[tuple[Step, np.ndarray]] = deque()
    images = 0
    for index in range(first_step, len(plan)):
        step = plan[index]
        heights, widths = beton.heights[step.samples], beton.widths[step.samples]
        windows = draw_windows(augment, heights, widths, step.samples, step.duplicates, step.size_px, seed, plan.epoch)
        if readahead is None:
            yield step, windows
            continue
        readahead.announce(index, step, windows)
        waiting.append((step, windows))
        images += step.batch_size
        while images - waiting[0][0].batch_size >= readahead.images_ahead:
            images -= waiting[0][0].batch_size
            yield waiting.popleft()
            if not waiting:
                break
    yield from waiting


def _produce(
    beton: Beton,
    plan: EpochPlan,
    drawn: Iterator[tuple[Step, np.ndarray]],
    decoder: Decoder,
    stage: PolicyStage | None,
    seed: int,
    free: queue.SimpleQueue,
    ready: queue.SimpleQueue,
    stop: threading.Event,
) -> None:
    def publish(step: Step, slot: _Slot, pixels: torch.Tensor, wait: Callable[[], None]) -> None:
        wait()
        beton.check_unchanged()
        labels = torch.from_numpy(np.repeat(beton.labels[step.samples], step.duplicates))
        ready.put(_Decoded(step, slot, pixels, labels))

    try:
        begun: tuple[Step, _Slot, torch.Tensor, Callable[[], None]] | None = None
        for step, windows in drawn:
            slot = free.get()
            if slot is None or stop.is_set():
                return
            beton.check_unchanged()  # Before as well: without the extension, nothing guards what is read.
            shape = (step.num_images, step.size_px, step.size_px, 3)
            pixels = slot.memory[: int(np.prod(shape))].view(shape)
            if slot.free_after is not None:
                slot.free_after.synchronize()
            if stage is None:
                wait = decoder.submit(step.samples, step.duplicates, windows, pixels.numpy())
            else:
                views = stage.canvas(step.num_images)
                decoder.decode(step.samples, step.duplicates, windows, views)
                stage.finish(views, step.samples, step.duplicates, seed, plan.epoch, pixels.numpy())
                wait = _is_done
            # The batch before is waited for only now, with work for the threads that it leaves idle.
            if begun is not None:
                publish(*begun)
            begun = (step, slot, pixels, wait)
        if begun is not None:
            publish(*begun)
        ready.put(None)
    except BaseException as error:
        # Whatever went wrong belongs to whoever waits for the batch.
        ready.put(_cause(beton, error))


def _cause(beton: Beton, error: BaseException) -> BaseException:
    """The error; where the file has changed, one that says so, as its images may then fail to decode in any way."""
    try:
        beton.check_unchanged()
    except BetonError as changed:
        return changed
    return error


def _is_done() -> None:
    """What waits for nothing."""


def _consume(
    free: queue.SimpleQueue, ready: queue.SimpleQueue, stager: Stager
) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
    under_way: deque[tuple[Step, Staged]] = deque()
    exhausted = False
    while not exhausted or under_way:
        while not exhausted and len(under_way) <= stager.lookahead:
            try:
                # Wait only for the batch that is needed now; one for later is taken if it is there.
                item = ready.get(block=not under_way)
            except queue.Empty:
                break
            if isinstance(item, BaseException):
                raise item
            if item is None:
                exhausted = True
                break
            staged = stager.stage(item.pixels, item.labels)
            item.slot.free_after = staged.arrived
            free.put(item.slot)
            under_way.append((item.step, staged))
        if under_way:
            step, staged = under_way.popleft()
            yield step, *staged.wait()
