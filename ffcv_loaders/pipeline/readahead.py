"""Ask the kernel for bytes of a file before the decoder comes to them.

Left alone, the kernel reads when a thread asks for bytes, while the thread waits, and it reads as much around them as
the disk's read-ahead setting says. In random order most of that is useless, and where the file does not fit into memory
it drives out useful pages. The plan knows which bytes come next, so exactly these are requested.
"""

from __future__ import annotations

import os

import numpy as np

from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.engine.native import Batch, Workspace
from mixsize.system.memory import bytes_at_hand

#: A file that takes more than this share of the memory at hand is read ahead image by image. A smaller one is soon in
#: memory as a whole, and the kernel's own read-ahead brings it there fastest.
SHARE_OF_MEMORY = 0.5
#: Distinct images between requesting one and decoding it: about 30 MB of photographs, a fraction of a second.
IMAGES_AHEAD = 512


def open_readahead(
    beton: Beton, plan: EpochPlan, quasi_random: QuasiRandom | None, min_oversampling: float
) -> ImageReadahead | PageReadahead | None:
    """The kind that suits a file and its plan; None where the kernel does as well alone, or takes no requests."""
    if not hasattr(os, "posix_fadvise"):
        return None
    if quasi_random is not None and plan.pages is not None:
        return PageReadahead(beton, plan, quasi_random)
    if beton.file.num_bytes > SHARE_OF_MEMORY * bytes_at_hand():
        return ImageReadahead(beton, min_oversampling)
    return None


class ImageReadahead:
    """Requests the stored copies that the coming views will be decoded from, and switches the kernel's own guess off.

    Steps are announced ``images_ahead`` distinct images before they are decoded.

    Args:
        beton: the file.
        min_oversampling: see :class:`~mixsize.ffcv_loaders.decode.decode.Decoder`.
    """

    images_ahead = IMAGES_AHEAD

    def __init__(self, beton: Beton, min_oversampling: float) -> None:
        self._file = beton.file
        self._levels = beton.levels
        self._min_oversampling = float(min_oversampling)
        self._workspace = Workspace()
        os.posix_fadvise(self._file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def announce(self, index: int, step: Step, windows: np.ndarray) -> None:
        """Request the bytes of step ``index`` of the plan; ``windows`` are its views', ``(B * D, 7)``."""
        views = (step.samples, step.duplicates, windows, step.size_px)
        batch = Batch(self._file.descriptor, self._levels, *views, self._min_oversampling)
        for start, size in batch.copies_to_read(self._workspace).tolist():
            os.posix_fadvise(self._file.descriptor, start, size, os.POSIX_FADV_WILLNEED)


class PageReadahead:
    """Requests whole pages, in the order of the plan, a window of them ahead of the step.

    Args:
        beton: the file.
        plan: one in quasi-random order.
        quasi_random: the order that it was drawn from.
    """

    images_ahead = 0

    def __init__(self, beton: Beton, plan: EpochPlan, quasi_random: QuasiRandom) -> None:
        assert plan.pages is not None
        self._file = beton.file
        self._starts = quasi_random.starts[plan.pages]
        self._page_bytes = quasi_random.page_bytes
        self._window = -(-quasi_random.window // plan.world_size)
        self._offsets = plan.offsets  # pyright: ignore[reportAttributeAccessIssue]
        self._requested: int | None = None

    def announce(self, index: int, step: Step, windows: np.ndarray) -> None:
        """Request the pages up to a window ahead of step ``index`` of the plan; ``windows`` are not needed."""
        pages = len(self._starts)
        at = int(pages * self._offsets[index] / self._offsets[-1])
        if self._requested is None:
            self._requested = at // self._window * self._window
        until = min(pages, at + self._window + 1)
        for start in self._starts[self._requested : until].tolist():
            os.posix_fadvise(self._file.descriptor, start, self._page_bytes, os.POSIX_FADV_WILLNEED)
        self._requested = max(self._requested, until)
