"""What each step was trained on, for telling whether two runs saw the same."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TextIO

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

HEADER = "step,size_px,images,checksum\n"


class BatchLog(Callback):
    """Appends a line for every batch to ``batches-rank{r}.csv``: step, side, images, CRC-32 of pixels and labels.

    A run that was killed has lines for steps that its next start repeats. Each line reaches the system before its
    step is trained on.

    Args:
        folder: where the file goes, one for each rank.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"batches-rank{dist.get_global_rank()}.csv"
        self._file: TextIO | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the file."""
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 -- it is closed with the Trainer
        if self._file.tell() == 0:
            self._file.write(HEADER)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Note the batch as it came."""
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
