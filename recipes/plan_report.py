"""What a recipe's regime amounts to, without touching data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mixsize.algorithms.regime import Regime
from mixsize.ffcv_loaders.plan import plan_length
from mixsize.ffcv_loaders.ranks import process_rank
from mixsize.recipes.arguments import add_items
from mixsize.recipes.compose import compose
from mixsize.recipes.model import planned_stride
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
    regime = build_regime(recipe, planned_stride(recipe), ranks)
    total = steps_total(recipe, regime, images)
    per_choice = _steps_by_choice(regime, images)
    return {
        "name": recipe.name,
        "images": images,
        "max_duration": recipe.max_duration,
        "mode": regime.mode,
        "share_of": regime.share_of,
        "draw": regime.draw,
        "base": {
            "size_px": regime.base.size_px,
            "batch_size": regime.base.batch_size,
            "duplicates": regime.base.duplicates,
        },
        "choices": [
            {
                "size_px": choice.size_px,
                "batch_size": choice.batch_size,
                "duplicates": choice.duplicates,
                "share": choice.share,
                "steps_per_epoch": steps,
                "pixels_per_step_ratio": choice.pixels / regime.base.pixels,
            }
            for choice, steps in zip(regime.choices, per_choice, strict=True)
        ],
        "steps_per_epoch": regime.steps_per_epoch(images),
        "steps_total": total,
        "mean_size_px": regime.mean_size_px,
        "mean_batch_size": regime.mean_batch_size,
        "mean_duplicates": regime.mean_duplicates,
        "lr_scale": regime.lr_scale,
        "pixels_per_step_ratio": regime.pixels_per_step_ratio,
        "pixels_per_epoch_ratio": regime.pixels_per_epoch_ratio,
        "regime_digest": regime.digest(),
    }


def steps_total(recipe: Recipe, regime: Regime, images: int) -> int:
    """Optimiser steps of the whole run, with the lengths that its epochs will have."""
    length, unit = recipe.duration
    if unit == "ba":
        return length
    if regime.draw == "step":
        return length * plan_length(regime, images, recipe.seed, 0)
    return sum(plan_length(regime, images, recipe.seed, epoch) for epoch in range(length))


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
        "linear lr scale": f"{plan['lr_scale']:.3f}",
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
