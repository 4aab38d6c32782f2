"""``mixsize plan``: print the shapes and costs of a recipe's regime, without reading images."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mixsize.display.console import plain_console, print_table
from mixsize.recipes.commands.arguments import add_imports, add_items, import_modules
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.step_times import read_step_times

if TYPE_CHECKING:
    from mixsize.recipes.build.checks import KnownData
    from mixsize.recipes.planning.costs import Plan, PlannedPhase

#: More phases are shown in part.
_SHOWN_PHASES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize plan``."""
    add_items(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--times",
        type=Path,
        metavar="FILE",
        help="predict the time of training from the measured steps of a run's record.json",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw sizes, images and steps into this PNG")
    parser.add_argument(
        "--as",
        dest="other",
        choices=("timm",),
        help="print the command of timm's own train.py that trains the recipe, as far as it can; the rest is named on"
        " stderr",
    )
    parser.add_argument(
        "--table", action="store_true", help="print all packaged networks and their regimes as one Markdown table"
    )
    add_imports(parser)


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compute the plan; the function returned prints it.

    Raises:
        ValueError: no items, options that exclude each other, a plot that is not a PNG, or a recipe that training would
            refuse.
    """
    if args.table:
        return _prepare_table(args)
    if not args.items:
        raise ValueError("plan: give a recipe, for instance: mixsize plan cifar10/resnet44 regime/s28_bplus")
    if args.other is not None and (args.json or args.times or args.plot):
        raise ValueError("--as timm: prints a command alone; leave out --json, --times and --plot")
    if args.plot is not None and args.plot.suffix != ".png":
        raise ValueError(f"--plot {args.plot}: the figure is a PNG; give a name that ends in .png")
    if args.plot is not None:
        # Without matplotlib, the command ends before it prints.
        import_module("mixsize.recipes.planning.plot")
    recipe = compose(args.items)
    times = read_step_times(args.times) if args.times else None
    import_modules(args.imports)
    # These imports take seconds, which a mistake in the recipe need not wait for.
    from mixsize.recipes.build.checks import known_data
    from mixsize.recipes.models.network import check_checkpoint
    from mixsize.recipes.planning.costs import make_plan
    from mixsize.system.ranks import process_rank

    data = known_data(recipe, process_rank()[1])
    plan = make_plan(data.recipe, times)
    check_checkpoint(data.recipe)
    if args.other is not None:
        return _prepare_timm(plan, data)

    def show() -> int:
        if args.json:
            print(json.dumps(plan_values(plan, data), indent=1))
        else:
            print_plan(plan, data, plain_console(), timed=args.times is not None)
        if args.plot is not None:
            # matplotlib takes a second to import.
            from mixsize.display.figures import save
            from mixsize.recipes.planning.plot import plot_plan

            save(plot_plan(plan), args.plot)
            if not args.json:
                print(f"plot: {args.plot}")
        return 0

    return show


def _prepare_timm(plan: Plan, data: KnownData) -> Callable[[], int]:
    from mixsize.recipes.build.preparation import with_preparation
    from mixsize.recipes.models.network import planned_network
    from mixsize.recipes.planning.timm_arguments import timm_arguments
    from mixsize.system.ranks import process_rank

    values, ranks = plan.recipe.data, process_rank()[1]
    if values.normalization == "file" and not (values.mean and values.std) and data.train is None:
        raise ValueError(f"data.normalization: file, and there is no file {values.train}; give data.mean and data.std")
    recipe = with_preparation(plan.recipe, planned_network(plan.recipe), data.train)
    told = timm_arguments(recipe, plan.regime, plan.epochs, ranks)
    script = "python train.py" if ranks == 1 else f"torchrun --nproc-per-node={ranks} train.py"

    def show() -> int:
        print(" \\\n  ".join([script, *map(shlex.join, told.arguments)]))
        for title, lines in (("timm approximates", told.approximated), ("timm cannot express", told.missing)):
            for line in [f"{title}:", *(f"  {line}" for line in lines)] if lines else ():
                print(line, file=sys.stderr)
        return 0

    return show


def _prepare_table(args: argparse.Namespace) -> Callable[[], int]:
    if args.items or args.json or args.times or args.plot or args.other:
        raise ValueError("--table: takes no items and no other option; it lists all packaged networks and regimes")

    def show() -> int:
        from mixsize.recipes.planning.table import plans_table

        print(plans_table(), end="")
        return 0

    return show


def plan_values(plan: Plan, data: KnownData) -> dict[str, Any]:
    """The plan in plain values, for JSON; ``data_files`` has null for a file that does not exist."""
    recipe = plan.recipe
    computed = (
        "share_of", "draw", "epochs", "size_by_epoch", "steps_per_epoch", "steps_total", "mean_size_px",
        "mean_batch_size", "mean_duplicates", "lr_scale", "pixels_per_epoch_ratio", "macs_per_epoch_ratio",
        "pixels_per_step_ratio", "seconds_per_epoch", "seconds_total", "untimed",
    )  # fmt: skip
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "images": recipe.data.train_images,
        "data_files": {
            key: file and str(file.path) for key, file in (("train", data.train), ("eval", data.evaluation))
        },
        "max_duration": recipe.max_duration,
        "mode": recipe.regime.mode,
        "base": asdict(plan.base),
        **{name: getattr(plan, name) for name in computed},
        "regime_digest": plan.regime.digest(),
        "choices": [{**asdict(shape), "macs_per_step": shape.macs_per_step} for shape in plan.shapes],
        "phases": [
            {
                "start": phase.start,
                "epochs": phase.epochs,
                "shares": {choice.size_px: choice.share for choice in phase.regime.choices},
                "pixels_per_epoch_ratio": phase.regime.pixels_per_epoch_ratio,
                "strengths": {name: _strengths(plan, phase, name) for name in plan.strengths},
            }
            for phase in plan.phases
        ],
    }


def print_plan(plan: Plan, data: KnownData, console: Console, timed: bool) -> None:
    """Print the shapes, their costs and the totals."""
    title = f"{plan.recipe.name}: {plan.recipe.regime.mode}, shares of {plan.share_of}, drawn each {plan.draw}"
    head = ["size px", "batch", "duplicates", "share", "steps / epoch", "pixels / step"]
    rows = [
        [
            str(row.size_px),
            f"{row.batch_size:,}",
            str(row.duplicates),
            f"{row.share:.4g}",
            f"{row.steps_per_epoch:,.6g}",
            f"{row.pixels_per_step_ratio:.2f}x",
        ]
        for row in plan.shapes
    ]
    print_table(console, head, rows, title=title, named=False)
    if plan.strengths or len(plan.shapes) != len(plan.phases) > 1:
        print_phases(plan, console)
    title = f"cost of {plan.recipe.model.name}'s forward pass (MAC: multiply-accumulate)"
    print_table(console, *_cost_rows(plan, timed), title=title, named=False)
    for name, value in _totals(plan, data, timed).items():
        console.print(f"{name:>20}  {value}", highlight=False, soft_wrap=True)


def print_phases(plan: Plan, console: Console) -> None:
    """Print what is drawn and set in each phase; of many phases, in some of them at equal distances."""
    sizes = sorted({row.size_px for row in plan.shapes}, reverse=True)
    head = ["epochs", "mean px", "pixels / epoch", *(f"{size} px" for size in sizes), *plan.strengths]
    last, shown = len(plan.phases) - 1, min(len(plan.phases), _SHOWN_PHASES)
    rows = []
    for place in range(shown):
        phase = plan.phases[round(place * last / (shown - 1)) if last else 0]
        shares = {choice.size_px: f"{choice.share:.3g}" for choice in phase.regime.choices}
        end = phase.start + math.ceil(phase.epochs) - 1
        rows.append(
            [
                f"{phase.start:,}" if end == phase.start else f"{phase.start:,} to {end:,}",
                f"{phase.regime.mean_size_px:.0f}",
                f"{phase.regime.pixels_per_epoch_ratio:.2f}x",
                *(shares.get(size, "") for size in sizes),
                *(_in_words(_strengths(plan, phase, name)) for name in plan.strengths),
            ]
        )
    title = f"{shown} of {last + 1} phases, shares of the sizes" if last >= shown else "phases, shares of the sizes"
    print_table(console, head, rows, title=title, named=False)


def _strengths(plan: Plan, phase: PlannedPhase, name: str) -> tuple[float | None, float | None]:
    """A strength in the first and the last epoch of a phase; None where it stays as it is configured."""
    first, last = phase.start, phase.start + math.ceil(phase.epochs) - 1
    return plan.regime.strength_at(name, first), plan.regime.strength_at(name, last)


def _in_words(ends: tuple[float | None, float | None]) -> str:
    first, last = ends
    if first is None or last is None:
        return ""
    return f"{first:.3g}" if first == last else f"{first:.3g} to {last:.3g}"


def _cost_rows(plan: Plan, timed: bool) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the cost of each shape."""
    head = ["size px", f"steps in {plan.recipe.max_duration}", "Mpixels / step", "GMACs / image", "GMACs / step"]
    if timed:
        head += ["s / step", "training time"]
    rows = []
    for row in plan.shapes:
        cells = [
            str(row.size_px),
            f"{row.steps_total:,.6g}" if row.steps_total < 1e6 else f"{row.steps_total:,.0f}",
            f"{row.pixels_per_step / 1e6:,.3g}",
            _giga(row.macs_per_image),
            _giga(row.macs_per_step),
        ]
        if timed:
            seconds = row.seconds_per_step
            cells += ["-", "-"] if seconds is None else [f"{seconds:.4g}", duration(row.steps_total * seconds)]
        rows.append(cells)
    return head, rows


def _totals(plan: Plan, data: KnownData, timed: bool) -> dict[str, str]:
    base, given = plan.base, plan.recipe.data
    images = f"{given.train_images:,}"
    lines = {
        "images": f"{images} by the recipe; no file {given.train}"
        if data.train is None
        else f"{images} in {data.train.num_classes} classes of {given.train}",
        "evaluation images": f"not known; no file {given.eval}"
        if data.evaluation is None
        else f"{data.evaluation.num_samples:,} of {given.eval}",
        "base": f"{base.size_px} px, batch {base.batch_size}, duplicates {base.duplicates}",
        "steps per epoch": f"{plan.steps_per_epoch:,.6g}",
        f"steps in {plan.recipe.max_duration}": f"{plan.steps_total:,}",
        "mean size": f"{plan.mean_size_px:.4g} px",
        "mean batch": f"{plan.mean_batch_size:.1f}",
        "mean duplicates": f"{plan.mean_duplicates:.3g}",
        "linear lr scale": f"{plan.lr_scale:.3f}" if plan.lr_scale else "by phase",
        "pixels of an epoch": f"{plan.pixels_per_epoch_ratio:.3f} of the base's",
    }
    if plan.macs_per_epoch_ratio is not None:
        lines["GMACs of an epoch"] = f"{plan.macs_per_epoch_ratio:.3f} of the base's"
    if timed and plan.seconds_total is not None and plan.seconds_per_epoch is not None:
        lines["time of an epoch"] = f"{duration(plan.seconds_per_epoch)}, training steps alone"
        lines[f"time of {plan.recipe.max_duration}"] = f"{duration(plan.seconds_total)}, training steps alone"
    elif timed:
        lines["time"] = f"not known: no step was timed at {', '.join(plan.untimed)}"
    return lines


def duration(seconds: float) -> str:
    """Format seconds as ``2 h 05 min``, ``3 min 20 s`` or ``12.3 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min"


def _giga(macs: int | None) -> str:
    return "-" if macs is None else f"{macs / 1e9:,.4g}"
