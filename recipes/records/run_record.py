"""The run record: one training run in plain values, written once and read by everything that compares and reports.

A run leaves its record as ``record.json`` in its folder; a suite's are the lines of ``runs.jsonl``. Records of version
1 and 2 are read as version 3 ones in which what they did not say is null or empty. Nothing here needs PyTorch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mixsize.system.files import write_text

RECORD_VERSION = 3
#: A suite's records, in its folder.
RUNS_FILE = "runs.jsonl"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _null_unless_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: JSON has no NaN and no infinity, which the losses and gradients of a failing run may be.
Finite = Annotated[float | None, BeforeValidator(_null_unless_finite)]


class ShapeRow(_Part):
    """A step shape that occurred.

    Attributes:
        size_px: image side S in pixels.
        batch_size: distinct images B, over all ranks.
        duplicates: augmented copies D of each.
        steps: how often.
        seconds: mean of a step, a shape's first in each start left out; None where there was no other.
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
    """Wall-clock time by what it was spent on, over all starts of the run; None where it was not measured.

    Attributes:
        fit: from the start of training to its end, evaluations included.
        set_up: from opening the data to the start of training.
        training: steps and the waits between them, without evaluations: what a time budget counts.
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


class PeakMemory(_Part):
    """Most memory that one rank held, in bytes.

    Attributes:
        host: resident memory of the process.
        gpu: allocated by PyTorch on its device; None without one.
    """

    host: int | None = None
    gpu: int | None = None


class CurvePoint(_Part):
    """An evaluation during training.

    Attributes:
        step: steps behind it.
        epoch: whole epochs behind it.
        seconds: of training behind it, evaluations not counted.
        pixels: trained on before it.
        train_loss: mean training loss of the steps since the evaluation before.
        accuracy: size in pixels -> top-1 as a fraction; as in `RunRecord.accuracy`, but with calibrated statistics
            where the recipe calibrates before each evaluation.
    """

    step: int
    epoch: int
    seconds: float
    pixels: int
    train_loss: Finite
    accuracy: dict[str, float]


class GradientNormRow(_Part):
    """L2 norm of the whole network's gradient at one image side.

    Attributes:
        size_px: image side S in pixels.
        steps: with a finite norm, which alone count.
        mean: of the norm.
        std: standard deviation of the norm, over steps (n - 1); None for one step.
        smoothed_mean: likewise after gradient smoothing; None without smoothing.
        smoothed_std: likewise.
    """

    size_px: int
    steps: int
    mean: Finite
    std: Finite
    smoothed_mean: Finite
    smoothed_std: Finite


class Environment(_Part):
    """Where and with what a run was made: versions, and hardware."""

    python: str
    torch: str
    composer: str
    timm: str
    ffcv: str
    cpu: str
    cores: int | None
    gpu: str | None
    driver: str | None = None
    ranks: int


class RunRecord(_Part):
    """One training run. Of a failed one, what is not known is None or empty.

    Attributes:
        record_version: of these keys.
        suite: the suite that it belongs to; None for a run of its own.
        label: its regime's name in the suite, with the recipe's before it (``resnet50/fixed``) where the suite has
            several recipes; the run's name outside of a suite.
        name: of the run.
        seed: of weights, plans and augmentation.
        outcome: whether it ended as it should.
        error: the last lines that a failed run left on standard error; None for one that finished.
        recipe: the resolved recipe, every key of it.
        regime_digest: tells regimes apart.
        plan_digest: tells what is drawn apart: regime, number of images, seed, and how shapes and images are drawn
            from them; the same for any number of ranks.
        sequence_crc: checksum of the shapes in the order they occurred.
        shapes: those that occurred, largest first.
        steps: optimisation steps.
        epochs: whole epochs.
        samples: images drawn, each once for all its duplicates.
        distinct_samples: different images among them.
        pixels: trained on: the sum of S^2 * B * D.
        seconds: where the time went.
        peak_memory_bytes: the most that a rank held.
        accuracy: size in pixels -> top-1 as a fraction, with the network's own batch-norm statistics.
        loss: size in pixels -> mean cross-entropy in nats, likewise; None where it is not finite.
        calibrated_accuracy: size in pixels -> top-1 with statistics calibrated at that size; None where the recipe has
            no calibration.
        macs: size in pixels -> multiply-accumulates of one image's forward pass, at every size trained or evaluated at.
        curve: evaluations during training, in order.
        gradient_norms: by size, largest first.
        commit: of the package's source tree; None where it is not in one.
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
    accuracy: dict[str, float] = {}
    loss: dict[str, Finite] = {}
    calibrated_accuracy: dict[str, float] | None = None
    macs: dict[str, int] = {}
    curve: list[CurvePoint] = []
    gradient_norms: list[GradientNormRow] = []
    commit: str | None = None
    dirty: bool | None = None
    environment: Environment

    @property
    def finished(self) -> bool:
        """Whether it ended as it should."""
        return self.outcome == "finished"

    @property
    def base_size_px(self) -> int:
        """The image side of the fixed-size training that the regime is measured against."""
        return self.recipe["regime"]["base"]["size_px"]


