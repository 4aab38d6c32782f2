"""Cases of ``mixsize bench gpu``: measurements whose figures are rows of their part's table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: A row of a table: column name -> text, number, spread or None. Units are part of the name (``step_ms``).
Row = dict[str, Any]
#: Name of a case -> its measurement, which returns its rows.
Cases = dict[str, Callable[[], list[Row]]]


@dataclass(frozen=True)
class Setup:
    """The machine and the data of a bench.

    Attributes:
        device: the device that is measured.
        dry_run: use tiny shapes, to try the bench itself.
        images: ``.beton`` file of photographs.
    """

    device: torch.device
    dry_run: bool
    images: Path


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, quartiles and number of some figures, times ``scale``. The extremes count as ends of the distribution."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": scale * median, "low": scale * low, "high": scale * high, "n": len(values)}


def ratios(figures: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Spread of ``figures / base``, round by round."""
    return spread([mine / other for mine, other in zip(figures, base, strict=True)])
