"""A loader result as a picture: images a second over the image side, a line for each loader, and the floor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mixsize.bench.loader.report import LABELS
from mixsize.display.figures import COLOURS, MARKERS, new_figure, save

_FLOOR_COLOUR = "#666666"
# Of the plot's height, between two names; of its width, for all of them.
_NAME_HEIGHT, _NAMES_WIDTH = 0.05, 0.2


@dataclass(frozen=True)
class _Name:
    """A line's name, to stand beside its first point."""

    size_px: float
    rate: float
    text: str
    colour: str


def plot(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of the fixed sizes without duplicates: medians, and ranges as bars.

    Lines are named at their left ends: not all loaders reach the largest size.
    """
    sizes = {
        case["name"]: case["sizes_px"][0]
        for case in result["cases"]
        if len(case["sizes_px"]) == 1 and case["duplicates"] == [1]
    }
    figure, (axes,) = new_figure(width=8.0, height=4.8)
    names = []
    # A colour belongs to a loader, whichever others were timed.
    for loader, colour, marker in zip(LABELS, COLOURS, MARKERS, strict=False):
        rates = result["rates"].get(loader, {})
        points = sorted((sizes[name], rate) for name, rate in rates.items() if name in sizes)
        if points:
            _line(axes, points, colour, marker)
            names.append(_Name(points[0][0], points[0][1]["median"], LABELS[loader], colour))
    _floors(axes, result["rates"], sizes)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(sizes.values()))
    axes.set_xlabel("image side, px")
    axes.set_ylabel(f"training images/s, {result['setting']['threads']} cores")
    _write_names(axes, names)
    save(figure, path)


def _line(axes: Axes, points: Sequence[tuple[int, dict[str, float]]], colour: str, marker: str) -> None:
    rates = [rate for _, rate in points]
    below = [rate["median"] - rate["min"] for rate in rates]
    above = [rate["max"] - rate["median"] for rate in rates]
    axes.errorbar(
        [size for size, _ in points],
        [rate["median"] for rate in rates],
        yerr=[below, above],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.8,
        capsize=2.5,
        elinewidth=1,
    )


def _floors(axes: Axes, rates: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int]) -> None:
    """Broken lines, named at their right ends."""
    style = {"color": _FLOOR_COLOUR, "linestyle": "--", "linewidth": 1.2, "marker": ""}
    end = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "va": "bottom", "color": _FLOOR_COLOUR}
    for rate in rates.get("floor", {}).values():
        axes.axhline(rate["median"], **style)
        axes.annotate(
            "entropy decoding alone, whole images", (1, rate["median"]), xycoords=axes.get_yaxis_transform(), **end
        )
    points = sorted((sizes[name], rate["median"]) for name, rate in rates.get("floor levels", {}).items())
    if points:
        axes.plot(*zip(*points, strict=True), **style)
        axes.annotate("entropy decoding alone, smallest copy that suffices", points[0], **{**end, "ha": "left"})


def _write_names(axes: Axes, names: Sequence[_Name]) -> None:
    """In a column left of the lines, moved apart where they would overlap."""
    left, right = axes.get_xlim()
    first = min((name.size_px for name in names), default=0)
    column = sorted((name for name in names if name.size_px == first), key=lambda name: name.rate)
    axes.set_xlim(left - _NAMES_WIDTH * (right - left), right)
    # In shares of the plot's height.
    low, high = np.log(axes.get_ylim())
    heights = [(np.log(name.rate) - low) / (high - low) for name in column]
    for name, height in zip(column, _apart(heights, _NAME_HEIGHT), strict=True):
        axes.annotate(
            name.text,
            (first, name.rate),
            (first - 0.04 * (right - left), height),
            textcoords=axes.get_xaxis_transform(),
            ha="right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": name.colour, "linewidth": 1, "shrinkA": 1, "shrinkB": 4},
        )
    for name in names:
        if name.size_px != first:
            axes.annotate(name.text, (name.size_px, name.rate), (6, 6), textcoords="offset points")


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved until neighbours are about a gap apart, each cluster about its middle."""
    moved = list(heights)
    for _ in range(50):
        for i, j in itertools.pairwise(range(len(moved))):
            overlap = gap - (moved[j] - moved[i])
            if overlap > 0:
                moved[i] -= overlap / 2
                moved[j] += overlap / 2
    return moved
