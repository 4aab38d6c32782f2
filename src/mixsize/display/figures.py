"""One style for all plots, drawn without a display."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixsize.system.files import in_one_piece

#: Distinct for any colour vision (Okabe and Ito 2008), the first two most of all.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Tell lines apart in prints without colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Colours of text and axes, and of the grid.
INK, GRID = "#333333", "#DDDDDD"
#: Decorates functions that draw names from recipes and records: a dollar sign starts no formula in them.
with_plain_text = mpl.rc_context({"text.parse_math": False})


def new_figure(columns: int = 1, width: float = 7.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` plots side by side, each ``width`` by ``height`` inches."""
    # pyplot would keep every figure alive and ask for a display.
    figure = Figure(figsize=(width * columns, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for plot in axes:
        plot.set_prop_cycle(color=COLOURS, marker=MARKERS)
        plot.grid(color=GRID, linewidth=0.8)
        plot.set_axisbelow(True)
        plot.spines[["top", "right"]].set_visible(False)
        plot.spines[["left", "bottom"]].set_color(INK)
        plot.tick_params(colors=INK)
    return figure, axes


def png(figure: Figure, description: str | None = None) -> bytes:
    """A figure as a PNG file, with a text in its metadata."""
    file = io.BytesIO()
    # Without the version in it, the same figure gives the same bytes.
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None, "Description": description})
    return file.getvalue()


def save(figure: Figure, path: Path, description: str | None = None) -> None:
    """Write a PNG atomically."""
    with in_one_piece(path) as partial:
        partial.write_bytes(png(figure, description))
