"""Accuracy with batch norm calibrated on training images: as augmented for training, and as cut in evaluation.

The runs of a suite are evaluated at each size with their own statistics, then with statistics measured at that size
under both values of the recipe key ``calibration.transform``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.measurement.evaluation import evaluate
from mixsize.bench.report.quantities import mean_and_spread
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.recipes.commands.arguments import parse_sizes
from mixsize.recipes.commands.evaluate import Job, build_job
from mixsize.recipes.records.run_record import CALIBRATED, OWN, RunRecord, read_records

#: Column of the result -> its name in the table.
_KINDS = {"own": OWN, "eval": f"{CALIBRATED}, evaluation transform", "train": f"{CALIBRATED}, training transform"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench calibration``."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a suite's folder, for instance runs/calibration")
    parser.add_argument(
        "--sizes",
        type=parse_sizes,
        metavar="LIST",
        help="image sides in pixels, as for mixsize eval; by default the recipe's evaluation.sizes",
    )
    parser.add_argument(
        "--batches", type=int, metavar="N", help="batches that calibrate a size; by default the recipe's, else 200"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result file; by default bench/results/ with hardware and date"
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read records, weights and images of all runs; the returned function measures."""
    records = [record for record in read_records(args.folder) if record.finished]
    if not records:
        raise ValueError(f"{args.folder}: no run of this suite has finished")
    jobs = [_jobs(args.folder / record.name, record, args.sizes, args.batches) for record in records]

    def measured() -> int:
        rows = [measure(record, *pair) for record, pair in zip(records, tqdm(jobs, unit="run"), strict=True)]
        evaluation, _ = jobs[0]
        result = {
            "model": evaluation.recipe.model.name,
            "images": records[0].distinct_samples,
            "epochs": records[0].epochs,
            "batches": evaluation.calibration_batches,
            "batch_size": evaluation.recipe.evaluation.batch_size,
            "runs": rows,
        }
        print_result(result, plain_console())
        keep_result(args.out, "calibration", result)
        return 0

    return measured


def measure(record: RunRecord, evaluation: Job, training: Job) -> dict[str, Any]:
    """Top-1 accuracies of a run, as fractions, by kind of statistics and size.

    Args:
        record: of the run.
        evaluation: its job that calibrates on images cut as in evaluation.
        training: its job that calibrates on images cut as in training.
    """
    network = evaluation.network
    top1: dict[str, dict[str, float]] = {kind: {} for kind in _KINDS}
    for size_px, images in evaluation.loaders.items():
        top1["own"][str(size_px)] = evaluate(network, images).top1
        for kind, job in (("eval", evaluation), ("train", training)):
            assert job.calibration is not None
            bank = StatisticsBank()
            bank.calibrate(network, size_px, job.calibration[size_px], max_batches=job.calibration_batches)
            with bank.use(network, size_px):
                top1[kind][str(size_px)] = evaluate(network, images).top1
    return {"label": record.label, "seed": record.seed, "top1": top1}


def table_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each regime by kind of statistics, mean and standard deviation over its seeds."""
    runs = result["runs"]
    sizes = list(runs[0]["top1"]["own"])
    rows = []
    for label in dict.fromkeys(run["label"] for run in runs):
        for kind, words in _KINDS.items():
            found = [run["top1"][kind] for run in runs if run["label"] == label]
            rows.append([label, words, *(mean_and_spread([100 * one[size] for one in found]) for size in sizes)])
    return ["regime", "batch norm", *(f"{size} px" for size in sizes)], rows


def setting_words(result: dict[str, Any]) -> str:
    """The setting of a result, in sentences."""
    seeds = len({run["seed"] for run in result["runs"]})
    spread = f"; mean ± standard deviation of {seeds} seeds" if seeds > 1 else "; one seed"
    return (
        f"{result['model']}, {result['images']:,} training images, {result['epochs']} epochs, at most "
        f"{result['batches']} batches of {result['batch_size']} for each calibration; top-1 in per cent{spread}."
    )


def print_result(result: dict[str, Any], console: Console) -> None:
    """The table and its setting."""
    print_table(console, *table_rows(result), notes=[setting_words(result)], title="batch-norm calibration")


def _jobs(folder: Path, record: RunRecord, sizes_px: list[int] | None, batches: int | None) -> tuple[Job, Job]:
    def job(transform: str) -> Job:
        items = [f"calibration.transform={transform}", "progress_bar=false"]
        sizes = sizes_px or record.recipe["evaluation"]["sizes"]
        made = build_job(folder, items, sizes_px=sizes, calibration_batches=batches)
        if made.calibration is None:
            raise ValueError(f"{folder}: {made.recipe.model.name} has no batch norm that keeps statistics to calibrate")
        return made

    return job("eval"), job("train")
