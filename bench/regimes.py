"""Train one recipe under several regimes, over several seeds, and put them side by side.

Each run is a process of its own, so that none inherits another's memory, threads or random state. Runs that ended
under the same recipe are not repeated, and one that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mixsize.bench.records import write_result
from mixsize.bench.spread import mean_and_spread
from mixsize.recipes.arguments import add_items
from mixsize.recipes.build import run_folder
from mixsize.recipes.compose import compose
from mixsize.recipes.resume import RECORD_FILE

#: The records of each regime's runs, one for each seed.
Records = dict[str, list[dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench regimes``."""
    add_items(parser)
    parser.add_argument(
        "--regime",
        action="append",
        required=True,
        metavar="ITEM",
        help="item that sets the regime of one run, for instance regime/s28_bplus; give it once for each run",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each regime (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the runs' records to this JSON file")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose every run's recipe first: a mistake in the last one is an error now, not after the others ran."""
    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: must be at least 1")
    runs: dict[str, list[list[str]]] = {}
    for item in args.regime:
        label = Path(item).stem
        if label in runs:
            raise ValueError(f"--regime {item}: a run named {label} was already asked for")
        items = [*args.items, item]
        recipe = compose(items)
        seeds = range(recipe.seed, recipe.seed + args.seeds)
        runs[label] = [[*items, f"name={recipe.name}-{label}-seed{seed}", f"seed={seed}"] for seed in seeds]

    def train_all() -> int:
        records: Records = {label: [] for label in runs}
        total = args.seeds * len(runs)
        # Seed by seed: stopped early, all regimes have as many runs, give or take one.
        for number, (seed, label) in enumerate(((s, label) for s in range(args.seeds) for label in runs), start=1):
            items = runs[label][seed]
            print(f"[{number}/{total}] {label}, {items[-1]}", flush=True)
            records[label].append(train_in_process(items))
        print_comparison(records, Console())
        if args.out:
            write_result(args.out, "regimes", {"records": records})
            print(f"result: {args.out}")
        return 0

    return train_all


def train_in_process(items: Sequence[str]) -> dict[str, Any]:
    """Train a recipe in a process of its own; its output goes to this one's.

    Returns:
        The run's record.

    Raises:
        RuntimeError: the run failed; its own error stands above.
    """
    recipe = compose(items)
    code = subprocess.run([sys.executable, "-m", "mixsize", "train", *items], check=False).returncode
    if code:
        raise RuntimeError(f"{recipe.name} ended with exit code {code}")
    return json.loads((run_folder(recipe) / RECORD_FILE).read_text(encoding="utf-8"))


def print_comparison(records: Records, console: Console) -> None:
    """One row a regime: steps, seconds of training, accuracy at each size; the training size is marked."""
    first = next(iter(records.values()))
    trained = {runs[0]["recipe"]["regime"]["base"]["size_px"] for runs in records.values()}
    seeds = f", mean ± standard deviation of {len(first)} seeds" if len(first) > 1 else ""
    table = Table(title=f"{first[0]['recipe']['model']['name']}: top-1 % by evaluation size (*: the base's){seeds}")
    table.add_column("regime")
    for column in ("steps", "seconds", "pixels"):
        table.add_column(column, justify="right")
    for size in first[0]["accuracy"]:
        table.add_column(f"{size} px{'*' if int(size) in trained else ''}", justify="right")
    for label, runs in records.items():
        table.add_row(
            label,
            f"{runs[0]['steps']:,}",
            mean_and_spread([run["seconds"]["training"] for run in runs]),
            f"{runs[0]['pixels'] / first[0]['pixels']:.2f}x",
            *(mean_and_spread([100 * run["accuracy"][size] for run in runs]) for size in runs[0]["accuracy"]),
        )
    console.print(table)
