"""The plot of a loader result: images a second and CPU time over the image side, one line for each loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mixsize.bench.loader.loaders import LOADERS
from mixsize.display.figures import COLOURS, MARKERS, new_figure, save


def plot(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of the fixed sizes without duplicates: medians, with ranges as bars."""
    panels = {
        "rates": f"training images/s, {result['setting']['threads']} cores",
        "cpu_ms": "CPU time, ms/image",
    }
    figure, axes = new_figure(columns=len(panels), width=8.0, height=4.8)
    for panel, (key, words) in zip(axes, panels.items(), strict=True):
        _draw(panel, result, key)
        panel.set_ylabel(words)
    axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def _draw(panel: Axes, result: dict[str, Any], key: str) -> None:
    sizes = {
        case["name"]: case["sizes_px"][0]
        for case in result["cases"]
        if len(case["sizes_px"]) == 1 and case["duplicates"] == [1]
    }
    # A loader keeps its colour whichever others were timed.
    for index, (loader, candidate) in enumerate(LOADERS.items()):
        found = result[key].get(loader, {})
        points = sorted((sizes[name], value) for name, value in found.items() if name in sizes)
        if points:
            panel.errorbar(
                [size for size, _ in points],
                [value["median"] for _, value in points],
                yerr=[
                    [value["median"] - value["min"] for _, value in points],
                    [value["max"] - value["median"] for _, value in points],
                ],
                label=candidate.label,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                linestyle="-" if index < len(COLOURS) else "--",
                capsize=2.5,
            )
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_xticks(sorted(sizes.values()))
    panel.set_xlabel("image side, px")
