"""A plan as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixsize.display.figures import COLOURS, new_figure, with_plain_text
from mixsize.recipes.planning.costs import Plan, PlannedPhase, PlannedShape


@with_plain_text
def plot_plan(plan: Plan) -> Figure:
    """Draw images and steps of an epoch by image size; of the run, with the sizes by epoch, where epochs differ."""
    by_epoch = len(plan.size_by_epoch) > 1 or len(plan.phases) > 1
    figure, (*first, images, steps) = new_figure(columns=3 if by_epoch else 2, width=4.6)
    if by_epoch and plan.size_by_epoch:
        _draw_epochs(first[0], plan.size_by_epoch)
    elif by_epoch:
        _draw_shares(first[0], plan.phases)
    sizes = sorted({row.size_px for row in plan.shapes})

    def count(row: PlannedShape) -> float:
        return row.steps_total if by_epoch else row.steps_per_epoch

    distinct = _by_size(plan, sizes, lambda row: count(row) * row.batch_size)
    views = _by_size(plan, sizes, lambda row: count(row) * row.batch_size * row.duplicates)
    _draw_bars(images, sizes, {"with duplicates": views, "distinct": distinct} if views != distinct else {"": distinct})
    _draw_bars(steps, sizes, {"": _by_size(plan, sizes, count)})
    span = "the run" if by_epoch else "an epoch"
    images.set_title(f"images of {span}")
    steps.set_title(f"steps of {span}")
    recipe = plan.recipe
    figure.suptitle(f"{recipe.name}: {recipe.regime.mode}, {plan.steps_total:,} steps in {recipe.max_duration}")
    return figure


def _by_size(plan: Plan, sizes: Sequence[int], count: Callable[[PlannedShape], float]) -> list[float]:
    return [sum(count(row) for row in plan.shapes if row.size_px == size) for size in sizes]


def _draw_epochs(plot: Axes, sizes: Sequence[int]) -> None:
    plot.step(range(len(sizes) + 1), [*sizes, sizes[-1]], where="post", marker="")
    plot.set_title("image size by epoch")
    plot.set_xlabel("epoch")
    plot.set_ylabel("px")
    plot.set_yticks(sorted(set(sizes)))


def _draw_shares(plot: Axes, phases: Sequence[PlannedPhase]) -> None:
    """Draw each size's share of the samples as an area, the smallest size at the bottom."""
    edges = [edge for phase in phases for edge in (phase.start, phase.start + phase.epochs)]
    drawn = [
        {choice.size_px: share for choice, share in zip(phase.regime.choices, phase.regime.sample_shares, strict=True)}
        for phase in phases
    ]
    sizes = sorted({size for shares in drawn for size in shares})
    areas = [[shares.get(size, 0.0) for shares in drawn for _ in range(2)] for size in sizes]
    shades = [0.25 + 0.75 * place / max(1, len(sizes) - 1) for place in range(len(sizes))]
    for area, size, shade in zip(
        plot.stackplot(edges, areas, colors=[COLOURS[0]] * len(sizes)), sizes, shades, strict=True
    ):
        area.set(alpha=shade, label=f"{size} px")
    plot.set_title("shares of the samples by epoch")
    plot.set_xlabel("epoch")
    plot.set_ylim(0, 1)
    plot.legend(framealpha=0.9, handlelength=1, fontsize="small", reverse=True)


def _draw_bars(plot: Axes, sizes: Sequence[int], series: dict[str, list[float]]) -> None:
    """Draw one group of bars for each size; later series in front of earlier ones."""
    places = range(len(sizes))
    for (label, values), colour in zip(series.items(), reversed(COLOURS[: len(series)]), strict=True):
        plot.bar(places, values, label=label, color=colour, width=0.7)
    plot.set_xticks(places, [str(size) for size in sizes])
    plot.set_xlabel("image size, px")
    plot.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    plot.grid(visible=False, axis="x")
    if len(series) > 1:
        plot.legend(frameon=False)
