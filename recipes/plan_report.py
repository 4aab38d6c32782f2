"""What a recipe's regime amounts to, without touching data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mixsize.algorithms.progression import Progression
from mixsize.algorithms.regime import Regime
from mixsize.ffcv_loaders.plan import plan_length
from mixsize.ffcv_loaders.ranks import process_rank
from mixsize.recipes.arguments import add_items
from mixsize.recipes.compose import compose
from mixsize.recipes.model import check_sizes, network_stride, planned_network
from mixsize.recipes.regimes import build_regime
from mixsize.recipes.schema import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize plan``."""
    add_items(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Work the plan out; what is returned prints it."""
    plan = describe_plan(compose(args.items))

    def show() -> int:
        if args.json:
            print(json.dumps(plan, indent=1))
        else:
            print_plan(plan, Console())
        return 0

    return show


def describe_plan(recipe: Recipe) -> dict[str, Any]:
    """The regime's table and totals in plain values.

    Raises:
        ValueError: no ``data.train_images``, or a regime that cannot be.
    """
    images = recipe.data.train_images
    if images is None:
        raise ValueError(
            "data.train_images is not given; a plan needs the number of training images, for instance "
            "data.train_images=50000"
        )
    _, ranks = process_rank()
    network = planned_network(recipe)
    regime = build_regime(recipe, network_stride(network), ranks)
    check_sizes(network, recipe.model.name, [choice.size_px for part in regime.regimes for choice in part.choices])
    parts = _parts(recipe, regime)
    steps = [sum(_steps_by_choice(part, images)) for part, _ in parts]
    mean_batch = sum(weight * part.mean_batch_size * count for (part, weight), count in zip(parts, steps, strict=True))
    mean_steps = sum(weight * count for (_, weight), count in zip(parts, steps, strict=True))
    mean_batch /= mean_steps
    pixels = sum(weight * part.pixels_per_epoch_ratio for part, weight in parts)
    base = regime.base
    return {
        "name": recipe.name,
        "images": images,
        "max_duration": recipe.max_duration,
        "mode": recipe.regime.mode,
        "share_of": parts[0][0].share_of if isinstance(regime, Regime) else "epochs",
        "draw": regime.draw if isinstance(regime, Regime) else "phase",
        "base": {"size_px": base.size_px, "batch_size": base.batch_size, "duplicates": base.duplicates},
        "choices": [row for part, weight in parts for row in _rows(part, weight, images)],
        "steps_per_epoch": mean_steps,
        "steps_total": steps_total(recipe, regime, images),
        "mean_size_px": sum(weight * part.mean_size_px for part, weight in parts),
        "mean_batch_size": mean_batch,
        "mean_duplicates": sum(weight * part.mean_duplicates for part, weight in parts),
        "lr_scale": regime.lr_scale if isinstance(regime, Regime) else None,
        "pixels_per_step_ratio": pixels * mean_batch / base.batch_size,
        "pixels_per_epoch_ratio": pixels,
        "regime_digest": regime.digest(),
    }


def _parts(recipe: Recipe, regime: Regime | Progression) -> list[tuple[Regime, float]]:
    """What is drawn from, with the fraction of the run's epochs: one regime, or a progression's phases."""
    if isinstance(regime, Regime):
        return [(regime, 1)]
    length, unit = recipe.duration
    if unit == "ba":
        raise ValueError("max_duration: a plan of phases needs epochs, as phases are counted in them")
    ends = [min(end, length) for end in (*regime.starts[1:], length)]
    return [
        (part, (end - start) / length)
        for part, start, end in zip(regime.regimes, regime.starts, ends, strict=True)
        if end > start
    ]


def _rows(regime: Regime, weight: float, images: int) -> list[dict[str, Any]]:
    return [
        {
            "size_px": choice.size_px,
            "batch_size": choice.batch_size,
            "duplicates": choice.duplicates,
            "share": choice.share * weight,
            "steps_per_epoch": steps,
            "pixels_per_step_ratio": choice.pixels / regime.base.pixels,
        }
        for choice, steps in zip(regime.choices, _steps_by_choice(regime, images), strict=True)
    ]


def steps_total(recipe: Recipe, regime: Regime | Progression, images: int) -> int:
    """Optimiser steps of the whole run, with the lengths that its epochs will have."""
    length, unit = recipe.duration
    if unit == "ba":
        return length
    return sum(plan_length(regime.at_epoch(epoch), images, recipe.seed, epoch) for epoch in range(length))


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """The same as a table."""
    table = Table(title=f"{plan['name']}: {plan['mode']}, shares of {plan['share_of']}, drawn each {plan['draw']}")
    for column in ("size px", "batch", "duplicates", "share", "steps / epoch", "pixels / step"):
        table.add_column(column, justify="right")
    for row in plan["choices"]:
        table.add_row(
            str(row["size_px"]),
            f"{row['batch_size']:,}",
            str(row["duplicates"]),
            f"{row['share']:.4g}",
            f"{row['steps_per_epoch']:,.6g}",
            f"{row['pixels_per_step_ratio']:.2f}x",
        )
    console.print(table)
    base = plan["base"]
    lines = {
        "images": f"{plan['images']:,}",
        "base": f"{base['size_px']} px, batch {base['batch_size']}, duplicates {base['duplicates']}",
        "steps per epoch": f"{plan['steps_per_epoch']:,.6g}",
        f"steps in {plan['max_duration']}": f"{plan['steps_total']:,}",
        "mean size": f"{plan['mean_size_px']:.4g} px",
        "mean batch": f"{plan['mean_batch_size']:.1f}",
        "mean duplicates": f"{plan['mean_duplicates']:.3g}",
        "linear lr scale": f"{plan['lr_scale']:.3f}" if plan["lr_scale"] else "by phase",
        "pixels of an epoch": f"{plan['pixels_per_epoch_ratio']:.3f} of the base's",
    }
    for name, value in lines.items():
        console.print(f"{name:>20}  {value}", highlight=False)


def _steps_by_choice(regime: Regime, images: int) -> Sequence[float]:
    if regime.draw == "step":
        return regime.step_counts(images)
    return [
        share * regime.epoch_steps(choice, images)
        for share, choice in zip(regime.sample_shares, regime.choices, strict=True)
    ]
