"""Train a recipe, and say what came out."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import composer
import ffcv
import timm
import torch
from composer.utils import dist
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from mixsize.algorithms.composer_model import network_of
from mixsize.ffcv_loaders.ranks import default_threads
from mixsize.recipes.arguments import add_items
from mixsize.recipes.build import ACCURACY, LOSS, Run, build, evaluator_label, run_folder
from mixsize.recipes.compose import compose
from mixsize.recipes.files import in_one_piece, write_json
from mixsize.recipes.resume import RECORD_FILE, WEIGHTS_FILE, finished_record

RECORD_VERSION = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize train``."""
    add_items(parser)


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Build the run; what is returned trains it."""
    recipe = compose(args.items)
    record = finished_record(recipe, run_folder(recipe))
    if record is not None:
        return lambda: _show_finished(record, run_folder(recipe))
    share_cores()
    run = build(recipe)

    def train() -> int:
        fit(run)
        return 0

    return train


def share_cores() -> None:
    """Keep the ranks of a machine from fighting for its cores, unless the user divided them already."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(default_threads())


def fit(run: Run) -> dict[str, Any]:
    """Train, or go on training; write the weights and the run's record into its folder; print the record's tables.

    Returns:
        The record: plain values, the same on every rank.
    """
    started = time.perf_counter()
    state = run.trainer.state
    try:
        if run.resumed is not None and dist.get_global_rank() == 0:
            time_now = state.timestamp
            print(f"going on from {run.resumed}: epoch {int(time_now.epoch)}, step {int(time_now.batch)}", flush=True)
        assert state.max_duration is not None
        if state.timestamp < state.max_duration:
            run.trainer.fit()
        else:
            # Stopped between its last checkpoint and its record.
            run.trainer.eval()
        record = make_record(run, time.perf_counter() - started)
        if dist.get_global_rank() == 0:
            save_weights(network_of(run.trainer.state), run.folder / WEIGHTS_FILE)
            write_json(run.folder / RECORD_FILE, record)
    except BaseException:
        # Not the Trainer's close(), which waits for ranks that may be waiting for this one.
        run.trainer.engine.close()
        raise
    run.trainer.close()
    if dist.get_global_rank() == 0:
        print_record(record, Console())
        print(f"record: {run.folder / RECORD_FILE}")
    return record


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """Write a network under timm's own names, for ``timm.create_model(..., checkpoint_path=path)``."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with in_one_piece(path) as partial:
        save_file(weights, str(partial), metadata={"format": "pt"})


def _show_finished(record: dict[str, Any], folder: Path) -> int:
    if int(os.environ.get("RANK", 0)) == 0:
        print_record(record, Console())
        print(f"{folder} ended before; this is its record. output.restart=true trains anew")
    return 0


def make_record(run: Run, seconds: float) -> dict[str, Any]:
    """One run in plain values: what was asked, what was drawn, how long it took, how well it does.

    Args:
        run: after its fit.
        seconds: wall-clock of the fit, evaluations included.
    """
    state = run.trainer.state
    shapes = [
        {
            "size_px": size,
            "batch_size": batch,
            "duplicates": duplicates,
            "steps": steps,
            "seconds": run.times.step_seconds((size, batch, duplicates)),
        }
        for (size, batch, duplicates), steps in sorted(run.sampling.shapes.items(), reverse=True)
    ]
    pixels = sum(row["steps"] * row["size_px"] ** 2 * row["batch_size"] * row["duplicates"] for row in shapes)
    assert state.timestamp.total_wct is not None
    return {
        "record_version": RECORD_VERSION,
        "name": run.recipe.name,
        "recipe": run.recipe.model_dump(mode="json"),
        "regime_digest": run.regime.digest(),
        "steps": int(state.timestamp.batch),
        "epochs": int(state.timestamp.epoch),
        "samples": int(state.timestamp.sample),
        "pixels": pixels,
        "shapes": shapes,
        "sequence_crc": _agreed(run.sampling.sequence_crc),
        "seconds": {"fit": seconds, "training": state.timestamp.total_wct.total_seconds(), **run.times.seconds},
        "accuracy": {str(size): _metric(run, size, ACCURACY) for size in run.recipe.evaluation.sizes},
        "loss": {str(size): _metric(run, size, LOSS) for size in run.recipe.evaluation.sizes},
        "environment": environment(dist.get_world_size()),
    }


def environment(world_size: int) -> dict[str, Any]:
    """Where a figure was measured."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "composer": composer.__version__,
        "timm": timm.__version__,
        "ffcv": ffcv.__version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "ranks": world_size,
    }


def print_record(record: dict[str, Any], console: Console) -> None:
    """What was drawn, and the accuracy at each size."""
    drawn = Table(title=f"{record['name']}: what was drawn in {record['steps']:,} steps")
    for column in ("size px", "batch", "duplicates", "steps", "images seen"):
        drawn.add_column(column, justify="right")
    for row in record["shapes"]:
        seen = row["steps"] * row["batch_size"] * row["duplicates"]
        cells = (row["size_px"], row["batch_size"], row["duplicates"], f"{row['steps']:,}", f"{seen:,}")
        drawn.add_row(*map(str, cells))
    console.print(drawn)
    if record["environment"]["ranks"] > 1:
        console.print(f"{record['environment']['ranks']} ranks trained on the same shapes in the same order")
    accuracy = Table(title=f"accuracy after {record['seconds']['training']:.1f} s of training")
    for column in ("size px", "top-1 %", "loss"):
        accuracy.add_column(column, justify="right")
    for size, value in record["accuracy"].items():
        accuracy.add_row(size, f"{100 * value:.2f}", f"{record['loss'][size]:.4f}")
    console.print(accuracy)


def _agreed(sequence_crc: int) -> int:
    """The checksum that every rank has of the shapes it trained on."""
    of_ranks = dist.all_gather_object(sequence_crc)
    if len(set(of_ranks)) > 1:
        raise RuntimeError(f"the ranks trained on different shapes: checksums {of_ranks}")
    return sequence_crc


def _metric(run: Run, size_px: int, name: str) -> float:
    return float(run.trainer.state.eval_metrics[evaluator_label(size_px)][name].compute())


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
