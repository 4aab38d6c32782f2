"""The identity of a run at Weights & Biases, and its record as a summary and tables.

The functions import wandb themselves, because runs that do not log to it do not need it.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsize.recipes.records.run_folder import WANDB_ID_FILE
from mixsize.recipes.records.run_record import CALIBRATED, OWN, RunRecord
from mixsize.system.files import write_text

if TYPE_CHECKING:
    import wandb
    from wandb.sdk.wandb_run import Run as WandbRun

_LONGEST_ID = 128


def run_id(group: str | None, name: str, folder: Path) -> str:
    """The id of a run, kept in its folder: all starts of the run share it.

    Args:
        group: of the run.
        name: of the run.
        folder: of the run.
    """
    file = folder / WANDB_ID_FILE
    if not file.exists():
        write_text(file, make_id(group, name, uuid.uuid4().hex[:8]) + "\n")
    return file.read_text(encoding="utf-8").strip()


def make_id(group: str | None, name: str, ending: str) -> str:
    """An id with the characters and the length that Weights & Biases accepts."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{group}-{name}" if group and not name.startswith(group) else name)
    return f"{stem[: _LONGEST_ID - len(ending) - 1]}-{ending}"


def settings(quiet: bool = False) -> wandb.Settings:
    """Settings of every run; ``quiet`` ones print no summary at their end.

    By default wandb 0.18 asks the service for its version when an offline run logs a table, and without a network
    retries for minutes.
    """
    import wandb

    return wandb.Settings(allow_offline_artifacts=False, quiet=quiet)


def log_record(run: WandbRun, record: RunRecord) -> None:
    """Log a record: totals and accuracies as the summary, and tables by size and by shape.

    Args:
        run: online or offline, not finished yet.
        record: of a finished run.
    """
    import wandb

    # First, because it does not wait for the service.
    run.summary.update(summary_of(record))
    run.log({"accuracy_by_size": accuracy_table(record), "gradient_norms_by_size": gradient_norm_table(record)})
    shapes = shape_table(record)
    run.log({"shapes": shapes, "plan": wandb.plot.bar(shapes, "shape", "steps", title="Steps by shape drawn")})


def summary_of(record: RunRecord) -> dict[str, Any]:
    """Totals and final accuracies, under the names of the report's panels."""
    found: dict[str, Any] = {
        "steps": record.steps,
        "epochs": record.epochs,
        "samples": record.samples,
        "distinct_samples": record.distinct_samples,
        "pixels": record.pixels,
        "peak_memory_bytes/host": record.peak_memory_bytes.host,
        "peak_memory_bytes/gpu": record.peak_memory_bytes.gpu,
    }
    found |= {f"seconds/{key}": value for key, value in record.seconds.model_dump().items()}
    for kind, accuracy in ((OWN, record.accuracy), (CALIBRATED, record.calibrated_accuracy or {})):
        found |= {f"final_{accuracy_key(kind, size)}": value for size, value in accuracy.items()}
    return {key: value for key, value in found.items() if value is not None}


def accuracy_key(kind: str, size: str) -> str:
    """Name of top-1 accuracies: their batch-norm statistics, and the image side in pixels."""
    return f"accuracy/{kind.replace(' ', '_')}/{size}px"


def accuracy_table(record: RunRecord) -> wandb.Table:
    """Accuracy, loss and cost at each evaluation size."""
    import wandb

    calibrated = record.calibrated_accuracy or {}
    rows = [
        [int(size), accuracy, calibrated.get(size), record.loss.get(size), record.macs.get(size)]
        for size, accuracy in record.accuracy.items()
    ]
    return wandb.Table(columns=["size_px", "top1_own_statistics", "top1_calibrated", "loss", "macs"], data=rows)


def shape_table(record: RunRecord) -> wandb.Table:
    """Step shapes and how often each occurred."""
    import wandb

    rows = [
        [f"{row.size_px} px x {row.batch_size} x {row.duplicates}", *row.model_dump().values()] for row in record.shapes
    ]
    columns = ["shape", "size_px", "batch_size", "duplicates", "steps", "seconds_per_step"]
    return wandb.Table(columns=columns, data=rows)


def gradient_norm_table(record: RunRecord) -> wandb.Table:
    """Gradient norms by image size, before and after smoothing."""
    import wandb

    columns = ["size_px", "steps", "mean", "std", "smoothed_mean", "smoothed_std"]
    return wandb.Table(columns=columns, data=[list(row.model_dump().values()) for row in record.gradient_norms])
