"""A picture that explains mixed sizes: the first steps of real plans, each step with its images."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mixsize.algorithms.regime.plan import Step, plan_epoch
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.display.figures import INK, new_figure, save

#: A small batch, so that single images can be told apart.
BASE = Base(size_px=224, batch_size=4)
STEPS = 6
_NUM_SAMPLES = 10_000
#: A seed whose first steps have every size.
_SEED = 192
# In pixels: gaps between steps and between rows, side of the largest batch.
_GAP, _ROW_GAP, _BOX = 130, 300, 520
#: The golden angle between the hues of consecutive images keeps neighbours distinct for any number of images.
_GOLDEN = 0.381966
_PROSE = {
    "fixed": "fixed size: every step takes 4 images of 224 px",
    "B+": "B+: steps at small sizes take more images, so an epoch has fewer steps",
    "D+": "D+: steps at small sizes take more augmented copies of the same number of images",
}


def draw(path: Path) -> None:
    """Write a PNG of the first steps of a fixed, a B+ and a D+ epoch; areas are to scale."""
    figure, (axes,) = new_figure(width=10.0, height=6.1)
    axes.set_axis_off()
    regimes = {
        "fixed": Regime.fixed(BASE),
        "B+": Regime.from_sizes("s144", BASE, "B+"),
        "D+": Regime.from_sizes("s144", BASE, "D+"),
    }
    for row, (name, regime) in enumerate(regimes.items()):
        bottom = -row * (_BOX + _ROW_GAP)
        axes.annotate(_PROSE[name], (0, bottom + _BOX + 35), color=INK, fontsize=14, va="bottom")
        plan = plan_epoch(regime, _NUM_SAMPLES, _SEED, epoch=0)
        for column in range(STEPS):
            _draw_step(axes, plan[column], int(plan.batch_size[:column].sum()), column * (_BOX + _GAP), bottom)
    axes.set_xlim(-10, STEPS * (_BOX + _GAP) - _GAP + 10)
    axes.set_ylim(-2 * (_BOX + _ROW_GAP) - 110, _BOX + 150)
    axes.set_aspect("equal")
    save(figure, path)


def _draw_step(axes: Axes, step: Step, first_image: int, left: float, bottom: float) -> None:
    size, copies = step.size_px, step.duplicates
    columns = copies if copies > 1 else math.ceil(math.sqrt(step.batch_size))
    for index in range(step.num_images):
        line, place = divmod(index, columns)
        image, copy = divmod(index, copies)
        axes.add_patch(
            Rectangle(
                (left + place * size, bottom + _BOX - (line + 1) * size),
                size,
                size,
                facecolor=_colour(first_image + image, copy, copies),
                edgecolor="white",
                linewidth=0.8,
            )
        )
    words = f"{step.batch_size} x {size} px" if copies == 1 else f"{step.batch_size} x {copies} x {size} px"
    axes.annotate(words, (left, bottom - 15), color=INK, fontsize=10.5, va="top")


def _colour(image: int, copy: int, copies: int) -> tuple[float, float, float]:
    """An image's hue; its copies are shades of it."""
    shade = copy / max(1, copies - 1)
    return colorsys.hls_to_rgb(image * _GOLDEN % 1, 0.45 + 0.25 * shade, 0.5)
