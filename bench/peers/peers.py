"""The same network, data and epochs under other libraries' image-size schedules and under ours.

Each run is a process of its own, one after the other, on the same cores with the same number of loader threads or
processes, and from the same initial weights; :mod:`mixsize.bench.peers.run` describes the peers. All are evaluated on
the same batches with the network's own batch-norm statistics. ``mixsize report RESULT`` compares the records.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixsize.bench.peers.loaders import check_images, torchvision_augment
from mixsize.bench.peers.run import MIXING, PEERS, Peer, mixed_regime
from mixsize.bench.regimes.regimes import plain_records
from mixsize.bench.regimes.runner import failed_record
from mixsize.bench.report.report import print_comparison
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.trainer import run_folder
from mixsize.recipes.commands.arguments import add_items
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import network_stride, planned_network
from mixsize.recipes.records.run_folder import RECORD_FILE
from mixsize.recipes.records.run_record import RunRecord, read_record

#: Names of the peers in tables.
TITLES: dict[Peer, str] = {
    "composer": "Composer ProgressiveResizing",
    "timm": "timm scheduled sizes",
    "timm_progressive": "timm progressive sizes",
}

# The paper's regimes add these and the peers lack them: image sizes alone are compared.
_NEITHER = ("smoothing=null", "calibration=null")


@dataclass(frozen=True)
class RunPlan:
    """One process.

    Attributes:
        label: of its row in the table.
        recipe: of the run.
        items: the recipe was composed from these.
        peer: the library that schedules the sizes; None for ours.
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
        help="item that sets the regime of one of our runs, for instance regime/fixed; give it once for each. timm "
        "gets the sizes of the first that mixes sizes without duplicates, for instance regime/s28_bplus",
    )
    parser.add_argument(
        "--peer", action="append", choices=PEERS, help="a peer to run; give it once for each (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each (default: 1)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result file; by default bench/results/ with hardware and date"
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose the recipes of all runs and check the data; the returned function trains."""
    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: must be at least 1")
    runs = plan_runs(args.items, args.regime, args.peer or PEERS, args.seeds)
    check_data(runs, args.images)

    def train_all() -> int:
        records: list[RunRecord] = []
        for number, run in enumerate(runs, start=1):
            print(f"[{number}/{len(runs)}] {run.label}, seed {run.recipe.seed}", flush=True)
            records.append(train_in_process(run, args.images))
        print_comparison(records, plain_console())
        keep_result(args.out, "peers", {"records": plain_records(records)})
        failed = [record.name for record in records if not record.finished]
        for name in failed:
            print(f"failed: {name}; its own error stands above", file=sys.stderr)
        return 1 if failed else 0

    return train_all


def plan_runs(items: Sequence[str], regimes: Sequence[str], peers: Sequence[Peer], seeds: int) -> list[RunPlan]:
    """The runs, seed by seed.

    Raises:
        ValueError: a recipe that does not compose, or runs that differ in more than their sizes.
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
    """Check that the peers can apply the recipe's augmentation, and that ``images`` holds the images of ``data.train``.

    Raises:
        ValueError: an augmentation that the peers lack, or other images.
        OSError: a file or folder that cannot be read.
    """
    data = runs[0].recipe.data
    with Beton.open(data.train) as train:
        for run in runs:
            if run.peer is not None:
                torchvision_augment(data.augment, run.recipe.regime.base.size_px, train)
        check_images(images, train)


def train_in_process(run: RunPlan, images: Path) -> RunRecord:
    """Train in a process of its own, which prints to this one's output; returns the run's record."""
    if run.peer is None:
        arguments = ["mixsize", "train", *run.items, "output.restart=true", "output.save_every=never"]
    else:
        arguments = ["mixsize.bench.peers.run", run.peer, str(images), *run.items]
    code = subprocess.run([sys.executable, "-m", *arguments], check=False).returncode
    record = (
        failed_record(run.recipe, run.label, f"exit code {code}")
        if code
        else read_record(run_folder(run.recipe) / RECORD_FILE)
    )
    return record.model_copy(update={"suite": "peers", "label": run.label})


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
