"""Measured seconds of a training step by its shape, to predict how long a plan takes.

A file of step times is JSON::

    {"steps": [{"size_px": 224, "batch_size": 256, "duplicates": 1, "seconds": 0.31}, ...]}

with the batch over all ranks. A run's ``record.json`` holds them too, under ``shapes``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

#: (size_px, batch_size over all ranks, duplicates)
Shape = tuple[int, int, int]

_KEYS = ("size_px", "batch_size", "duplicates")


def read_step_times(path: Path) -> dict[Shape, float]:
    """Read step times from a file of them or from a run's record; shapes without a time are left out.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file that holds no step times; the message names the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    content = content if isinstance(content, dict) else {}
    # A record's "steps" is the number of them.
    key = next((key for key in ("steps", "shapes") if isinstance(content.get(key), list)), None)
    if key is None:
        raise ValueError(f'{path}: holds neither a list "steps" of step times nor a list "shapes" of a run\'s record')
    times: dict[Shape, float] = {}
    for index, row in enumerate(content[key]):
        where = f"{path}: {key}[{index}]"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is {row!r}; it must be an object with {', '.join(_KEYS)} and seconds")
        shape = tuple(_count(where, name, row.get(name)) for name in _KEYS)
        assert len(shape) == 3
        seconds = row.get("seconds")
        if seconds is None:
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ValueError(f"{where}.seconds is {seconds!r}; it must be a number above 0")
        if shape in times:
            raise ValueError(f"{where} gives the shape {describe_shape(shape)} a second time")
        times[shape] = float(seconds)
    return times


def describe_shape(shape: Shape) -> str:
    """A shape in words: ``224 px x 256 x 1``."""
    size_px, batch_size, duplicates = shape
    return f"{size_px} px x {batch_size:,} x {duplicates}"


def _count(where: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}.{name} is {value!r}; it must be a whole number of at least 1")
    return value
