"""Train a recipe under several regimes, then evaluate each over many sizes with and without calibrated batch norm."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.loader import EvalLoader
from mixsize.recipes.build.trainer import build, build_augment, build_calibration_loader
from mixsize.recipes.commands.arguments import add_items
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.schema import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench calibration``."""
    add_items(parser)
    parser.add_argument(
        "--regime", action="append", required=True, metavar="ITEM", help="regime of one run; give it once for each"
    )
    parser.add_argument("--sizes", type=int, nargs="+", required=True, metavar="PX", help="sides to evaluate at")
    parser.add_argument("--batches", type=int, default=200, help="batches that calibrate a size")
    parser.add_argument("--out", type=Path, help="result file; by default bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose every run's recipe first; what is returned trains and evaluates them."""
    recipes = {}
    for item in args.regime:
        label = item.rpartition("/")[2]
        items = [*args.items, item]
        recipes[label] = compose([*items, f"name={compose(items).name}-{label}"])

    def measured() -> int:
        runs = {label: train_and_evaluate(recipe, args.sizes, args.batches) for label, recipe in recipes.items()}
        print_accuracies(runs, plain_console())
        keep_result(args.out, "calibration", {"batches": args.batches, "runs": runs})
        return 0

    return measured


def train_and_evaluate(recipe: Recipe, sizes: list[int], batches: int) -> dict[str, Any]:
    """The run's record, with its accuracy at each size by the network's own statistics and by calibrated ones."""
    run = build(recipe)
    record = fit(run)
    network = run.trainer.state.model.module
    device = next(network.parameters()).device
    with Beton.open(recipe.data.train) as train:
        bank = StatisticsBank()
        accuracy: dict[str, dict[str, float]] = {"own": {}, "calibrated": {}}
        for size_px in sizes:
            bank.calibrate(
                network, size_px, build_calibration_loader(recipe, train, size_px, device), max_batches=batches
            )
            accuracy["own"][str(size_px)] = evaluate(network, recipe, train, size_px)
            with bank.use(network, size_px):
                accuracy["calibrated"][str(size_px)] = evaluate(network, recipe, train, size_px)
    return {
        "record": record.model_dump(mode="json"),
        "train_images": run.loader.dataset.num_samples,
        "accuracy": accuracy,
    }


def evaluate(network: torch.nn.Module, recipe: Recipe, train: Beton, size_px: int) -> float:
    """Top-1 accuracy, as a fraction, over the recipe's evaluation images at one size."""
    device = next(network.parameters()).device
    loader = EvalLoader(
        recipe.data.eval,
        size_px,
        recipe.evaluation.batch_size,
        augment=build_augment(recipe.data.eval_transform),
        mean=recipe.data.mean or (train.info.mean if train.info else None),
        std=recipe.data.std or (train.info.std if train.info else None),
        device=device,
    )
    network.eval()
    with torch.no_grad():
        hits = [(network(images).argmax(1) == labels).float() for images, labels in loader]
    return float(torch.cat(hits).mean())


def print_accuracies(runs: dict[str, dict[str, Any]], console: Console) -> None:
    """Two rows a regime: the network's own statistics, and calibrated ones."""
    sizes = list(next(iter(runs.values()))["accuracy"]["own"])
    rows = [
        [label, statistics, *(f"{100 * values[size]:.1f}" for size in sizes)]
        for label, run in runs.items()
        for statistics, values in run["accuracy"].items()
    ]
    head = ["regime", "batch norm", *(f"{size} px" for size in sizes)]
    print_table(console, head, rows, title="top-1 % by evaluation size")
