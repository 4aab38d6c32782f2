"""Measured seconds of a training step by its shape, for predicting the time of a plan."""

from __future__ import annotations

from pathlib import Path

from mixsize.recipes.records.run_record import read_record

#: (size_px, batch_size over all ranks, duplicates)
Shape = tuple[int, int, int]


def read_step_times(path: Path) -> dict[Shape, float]:
    """Read step times from a run's ``record.json``; shapes without a time are left out.

    Raises:
        OSError: a file that cannot be read.
        ValueError: not a run record; the message names the key at fault.
    """
    rows = read_record(path).shapes
    return {(row.size_px, row.batch_size, row.duplicates): row.seconds for row in rows if row.seconds is not None}


def describe_shape(shape: Shape) -> str:
    """Return a shape in words: ``224 px x 256 x 1``."""
    size_px, batch_size, duplicates = shape
    return f"{size_px} px x {batch_size:,} x {duplicates}"
