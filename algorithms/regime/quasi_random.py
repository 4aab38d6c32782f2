"""An order of samples that reads a file page by page, for storage with slow random access.

A *page*, as in FFCV, is a part of the file that holds whole samples. In FFCV's ``QUASI_RANDOM`` order each batch comes
from a few pages, on one rank only; with batches of several sizes, a sample's size would depend on its page. Here the
pages are shuffled and cut into windows, and samples are shuffled within a window: a sample may have any size, and the
samples of a batch are the same for any number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class QuasiRandom:
    """Pages of a file, and the number of pages that are mixed.

    Attributes:
        page_of: each sample's page, counted from 0 and in the order of the file, shape ``(N,)``.
        starts: offset of each page in the file in bytes, shape ``(pages,)``.
        page_bytes: length of a page.
        window: pages whose samples are shuffled together, at least 1.
    """

    page_of: np.ndarray
    starts: np.ndarray
    page_bytes: int
    window: int

    def __post_init__(self) -> None:
        assert self.window >= 1
        self.page_of.setflags(write=False)

    @classmethod
    def from_offsets(cls, offsets: np.ndarray, page_bytes: int, window_mib: int) -> QuasiRandom:
        """The pages of a file, in windows of about ``window_mib`` MiB.

        Args:
            offsets: of each sample in the file, in bytes, uint64, shape ``(N,)``.
            page_bytes: length of a page.
            window_mib: length of a window, at least 1.

        Raises:
            ValueError: ``window_mib`` below 1.
        """
        if window_mib < 1:
            raise ValueError(f"window_mib is {window_mib}; it must be at least 1")
        numbers, page_of = np.unique(offsets // np.uint64(page_bytes), return_inverse=True)
        starts = numbers.astype(np.int64) * page_bytes
        window = max(1, round(window_mib * 2**20 / page_bytes))
        return cls(page_of.astype(np.int32), starts, page_bytes, window)

    def draw_pages(self, generator: np.random.Generator) -> np.ndarray:
        """The order in which an epoch reads the pages, ``(pages,)``."""
        return generator.permutation(len(self.starts))

    def sort(self, order: np.ndarray, pages: np.ndarray) -> np.ndarray:
        """Sort a random order of the samples by window; within a window it stays."""
        window_of_page = np.empty(len(pages), dtype=np.int32)
        window_of_page[pages] = np.arange(len(pages)) // self.window
        return order[np.argsort(window_of_page[self.page_of[order]], kind="stable")]

    def gather(self, order: np.ndarray, batch_size: np.ndarray) -> np.ndarray:
        """Sort the samples of each batch in the order of the file, so that each rank finds its part on few pages.

        Args:
            order: samples, batch after batch.
            batch_size: samples of each batch over all ranks, shape ``(steps,)``.
        """
        batch_of = np.repeat(np.arange(len(batch_size)), batch_size)
        return order[: len(batch_of)][np.lexsort((self.page_of[order[: len(batch_of)]], batch_of))]

    def pages_of_rank(self, pages: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        """The pages that hold most of a rank's samples, window after window."""
        windows = math.ceil(len(pages) / self.window)
        cuts = (np.sort(pages[w * self.window : (w + 1) * self.window]) for w in range(windows))
        return np.concatenate([np.array_split(cut, world_size)[rank] for cut in cuts])
