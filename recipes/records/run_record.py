"""The run record: one training run in plain values, written once and read by every comparison and report.

A run writes ``record.json`` into its folder; a suite writes its records as the lines of ``runs.jsonl``. This module
does not need PyTorch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mixsize.recipes.records.run_folder import RECORD_FILE
from mixsize.system.files import write_text

RECORD_VERSION = 3
#: A suite's records, in its folder.
RUNS_FILE = "runs.jsonl"
#: Batch-norm statistics that an accuracy was measured with, in the words of every table, plot and log: the network's
#: own ones from training, or ones measured at the size of the evaluation.
OWN, CALIBRATED = "own statistics", "calibrated"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _null_unless_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: A number, or None for NaN and infinity, which JSON lacks and a failing run may have.
Finite = Annotated[float | None, BeforeValidator(_null_unless_finite)]


class ShapeRow(_Part):
    """One step shape of the run.

    Attributes:
        size_px: image side S in pixels.
        batch_size: distinct images B, over all ranks.
        duplicates: augmented copies D of each.
        steps: how often.
        seconds: mean of a step, without a shape's first step after each start; None if there was no other.
    """

    size_px: int
    batch_size: int
    duplicates: int
    steps: int
    seconds: float | None = None

    @property
    def pixels(self) -> int:
        """Pixels of all its steps together, S^2 * B * D each."""
        return self.steps * self.size_px**2 * self.batch_size * self.duplicates


class Seconds(_Part):
    """Seconds over all starts of the run; None if they were not measured.

    Attributes:
        fit: from the start of training to its end, evaluations included.
        set_up: from opening the data to the start of training.
        training: steps and the waits between them, without evaluations; a time budget limits this.
        data_wait: the part of ``training`` that waited for batches.
        steps: the part of ``training`` that computed.
        evaluation: without calibration.
        calibration: measuring batch-norm statistics.
    """

    fit: float | None = None
    set_up: float | None = None
    training: float | None = None
    data_wait: float | None = None
    steps: float | None = None
    evaluation: float | None = None
    calibration: float | None = None

    @property
    def wall_clock(self) -> float | None:
        """Set-up, training and evaluation together, from opening the data to the end."""
        return None if self.set_up is None or self.fit is None else self.set_up + self.fit


class PeakMemory(_Part):
    """Most memory that one rank held, in bytes.

    Attributes:
        host: resident memory of the process.
        gpu: allocated by PyTorch on its device; None without a GPU.
    """

    host: int | None = None
    gpu: int | None = None


class CurvePoint(_Part):
    """An evaluation during training.

    Attributes:
        step: steps completed.
        epoch: whole epochs completed.
        seconds: of training so far, without evaluations.
        pixels: trained on so far.
        train_loss: mean training loss of the steps since the previous evaluation.
        accuracy: size in pixels -> top-1 as a fraction; as in `RunRecord.accuracy`, but with calibrated statistics
            where the recipe calibrates before each evaluation.
    """

    step: int
    epoch: int
    seconds: float
    pixels: int
    train_loss: Finite
    accuracy: dict[str, float]


class EarlierLength(_Part):
    """A ``max_duration`` that the run had before it went on with another.

    Attributes:
        max_duration: as in a recipe. Up to ``steps``, a schedule that depends on the length followed this one.
        steps: completed when it changed.
    """

    max_duration: str
    steps: int


class GradientNormRow(_Part):
    """L2 norm of the whole network's gradient at one image side.

    Attributes:
        size_px: image side S in pixels.
        steps: number of steps with a finite norm; the others are left out.
        mean: of the norm.
        std: standard deviation of the norm, over steps (n - 1); None for one step.
        smoothed_mean: mean after gradient smoothing; None without smoothing.
        smoothed_std: standard deviation after gradient smoothing; None without smoothing.
    """

    size_px: int
    steps: int
    mean: Finite
    std: Finite
    smoothed_mean: Finite
    smoothed_std: Finite


class Environment(_Part):
    """Versions and hardware of a run."""

    python: str
    torch: str
    composer: str | None
    timm: str
    ffcv: str | None = None
    cpu: str
    cores: int | None
    gpu: str | None
    driver: str | None = None
    ranks: int


class RunRecord(_Part):
    """One training run. Unknown values of a failed run are None or empty.

    Attributes:
        record_version: of these keys.
        suite: name of its suite; None for a run without one.
        label: its regime's name in the suite, with the recipe's before it (``resnet50/fixed``) if the suite has
            several recipes; the run's name without a suite.
        name: of the run.
        seed: of weights, plans and augmentation.
        outcome: whether it finished.
        error: the last lines that a failed run wrote to standard error; None for one that finished.
        recipe: the resolved recipe, every key of it.
        train_images: in the training data; None in records of earlier versions.
        eval_images: in the evaluation data; None in records of earlier versions.
        earlier_lengths: the lengths of a run that went on with another, in order; empty for other runs.
        regime_digest: identifies the regime.
        plan_digest: identifies the drawn batches: regime, number of images, seed, and the way of drawing; the same for
            any number of ranks.
        sequence_crc: checksum of the shapes in their order.
        shapes: largest first.
        steps: optimisation steps.
        epochs: whole epochs.
        samples: images drawn, without duplicates.
        distinct_samples: different images among them.
        pixels: trained on: the sum of S^2 * B * D.
        seconds: by activity.
        peak_memory_bytes: the most that a rank held.
        weights: those that were evaluated and saved: the last ones, or their moving average (``algorithms.ema``).
        accuracy: size in pixels -> top-1 as a fraction, with the network's own batch-norm statistics.
        loss: size in pixels -> mean cross-entropy in nats with those statistics; None if it is not finite.
        calibrated_accuracy: size in pixels -> top-1 with statistics calibrated at that size; None without calibration.
        class_images: class -> number of images in the evaluation data, in the order of the labels.
        class_hits: size in pixels -> hits of each class in that order, with the network's own statistics.
        calibrated_class_hits: the same with calibrated statistics; None without calibration.
        macs: size in pixels -> multiply-accumulates of one image's forward pass, at every size trained or evaluated at.
        curve: evaluations during training, in order.
        gradient_norms: by size, largest first.
        commit: of the package's source tree; None for an installed package.
        dirty: whether tracked files differed from that commit.
        environment: where it was measured.
    """

    record_version: Literal[3] = RECORD_VERSION
    suite: str | None = None
    label: str
    name: str
    seed: int
    outcome: Literal["finished", "failed"] = "finished"
    error: str | None = None
    recipe: dict[str, Any]
    train_images: int | None = None
    eval_images: int | None = None
    earlier_lengths: list[EarlierLength] = []
    regime_digest: str | None = None
    plan_digest: str | None = None
    sequence_crc: int | None = None
    shapes: list[ShapeRow] = []
    steps: int | None = None
    epochs: int | None = None
    samples: int | None = None
    distinct_samples: int | None = None
    pixels: int | None = None
    seconds: Seconds = Seconds()
    peak_memory_bytes: PeakMemory = PeakMemory()
    weights: Literal["last", "averaged"] = "last"
    accuracy: dict[str, float] = {}
    loss: dict[str, Finite] = {}
    calibrated_accuracy: dict[str, float] | None = None
    class_images: dict[str, int] = {}
    class_hits: dict[str, list[int]] = {}
    calibrated_class_hits: dict[str, list[int]] | None = None
    macs: dict[str, int] = {}
    curve: list[CurvePoint] = []
    gradient_norms: list[GradientNormRow] = []
    commit: str | None = None
    dirty: bool | None = None
    environment: Environment

    @property
    def finished(self) -> bool:
        """Whether the run finished."""
        return self.outcome == "finished"

    @property
    def base_size_px(self) -> int:
        """The image side of the fixed-size training that the regime is measured against."""
        return self.recipe["regime"]["base"]["size_px"]


def read_record(path: Path) -> RunRecord:
    """Read a run's ``record.json``.

    Raises:
        OSError: a file that cannot be read.
        ValueError: not a run record; the message names the key at fault.
    """
    return _validated(RunRecord, path.read_text(encoding="utf-8"), f"{path}")


def read_records(path: Path) -> list[RunRecord]:
    """Read the records of several runs.

    Args:
        path: a suite's ``runs.jsonl``, one run's ``record.json``, the folder that holds either, or a result file of
            ``mixsize bench regimes``.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a folder without records, or not a file of run records; the message names the line and the key at
            fault.
    """
    if path.is_dir():
        held = [path / name for name in (RUNS_FILE, RECORD_FILE) if (path / name).exists()]
        if not held:
            raise ValueError(f"{path}: holds neither the {RUNS_FILE} of a suite nor the {RECORD_FILE} of a run")
        path = held[0]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = enumerate(text.splitlines(), start=1)
        return [_validated(RunRecord, line, f"{path}: line {number}") for number, line in lines if line.strip()]
    by_label = _validated(_ResultFile, text, f"{path}").records
    if by_label is None:
        return [_validated(RunRecord, text, f"{path}")]
    return [record for records in by_label.values() for record in records]


def write_records(path: Path, records: Sequence[RunRecord]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


def by_label(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group records by their regime's label, in the order of first occurrence."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.label, []).append(record)
    return found


class _ResultFile(BaseModel):
    records: dict[str, list[RunRecord]] | None = None


_Content = TypeVar("_Content", bound=BaseModel)


def _validated(kind: type[_Content], text: str, place: str) -> _Content:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the whole"
        value = textwrap.shorten(repr(first["input"]), 60)
        raise ValueError(f"{place}: not a valid run record: {at} is {value}: {first['msg']}") from error
