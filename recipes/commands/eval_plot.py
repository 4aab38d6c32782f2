"""The plot of evaluations over image sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mixsize.display.figures import COLOURS, MARKERS, new_figure, with_plain_text
from mixsize.recipes.commands.eval_report import EvalRecord, accuracies
from mixsize.recipes.records.run_record import CALIBRATED, OWN

#: More ticks would overlap; the paper evaluates at 13 sizes.
_MAX_TICKS = 15
_LINE_STYLES = {OWN: {}, CALIBRATED: {"linestyle": "--", "markerfacecolor": "white"}}


@with_plain_text
def draw(records: Sequence[EvalRecord]) -> Figure:
    """Top-1 accuracy by size and by computation, as in figures 1 and 3 of the MixSize paper.

    Each record has a colour. Solid lines show its own batch-norm statistics, dashed lines calibrated ones. Ticks above
    the axis of sizes mark the sizes of its training.
    """
    figure, (by_size, by_macs) = new_figure(columns=2, width=6.0, height=4.4)
    for index, (record, label) in enumerate(zip(records, _labels(records), strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        common = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linewidth": 1.6}
        for kind in [OWN] if record.calibration_batches is None else [OWN, CALIBRATED]:
            points = [(row, 100 * found.top1) for row in record.sizes for k, found in accuracies(row) if k == kind]
            top1 = [value for _, value in points]
            style: dict[str, Any] = {**common, **_LINE_STYLES[kind]}
            by_size.plot([row.size_px for row, _ in points], top1, label=f"{label}, {kind}", **style)
            by_macs.plot([row.macs / 1e9 for row, _ in points], top1, **style)
        if record.trained_sizes_px:
            _mark_trained(by_size, record.trained_sizes_px, index, colour, f"{label}, sizes trained at")
    sizes = sorted({row.size_px for record in records for row in record.sizes})
    if len(sizes) <= _MAX_TICKS:
        by_size.set_xticks(sizes)
    by_size.set_xlabel("image size, px")
    by_size.set_ylabel("top-1 accuracy, %")
    by_macs.set_xlabel("GMACs of one image's forward pass")
    by_macs.set_ylabel("top-1 accuracy, %")
    by_macs.set_xscale("log")
    by_macs.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_macs.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    by_macs.xaxis.set_minor_formatter(NullFormatter())
    # matplotlib fills the columns of a legend one after the other: one for each record.
    figure.legend(loc="outside lower center", ncols=3 if len(records) == 1 else len(records), frameon=False)
    return figure


def _mark_trained(axes: Axes, sizes_px: Sequence[int], index: int, colour: str, label: str) -> None:
    axes.plot(
        sizes_px,
        [0.02 + 0.04 * index] * len(sizes_px),
        # Heights are fractions of the axes, so the marks stand above the axis at any accuracy.
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="|",
        markersize=9,
        markeredgewidth=2.2,
        color=colour,
        label=label,
    )


def _labels(records: Sequence[EvalRecord]) -> list[str]:
    """Names; the runs of a name that occurs twice also get the first digits of their files."""
    names = Counter(record.name for record in records)
    return [r.name if names[r.name] == 1 else f"{r.name} {r.sha256[:6]}" for r in records]
