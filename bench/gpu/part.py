"""What a part of ``mixsize bench gpu`` is: units of work, a table of their figures, and targets met or missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mixsize.bench.gpu.record import Figures, Spread

#: Name of a unit -> its figures.
UnitFigures = Mapping[str, Figures]


@dataclass(frozen=True)
class Bench:
    """What the parts are given.

    Attributes:
        device: that is measured.
        dry_run: tiny shapes, to try the bench itself.
        folder: where runs go.
        cifar: folder with CIFAR-10's train.beton and test.beton.
        images: ``.beton`` file of photographs.
        threads: decoding threads, and cores to run them on.
        ranks: processes of each CIFAR-10 run.
        items: further recipe items of the CIFAR-10 runs.
    """

    device: torch.device
    dry_run: bool
    folder: Path
    cifar: Path
    images: Path
    threads: int
    ranks: int
    items: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """Work between whose end and the next one's beginning the bench may stop.

    Attributes:
        name: within its part.
        seconds: that it may take; of what is left of the bench's time, this much must be there for it to begin.
        measure: does it.
    """

    name: str
    seconds: float
    measure: Callable[[], Figures]


@dataclass(frozen=True)
class Verdict:
    """A target, and what was found.

    Attributes:
        target: what is to be reached.
        found: the figure in words; empty where it is not measured yet.
        met: whether it is; None where it is not measured yet.
    """

    target: str
    found: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class PartTable:
    """A part's figures in words.

    Attributes:
        head: names of the columns.
        rows: cells, as many in each row.
        notes: sentences to go below.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """A part of the bench.

    Attributes:
        name: as in ``--part`` and in the record.
        title: what it measures.
        units: the work, in order.
        table: of the figures that there are.
        verdicts: on the part's targets, those without figures included.
        reads: which files it needs: ``cifar``, ``images``.
    """

    name: str
    title: str
    units: Callable[[Bench], Sequence[Unit]]
    table: Callable[[UnitFigures], PartTable]
    verdicts: Callable[[UnitFigures], Sequence[Verdict]]
    reads: frozenset[str] = frozenset()


def milliseconds(seconds: Spread) -> str:
    """Median and quartiles of seconds, in milliseconds."""
    median, low, high = (f"{1e3 * value:.4g}" for value in (seconds.median, seconds.low, seconds.high))
    return f"{median} ({low}-{high})"


def times(ratio: Spread) -> str:
    """Median and quartiles of a ratio."""
    return f"{ratio.median:.3f}x ({ratio.low:.3f}-{ratio.high:.3f})"


def rate(per_second: Spread) -> str:
    """Median and quartiles of a rate."""
    return f"{per_second.median:,.0f} ({per_second.low:,.0f}-{per_second.high:,.0f})"


def above_one(ratio: float) -> str:
    """What a ratio adds, in per cent."""
    return f"{100 * (ratio - 1):+.1f} %"