def read_record(path: Path) -> RunRecord:
    """Read a run's ``record.json``.

    Raises:
        OSError: a file that cannot be read.
        ValueError: another kind of file.
    """
    return _record(_json(path.read_text(encoding="utf-8"), f"{path}"), f"{path}")


def read_records(path: Path) -> list[RunRecord]:
    """Read the records of several runs.

    Args:
        path: a suite's ``runs.jsonl`` or the folder that holds one, a result file of ``mixsize bench regimes``, or one
            run's ``record.json``.

    Raises:
        OSError: a file that cannot be read.
        ValueError: another kind of file, with the line and the key at fault.
    """
    if path.is_dir():
        path = path / RUNS_FILE
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        places = [(f"{path}: line {number}", line) for number, line in enumerate(text.splitlines(), start=1)]
        return [_record(_json(line, place), place) for place, line in places if line.strip()]
    content = _json(text, str(path))
    if isinstance(content, dict) and "record_version" in content:
        return [_record(content, str(path))]
    runs = content.get("records") if isinstance(content, dict) else None
    if not isinstance(runs, dict) or not all(isinstance(of_label, list) for of_label in runs.values()):
        raise ValueError(f"{path}: holds no run records")
    return [
        _record(run, f"{path}: records.{label}[{index}]", label)
        for label, of_label in runs.items()
        for index, run in enumerate(of_label)
    ]


def write_records(path: Path, records: Sequence[RunRecord]) -> None:
    """Write records as JSON lines, in one piece."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


def by_label(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records by their regime's label, in the order of first occurrence."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.label, []).append(record)
    return found


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: is not JSON: {error}") from error


def _record(content: Any, place: str, label: str | None = None) -> RunRecord:
    """Validate one record, of any version.

    Args:
        content: as read.
        place: where, for errors.
        label: for a record of a version that has none.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{place}: a run record is an object, this is a {type(content).__name__}")
    version = content.get("record_version")
    if version not in (1, 2, RECORD_VERSION):
        raise ValueError(f"{place}: record_version is {version!r}; this mixsize reads 1 to {RECORD_VERSION}")
    try:
        if version != RECORD_VERSION:
            content = _upgraded(content, label)
        return RunRecord.model_validate(content)
    except (ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: is no run record: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        return f"{at}: {first['msg']}"
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _upgraded(old: dict[str, Any], label: str | None) -> dict[str, Any]:
    """A record of version 1 or 2 under today's keys."""
    kept = ("name", "recipe", "regime_digest", "steps", "epochs", "samples", "pixels", "shapes", "sequence_crc", "loss")
    new = {key: old[key] for key in kept}
    new["label"] = label or old["name"]
    new["seed"] = old["recipe"]["seed"]
    # Their "fit" was that of the last start alone, and their "evaluation" had calibration in it.
    new["seconds"] = {key: old["seconds"].get(key) for key in ("training", "data_wait", "steps")}
    calibrated = old["recipe"].get("calibration") is not None
    if calibrated:
        new["loss"] = {}
    else:
        new["seconds"]["evaluation"] = old["seconds"].get("evaluation")
    new["accuracy"] = {} if calibrated else old["accuracy"]
    new["calibrated_accuracy"] = old["accuracy"] if calibrated else None
    new["environment"] = old["environment"]
    return new
