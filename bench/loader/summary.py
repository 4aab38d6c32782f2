"""What result files keep of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, range and number of values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
