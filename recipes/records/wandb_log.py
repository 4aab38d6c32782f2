"""What Weights & Biases is told of a run beside the metrics of each step: its identity, and its record.

wandb is imported by those who log to it only.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixsize.recipes.records.run_folder import WANDB_ID_FILE
from mixsize.recipes.records.run_record import RunRecord
from mixsize.system.files import write_text

if TYPE_CHECKING:
    import wandb
    from wandb.sdk.wandb_run import Run as WandbRun

_LONGEST_ID = 128


def run_id(group: str | None, name: str, folder: Path) -> str:
    """The run's id: the same at every start of one run, another where a run of its name begins anew.

    Args:
        group: of runs that it belongs to.
        name: the run's.
        folder: the run's own; the id is kept in it.
    """
    file = folder / WANDB_ID_FILE
    if not file.exists():
        write_text(file, make_id(group, name, uuid.uuid4().hex[:8]) + "\n")
    return file.read_text(encoding="utf-8").strip()


def make_id(group: str | None, name: str, ending: str) -> str:
    """An id of the characters and the length that Weights & Biases takes."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{group}-{name}" if group and not name.startswith(group) else name)
    return f"{stem[: _LONGEST_ID - len(ending) - 1]}-{ending}"


def settings() -> wandb.Settings:
    """What every run is begun with.

    By default a table that is logged off line makes wandb 0.18 ask the service for its version, and without a network
    to go on asking for minutes.
    """
    import wandb

    return wandb.Settings(allow_offline_artifacts=False)


def log_record(run: WandbRun, record: RunRecord) -> None:
    """Give a run its record: totals and accuracies as its summary, and tables by size and by shape.

    Args:
        run: under way, on or off line.
        record: of a run that finished.
    """
    import wandb

    # First, as it waits for nobody.
    run.summary.update(summary_of(record))
    # Not wandb.log's step: these belong to the run's end, whatever its last step was.
    run.log({"accuracy_by_size": accuracy_table(record), "gradient_norms_by_size": gradient_norm_table(record)})
    shapes = shape_table(record)
    run.log({"shapes": shapes, "plan": wandb.plot.bar(shapes, "shape", "steps", title="Steps by shape drawn")})


def summary_of(record: RunRecord) -> dict[str, Any]:
    """Totals and final accuracies under the names that panels use."""
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
    found |= {f"final_accuracy/{size}px": value for size, value in record.accuracy.items()}
    found |= {f"final_calibrated_accuracy/{size}px": v for size, v in (record.calibrated_accuracy or {}).items()}
    return {key: value for key, value in found.items() if value is not None}


def accuracy_table(record: RunRecord) -> wandb.Table:
    """Accuracy, loss and cost at each evaluation size."""
    import wandb

    calibrated = record.calibrated_accuracy or {}
    rows = [
        [int(size), accuracy, calibrated.get(size), record.loss.get(size), record.macs.get(size)]
        for size, accuracy in record.accuracy.items()
    ]
    return wandb.Table(columns=["size_px", "top1", "calibrated_top1", "loss", "macs"], data=rows)


def shape_table(record: RunRecord) -> wandb.Table:
    """The step shapes that occurred: the histogram of the plan."""
    import wandb

    rows = [
        [f"{row.size_px} px x {row.batch_size} x {row.duplicates}", *row.model_dump().values()] for row in record.shapes
    ]
    columns = ["shape", "size_px", "batch_size", "duplicates", "steps", "seconds_per_step"]
    return wandb.Table(columns=columns, data=rows)


def gradient_norm_table(record: RunRecord) -> wandb.Table:
    """Gradient norms by image side, before and after smoothing."""
    import wandb

    columns = ["size_px", "steps", "mean", "std", "smoothed_mean", "smoothed_std"]
    return wandb.Table(columns=columns, data=[list(row.model_dump().values()) for row in record.gradient_norms])
