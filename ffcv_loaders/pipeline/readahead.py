"""Ask the kernel for bytes of a file before the decoder comes to them.

Left alone, a mapped file is read when a thread touches it, which then waits, and with as much around it as the disk's
read-ahead setting says: in random order nearly all of that is read in vain, and where the file does not fit into memory
it drives out what is wanted. The plan knows what comes next, so that is asked for, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
from typing import Protocol

import numba
import numpy as np

from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.copies import RATIOS, cheapest
from mixsize.ffcv_loaders.decode.decode import group_image, index_of, view_memory
from mixsize.ffcv_loaders.decode.jpegcrop import is_built
from mixsize.system.memory import bytes_at_hand

#: A file that takes more than this share of the memory at hand is read ahead image by image. A smaller one is soon in
#: memory as a whole, and reading around what is touched brings it there fastest.
SHARE_OF_MEMORY = 0.5
#: Distinct images between asking for one and decoding it: some 30 MB of photographs, a fraction of a second's decoding.
IMAGES_AHEAD = 512

HAS_FADVISE = hasattr(os, "posix_fadvise")
if HAS_FADVISE:
    _fadvise = ctypes.CDLL(None).posix_fadvise
    _fadvise.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    _fadvise.restype = ctypes.c_int


class Readahead(Protocol):
    """What is asked for ahead of a step.

    Attributes:
        images_ahead: distinct images by which steps are announced before they are decoded.
    """

    images_ahead: int

    def announce(self, index: int, step: Step, windows: np.ndarray) -> None:
        """Ask for what the step of this number in the plan will read; ``windows`` are its views', ``(B * D, 7)``."""

    def close(self) -> None:
        """Let go of the file."""


def open_readahead(
    beton: Beton, plan: EpochPlan, quasi_random: QuasiRandom | None, threshold: float
) -> Readahead | None:
    """What suits a file and a plan of it; None where the kernel does as well by itself, or cannot be asked."""
    if not HAS_FADVISE:
        return None
    if quasi_random is not None and plan.pages is not None:
        return PageReadahead(beton, plan, quasi_random)
    if len(beton.data) > SHARE_OF_MEMORY * bytes_at_hand():
        return ImageReadahead(beton, threshold)
    return None


class ImageReadahead:
    """Asks for the stored copies that the coming views will be decoded from.

    Args:
        beton: the file; from here on nothing is read around what is touched of it.
        threshold: see :class:`~mixsize.ffcv_loaders.decode.decode.Decoder`.
    """

    images_ahead = IMAGES_AHEAD

    def __init__(self, beton: Beton, threshold: float) -> None:
        self._file = os.open(beton.path, os.O_RDONLY | os.O_CLOEXEC)
        self._index = index_of(beton)
        self._threshold = float(threshold)
        self._has_extension = is_built()
        beton.read_at_random()

    def announce(self, index: int, step: Step, windows: np.ndarray) -> None:
        """See :class:`Readahead`."""
        views = (step.samples, step.duplicates, windows, step.size_px)
        copies = copies_to_read(self._index, *views, self._threshold, self._has_extension)
        _ask(self._file, copies, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """See :class:`Readahead`."""
        os.close(self._file)


class PageReadahead:
    """Asks for whole pages, in the order of the plan, a window of them ahead of the step.

    Args:
        beton: the file.
        plan: one in quasi-random order.
        quasi_random: what it was drawn from.
    """

    images_ahead = 0

    def __init__(self, beton: Beton, plan: EpochPlan, quasi_random: QuasiRandom) -> None:
        assert plan.pages is not None
        self._file = os.open(beton.path, os.O_RDONLY | os.O_CLOEXEC)
        self._starts = quasi_random.starts[plan.pages]
        self._page_bytes = quasi_random.page_bytes
        self._window = -(-quasi_random.window // plan.world_size)
        self._offsets = plan.offsets
        self._asked: int | None = None

    def announce(self, index: int, step: Step, windows: np.ndarray) -> None:
        """See :class:`Readahead`."""
        pages = len(self._starts)
        at = int(pages * self._offsets[index] / self._offsets[-1])
        if self._asked is None:
            self._asked = at // self._window * self._window
        until = min(pages, at + self._window + 1)
        for start in self._starts[self._asked : until].tolist():
            os.posix_fadvise(self._file, start, self._page_bytes, os.POSIX_FADV_WILLNEED)
        self._asked = max(self._asked, until)

    def close(self) -> None:
        """See :class:`Readahead`."""
        os.close(self._file)


@numba.njit(nogil=True)
def copies_to_read(index, samples, duplicates, windows, side, threshold, has_extension):
    """Offsets and lengths of the stored copies that the views of a step are decoded from, ``(copies, 2)`` int64."""
    heights, widths, is_jpeg, data_ptr, data_size = index
    views = view_memory(duplicates)
    joint = views[1]
    copies = np.empty((len(samples) * duplicates, 2), dtype=np.int64)
    count = 0
    for i in range(len(samples)):
        sample = samples[i]
        groups = 1
        if is_jpeg[0, sample] and has_extension:
            groups = group_image(index, sample, windows[i * duplicates : (i + 1) * duplicates], side, threshold, views)
        for g in range(groups):
            level = 0
            if is_jpeg[0, sample] and has_extension:
                level = cheapest(joint[g], heights[:, sample], widths[:, sample], data_size[:, sample])[0] // RATIOS
            copies[count, 0], copies[count, 1] = data_ptr[level, sample], data_size[level, sample]
            count += 1
    return copies[:count]


@numba.njit(nogil=True)
def _ask(file, copies, advice):
    for i in range(len(copies)):
        _fadvise(file, copies[i, 0], copies[i, 1], advice)
