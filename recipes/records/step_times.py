"""Measured seconds of a training step by its shape, for predicting the time of a plan.

A file of step times is JSON::

    {"steps": [{"size_px": 224, "batch_size": 256, "duplicates": 1, "seconds": 0.31}, ...]}

with the batch over all ranks. A run's ``record.json`` holds them too, under ``shapes``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: (size_px, batch_size over all ranks, duplicates)
Shape = tuple[int, int, int]

_Count = Annotated[int, Field(ge=1)]


class _StepTime(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    size_px: _Count
    batch_size: _Count
    duplicates: _Count
    seconds: Annotated[float, Field(gt=0)] | None = None


class _StepTimes(BaseModel):
    # In a run's record, `steps` is a number and the rows are under `shapes`.
    steps: list[_StepTime] | int | None = None
    shapes: list[_StepTime] = []


def read_step_times(path: Path) -> dict[Shape, float]:
    """Read step times from such a file or from a run's record; shapes without a time are left out.

    Raises:
        OSError: a file that cannot be read.
        ValueError: not a file of step times; the message names the entry.
    """
    try:
        content = _StepTimes.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("list["))
        raise ValueError(f"{path}: {place or 'the file'} is {first['input']!r}: {first['msg']}") from error
    rows = content.steps if isinstance(content.steps, list) else content.shapes
    if not rows:
        raise ValueError(f'{path}: holds neither a list "steps" of step times nor the "shapes" of a run\'s record')
    times: dict[Shape, float] = {}
    for index, row in enumerate(rows):
        shape = (row.size_px, row.batch_size, row.duplicates)
        if shape in times:
            raise ValueError(f"{path}: entry {index} gives the shape {describe_shape(shape)} a second time")
        if row.seconds is not None:
            times[shape] = row.seconds
    return times


def describe_shape(shape: Shape) -> str:
    """Return a shape in words: ``224 px x 256 x 1``."""
    size_px, batch_size, duplicates = shape
    return f"{size_px} px x {batch_size:,} x {duplicates}"
