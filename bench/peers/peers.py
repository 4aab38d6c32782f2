"""The same network, data and epochs under other libraries' image-size schedules and ours, side by side.

Each run is a process of its own, one after the other, on the same cores with as many loader threads or processes, and
from the same initial weights; see :mod:`mixsize.bench.peers.run` for what the peers are given. Accuracy is measured on
the same evaluation batches for all, by the network's own batch-norm statistics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsize.bench.peers.loaders import check_images, torchvision_augment
from mixsize.bench.peers.run import ENVIRONMENT, MIXING, PEERS, Peer, PeerJob, mixed_regime
from mixsize.bench.report.spread import mean_and_spread
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.trainer import run_folder
from mixsize.recipes.commands.arguments import add_items
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import network_stride, planned_network
from mixsize.recipes.records.run_folder import RECORD_FILE

#: What each peer is called in tables.
TITLES: dict[Peer, str] = {
    "composer": "Composer ProgressiveResizing",
    "timm": "timm scheduled sizes",
    "timm_progressive": "timm progressive sizes",
}

# What the paper's regimes add and the peers have not: image sizes alone are compared.
_NEITHER = ("smoothing=null", "calibration=null")


@dataclass(frozen=True)
class RunPlan:
    """One process.

    Attributes:
        label: of the row that it belongs to.
        recipe: of the run.
        items: that the recipe was composed from.
        peer: whose sizes; None for ours.
    """

    label: str
    recipe: schema.Recipe
    items: tuple[str, ...]
    peer: Peer | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench peers``."""
    add_items(parser)
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="class folders of the training images that data.train was written from; the peers read these",
    )
    parser.add_argument(
        "--regime",
        action="append",
        required=True,
        metavar="ITEM",
        help="item that sets the regime of one of our runs, for instance regime/fixed; give it once for each. timm is "
        "given the sizes of the first that mixes them without duplicates, regime/s28_bplus for instance",
    )
    parser.add_argument(
        "--peer", action="append", choices=PEERS, help="a peer to run; give it once for each (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each (default: 1)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result file; by default bench/results/ with hardware and date"
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose every run's recipe and look at the data first; what is returned trains."""
    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: must be at least 1")
    runs = plan_runs(args.items, args.regime, args.peer or PEERS, args.seeds)
    check_data(runs, args.images)

    def train_all() -> int:
        records: dict[str, list[dict[str, Any]]] = {}
        failed = []
        for number, run in enumerate(runs, start=1):
            print(f"[{number}/{len(runs)}] {run.label}, seed {run.recipe.seed}", flush=True)
            record = train_in_process(run, args.images)
            if record is None:
                failed.append(run.recipe.name)
            else:
                records.setdefault(run.label, []).append(record)
        result = {"seeds": args.seeds, "failed": failed, "records": records}
        if records:
            title = "equal epochs under each library's image sizes"
            print_table(plain_console(), *table_rows(result), title=title, notes=[setting_words(result)])
        keep_result(args.out, "peers", result)
        for name in failed:
            print(f"failed: {name}; its own error stands above", file=sys.stderr)
        return 1 if failed else 0

    return train_all


def plan_runs(items: Sequence[str], regimes: Sequence[str], peers: Sequence[Peer], seeds: int) -> list[RunPlan]:
    """The runs in order: seed by seed, so that one stopped early has as many of each, give or take one.

    Raises:
        ValueError: a recipe that does not compose, or that not all of the runs can be compared under.
    """
    first = compose([*items, regimes[0]])
    if first.duration[1] != "ep":
        raise ValueError(f"max_duration is {first.max_duration}; runs are compared at equal epochs, as in 9ep")
    rows: dict[str, tuple[Peer | None, list[str]]] = {}
    for item in regimes:
        label = f"mixsize {Path(item).stem}"
        if label in rows:
            raise ValueError(f"--regime {item}: a run named {label} was already asked for")
        rows[label] = (None, [*items, item, *_NEITHER])
    mix = _first_mix(items, regimes) if MIXING.intersection(peers) else regimes[0]
    for peer in dict.fromkeys(peers):
        rows[TITLES[peer]] = (peer, [*items, mix if peer in MIXING else regimes[0], *_NEITHER])
    runs = []
    for seed in range(first.seed, first.seed + seeds):
        for label, (peer, given) in rows.items():
            name = label.lower().replace(" ", "-")
            whole = (*given, f"name={compose(given).name}-{name}-seed{seed}", f"seed={seed}")
            runs.append(RunPlan(label, compose(whole), whole, peer))
    for key in ("max_duration", "optimizer", "schedule", "evaluation", "data", "model", "loss"):
        if any(getattr(run.recipe, key) != getattr(first, key) for run in runs):
            raise ValueError(f"--regime: the runs differ in {key}, so that more than the sizes would be compared")
    return runs


def check_data(runs: Sequence[RunPlan], images: Path) -> None:
    """See that the peers can be given the recipe's augmentation and the very images of ``data.train``.

    Raises:
        ValueError: they cannot.
        OSError: a file or folder that cannot be read.
    """
    data = runs[0].recipe.data
    with Beton.open(data.train) as train:
        for run in runs:
            if run.peer is not None:
                torchvision_augment(data.augment, run.recipe.regime.base.size_px, train)
        check_images(images, train)


def train_in_process(run: RunPlan, images: Path) -> dict[str, Any] | None:
    """Train in a process of its own; its output goes to this one's.

    Returns:
        The parts of its record that all runs have, with the process's whole time; None where it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        if run.peer is None:
            items = [*run.items, "output.restart=true", "output.save_every=never"]
            command = [sys.executable, "-m", "mixsize", "train", *items]
            found = run_folder(run.recipe) / RECORD_FILE
        else:
            found, job = Path(folder) / "record.json", Path(folder) / "job.json"
            asked = PeerJob(peer=run.peer, items=run.items, images=images.absolute(), out=found)
            job.write_text(asked.model_dump_json(), encoding="utf-8")
            command = [sys.executable, "-m", "mixsize.bench.peers.run", str(job)]
        environment = os.environ if run.peer is None else {**os.environ, **ENVIRONMENT}
        started = time.perf_counter()
        code = subprocess.run(command, env=environment, check=False).returncode
        seconds = time.perf_counter() - started
        if code:
            return None
        record = json.loads(found.read_text(encoding="utf-8"))
    kept = ("name", "recipe", "steps", "epochs", "samples", "pixels", "shapes", "accuracy")
    times = {"training": record["seconds"]["training"], "process": seconds}
    return {**{key: record[key] for key in kept}, "peer": run.peer, "seconds": times}


def table_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and a row for each schedule: steps, pixels beside the first row's, times, accuracy by evaluation size."""
    records = result["records"]
    first = next(iter(records.values()))[0]
    base = str(first["recipe"]["regime"]["base"]["size_px"])
    sizes = list(first["accuracy"])
    head = ["sizes by", "steps", "pixels", "training s", "process s"]
    head += [f"{size} px{'*' if size == base else ''}" for size in sizes]
    rows = [
        [
            label,
            f"{runs[0]['steps']:,}",
            f"{runs[0]['pixels'] / first['pixels']:.2f}x",
            *(mean_and_spread([run["seconds"][key] for run in runs], digits=0) for key in ("training", "process")),
            *(mean_and_spread([100 * run["accuracy"][size] for run in runs]) for size in sizes),
        ]
        for label, runs in records.items()
    ]
    return head, rows


def setting_words(result: dict[str, Any]) -> str:
    """What was trained, in a few sentences."""
    runs = next(iter(result["records"].values()))
    recipe = runs[0]["recipe"]
    images = max(run["samples"] / run["epochs"] for rows in result["records"].values() for run in rows)
    seeds = f"mean ± standard deviation of {len(runs)} seeds" if len(runs) > 1 else f"one seed, {recipe['seed']}"
    failed = f" Failed: {', '.join(result['failed'])}." if result["failed"] else ""
    return (
        f"{recipe['model']['name']}, {runs[0]['epochs']} epochs of up to {images:,.0f} images, {seeds}. Top-1 in per "
        "cent by evaluation size (*: the base's), own batch-norm statistics. Training: the Trainer's clock, waiting "
        f"for data included, evaluation not; process: from start to end.{failed}"
    )


def _first_mix(items: Sequence[str], regimes: Sequence[str]) -> str:
    problem = None
    for item in regimes:
        recipe = compose([*items, item])
        try:
            mixed_regime(recipe, network_stride(planned_network(recipe)))
        except ValueError as error:
            problem = problem or error
        else:
            return item
    raise ValueError(f"--regime: none serves timm; {problem}")
