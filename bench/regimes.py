"""Train one recipe under several regimes and put them side by side.

Each run is a process of its own, so that none inherits another's memory, threads or random state.
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
from mixsize.recipes.arguments import add_items
from mixsize.recipes.compose import compose


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
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the runs' records to this JSON file")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose every run's recipe first: a mistake in the last one is an error now, not after the others ran."""
    runs = {}
    for item in args.regime:
        label = item.rpartition("/")[2]
        if label in runs:
            raise ValueError(f"--regime {item}: a run named {label} was already asked for")
        items = [*args.items, item]
        name = f"{compose(items).name}-{label}"
        runs[label] = [*items, f"name={name}"]

    def train_all() -> int:
        records = {}
        for number, (label, items) in enumerate(runs.items(), start=1):
            print(f"[{number}/{len(runs)}] {label}", flush=True)
            records[label] = train_in_process(items)
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
    record = Path(recipe.output.folder) / recipe.name / "record.json"
    record.unlink(missing_ok=True)
    code = subprocess.run([sys.executable, "-m", "mixsize", "train", *items], check=False).returncode
    if code:
        raise RuntimeError(f"{recipe.name} ended with exit code {code}")
    return json.loads(record.read_text(encoding="utf-8"))


def print_comparison(records: dict[str, dict[str, Any]], console: Console) -> None:
    """One row a regime: steps, seconds of training, accuracy at each size; the training size is marked."""
    first = next(iter(records.values()))
    trained = {record["recipe"]["regime"]["base"]["size_px"] for record in records.values()}
    table = Table(title=f"{first['recipe']['model']['name']}: top-1 % by evaluation size (*: the base's)")
    table.add_column("regime")
    for column in ("steps", "seconds", "pixels"):
        table.add_column(column, justify="right")
    for size in first["accuracy"]:
        table.add_column(f"{size} px{'*' if int(size) in trained else ''}", justify="right")
    for label, record in records.items():
        table.add_row(
            label,
            f"{record['steps']:,}",
            f"{record['seconds']['training']:.1f}",
            f"{record['pixels'] / first['pixels']:.2f}x",
            *(f"{100 * value:.1f}" for value in record["accuracy"].values()),
        )
    console.print(table)
