"""A log of the batches of a run, to compare the batches of two runs."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TextIO

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

HEADER = "step,size_px,images,checksum\n"


class BatchLog(Callback):
    """Appends a line for every batch to ``batches-rank{r}.csv``: step, size, images, CRC-32 of pixels and labels.

    Each line is flushed before its step is trained on. After a kill the file also holds the steps that the next start
    repeats.

    Args:
        folder: where the file of each rank goes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"batches-rank{dist.get_global_rank()}.csv"
        self._file: TextIO | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the file."""
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 -- closed with the Trainer
        if self._file.tell() == 0:
            self._file.write(HEADER)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Write the line of a batch."""
        assert self._file is not None
        images, labels = (part.cpu().contiguous() for part in state.batch)
        checksum = zlib.crc32(labels.numpy(), zlib.crc32(images.numpy()))
        self._file.write(f"{int(state.timestamp.batch)},{images.shape[-1]},{len(images)},{checksum:08x}\n")
        self._file.flush()

    def close(self, state: State, logger: Logger) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
