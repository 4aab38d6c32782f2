"""Seconds between points of a stream of work, by the clock of the device that does it."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class LapClock:
    """Seconds between marks: by events on a GPU, which stop nothing, and by the processor's clock elsewhere.

    Args:
        device: that does the work.

    Example:
        >>> clock = LapClock(torch.device("cuda"))
        >>> clock.mark()
        >>> for images, labels in batches:
        ...     step(images, labels)
        ...     clock.mark()
        >>> seconds_of_each_step = clock.laps()
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event] | list[float] = []

    def mark(self) -> None:
        """Note the point that the work given to the device so far leads up to."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds from each mark to the next; waits for the device, and forgets the marks."""
        marks, self._marks = self._marks, []
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
        return [after - before for before, after in pairwise(marks)]
