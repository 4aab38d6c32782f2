"""The plot of a loader result: images a second over the image side, one line for each loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mixsize.bench.loader.report import LABELS
from mixsize.display.figures import COLOURS, MARKERS, new_figure, save


def plot(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of the fixed sizes without duplicates: medians, with ranges as bars."""
    sizes = {
        case["name"]: case["sizes_px"][0]
        for case in result["cases"]
        if len(case["sizes_px"]) == 1 and case["duplicates"] == [1]
    }
    figure, (axes,) = new_figure(width=8.0, height=4.8)
    # A loader keeps its colour whichever others were timed.
    for loader, colour, marker in zip(LABELS, COLOURS, MARKERS, strict=False):
        rates = result["rates"].get(loader, {})
        points = sorted((sizes[name], rate) for name, rate in rates.items() if name in sizes)
        if points:
            axes.errorbar(
                [size for size, _ in points],
                [rate["median"] for _, rate in points],
                yerr=[
                    [rate["median"] - rate["min"] for _, rate in points],
                    [rate["max"] - rate["median"] for _, rate in points],
                ],
                label=LABELS[loader],
                color=colour,
                marker=marker,
                capsize=2.5,
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(sizes.values()))
    axes.set_xlabel("image side, px")
    axes.set_ylabel(f"training images/s, {result['setting']['threads']} cores")
    axes.legend(frameon=False)
    save(figure, path)
