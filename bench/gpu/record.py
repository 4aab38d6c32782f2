"""The record of ``mixsize bench gpu``: each part's figures in plain values, as far as the bench has come.

A part is measured in units. A unit's figures are kept as soon as it ends, so that a bench that was stopped goes on with
the next one. Nothing here needs PyTorch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixsize.recipes.records.run_record import Environment, RunRecord
from mixsize.system.files import write_text

RECORD_VERSION = 1


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Spread(_Form):
    """A figure over rounds.

    Attributes:
        median: of the rounds.
        low: first quartile.
        high: third quartile.
        n: rounds.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles, the extremes counted as the ends of the distribution; one value is all of them."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], n=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, n=len(values))


class Memory(_Form):
    """Peaks of PyTorch's caching allocator on the device, in bytes.

    Attributes:
        reserved: taken from the device.
        allocated: in tensors.
        inactive_split: in free pieces of blocks that are partly in use, which no other size of block can have:
            what fragmentation costs.
    """

    reserved: int
    allocated: int
    inactive_split: int


class ShapeTime(_Form):
    """A shape of a regime: alone, and inside a mixed sequence.

    Attributes:
        size_px: image side S in pixels.
        images: B * D.
        step_share: fraction of the steps that it takes in the mix.
        alone: seconds of a step among steps of the same shape.
        mixed: seconds of a step in the sequence that the regime draws.
        price: ``mixed / alone``, round by round.
    """

    size_px: int
    images: int
    step_share: float
    alone: Spread
    mixed: Spread
    price: Spread


class ShapePrice(_Form):
    """What it costs that shapes change from step to step.

    Attributes:
        network: by its timm name.
        engine: how the network is run, as in ``execution.network``.
        shapes: largest side first.
        price: time of the mix over that of the same shapes alone, weighted by their shares of the steps.
        memory_alone: the largest peaks of any shape alone; None without a GPU.
        memory_mixed: peaks over a mixed sequence, the preflight included; None without a GPU.
    """

    kind: Literal["shape_price"] = "shape_price"
    network: str
    engine: str
    shapes: list[ShapeTime]
    price: Spread
    memory_alone: Memory | None
    memory_mixed: Memory | None


class SizeCost(_Form):
    """A step at one size beside the base's.

    Attributes:
        size_px: image side S in pixels.
        images: B * D.
        pixels: S^2 * B * D over the base's.
        seconds: of a step.
        ratio: to the base's seconds, round by round.
    """

    size_px: int
    images: int
    pixels: float
    seconds: Spread
    ratio: Spread


class BudgetCost(_Form):
    """Steps of equal pixels: do they take equal time?

    Attributes:
        network: by its timm name.
        base_px: side of the step that others are compared with.
        sizes: largest first.
    """

    kind: Literal["budget"] = "budget"
    network: str
    base_px: int
    sizes: list[SizeCost]


class StepCost(_Form):
    """A step with something and without it, turn about.

    Attributes:
        seconds: with it.
        base_seconds: without.
        ratio: with over without, pair by pair.
    """

    seconds: Spread
    base_seconds: Spread
    ratio: Spread


class AlgorithmsCost(_Form):
    """What the algorithms add to a training step.

    Attributes:
        network: by its timm name.
        size_px: image side S in pixels.
        images: B * D.
        all_algorithms: all of them under Composer's Trainer, against none.
        smoothing: gradient smoothing in a plain PyTorch loop, against none.
        host_syncs: host synchronisations of a step under the Trainer with all of them.
        base_host_syncs: likewise with none; Composer itself reads the loss.
    """

    kind: Literal["algorithms"] = "algorithms"
    network: str
    size_px: int
    images: int
    all_algorithms: StepCost
    smoothing: StepCost
    host_syncs: float
    base_host_syncs: float


class KernelGaps(_Form):
    """How much of a step the device computes.

    Attributes:
        network: by its timm name.
        engine: how the network is run, as in ``execution.network``.
        size_px: image side S in pixels.
        images: B * D.
        seconds: of a step.
        busy_seconds: of a step in which a kernel or a copy runs on the device; without a GPU, an operator.
        launches: calls of a step that start kernels or graphs; 0 without a GPU.
        preparation_seconds: the first steps, in which kernels are tuned, compiled or recorded.
    """

    kind: Literal["kernel_gaps"] = "kernel_gaps"
    network: str
    engine: str
    size_px: int
    images: int
    seconds: Spread
    busy_seconds: float
    launches: float
    preparation_seconds: float

    @property
    def gap(self) -> float:
        """Fraction of a step in which nothing runs on the device, 0 to 1."""
        return max(0.0, 1 - self.busy_seconds / self.seconds.median)


class DataFacts(_Form):
    """The images that a figure rests on.

    Attributes:
        file: its name.
        images: stored in it; read several times over where an epoch has more.
        mean_height: in pixels.
        mean_width: in pixels.
        levels: stored resolutions.
    """

    file: str
    images: int
    mean_height: float
    mean_width: float
    levels: int


class EpochTime(_Form):
    """Images a second of one regime.

    Attributes:
        regime: ``fixed`` or the name of its sizes.
        with_loader: from JPEGs through the loader, distinct images.
        without_loader: likewise from batches that lie on the device.
    """

    regime: str
    with_loader: Spread
    without_loader: Spread


class Epochs(_Form):
    """An epoch of mixed sizes against one of the fixed size.

    Attributes:
        network: by its timm name.
        images: distinct images timed in each round, whole batches of them.
        threads: that decode.
        data: what is decoded.
        regimes: the fixed size first.
        speed_up: time of the fixed size over that of the mix, through the loader, round by round.
        speed_up_without_loader: likewise with the loader taken out.
        pixels: an epoch's pixels of the fixed size over those of the mix: what arithmetic alone would give.
    """

    kind: Literal["epoch"] = "epoch"
    network: str
    images: int
    threads: int
    data: DataFacts
    regimes: list[EpochTime]
    speed_up: Spread
    speed_up_without_loader: Spread
    pixels: float


class LoaderRate(_Form):
    """What the loader delivers to the device.

    Attributes:
        threads: that decode.
        images_per_second: of the mixed regime, distinct images.
    """

    threads: int
    images_per_second: Spread


class LoaderRates(_Form):
    """The loader alone, by number of threads.

    Attributes:
        regime: the name of its sizes.
        data: what is decoded.
        cores: of the machine.
        rates: fewest threads first.
    """

    kind: Literal["loader"] = "loader"
    regime: str
    data: DataFacts
    cores: int
    rates: list[LoaderRate]


class CalibrationTime(_Form):
    """Calibrating batch norm for one size.

    Attributes:
        network: by its timm name.
        size_px: image side S in pixels.
        batches: forward passes.
        batch_size: images in each.
        threads: that decode.
        with_loader: seconds, from JPEGs.
        without_loader: seconds, from one batch that lies on the device.
    """

    kind: Literal["calibration"] = "calibration"
    network: str
    size_px: int
    batches: int
    batch_size: int
    threads: int
    with_loader: Spread
    without_loader: Spread


class Deviation(_Form):
    """How far loss curves lie apart over a stretch of steps: root mean square of their difference, in nats.

    Attributes:
        steps: of the stretch, from the first.
        engine: mean distance of the engine's curve to those of eager runs.
        noise: the largest mean distance of an eager run's curve to those of the other eager runs, which differ from it
            by rounding alone.
        allowed: multiple of the noise up to which the engine counts as the same computation.
    """

    steps: int
    engine: float
    noise: float
    allowed: float

    @property
    def within(self) -> bool:
        """Whether rounding explains the distance."""
        return self.engine <= self.allowed * self.noise


class Equivalence(_Form):
    """An engine's loss curve beside those of eager runs.

    Attributes:
        network: by its timm name.
        engine: as in ``execution.network``.
        shapes: how many different ones the steps have.
        eager_runs: how many eager curves it is held against.
        first_loss: of the eager run that nothing was done to, mean over its first tenth of steps.
        last_loss: likewise over its last tenth.
        deviations: over the first steps, where runs have not yet drifted apart, and over all.
    """

    kind: Literal["equivalence"] = "equivalence"
    network: str
    engine: str
    shapes: int
    eager_runs: int
    first_loss: float
    last_loss: float
    deviations: list[Deviation]


class TrainedRun(_Form):
    """A whole training run."""

    kind: Literal["run"] = "run"
    record: RunRecord


Figures = Annotated[
    ShapePrice
    | BudgetCost
    | AlgorithmsCost
    | KernelGaps
    | Epochs
    | LoaderRates
    | CalibrationTime
    | Equivalence
    | TrainedRun,
    Field(discriminator="kind"),
]


class UnitRecord(_Form):
    """A unit that ended or failed.

    Attributes:
        seconds: that it took, preparation included.
        commit: of the package's source tree; None where it is not in one.
        dirty: whether tracked files differed from that commit.
        figures: None where it failed.
        error: None where it did not.
    """

    seconds: float
    commit: str | None
    dirty: bool | None
    figures: Figures | None
    error: str | None = None


class PartRecord(_Form):
    """A part, as far as it has come.

    Attributes:
        complete: whether every unit has its figures.
        units: name -> what came of it, in the order of the part.
    """

    complete: bool
    units: dict[str, UnitRecord]

    @property
    def figures(self) -> dict[str, Figures]:
        """Name -> figures, of the units that have them."""
        return {name: unit.figures for name, unit in self.units.items() if unit.figures is not None}


class GpuRecord(_Form):
    """All parts, as far as they have come.

    Attributes:
        record_version: of these keys.
        suite: which bench.
        measured: when it was last written, ISO 8601.
        dry_run: whether it is of tiny shapes on the CPU, to try the bench itself.
        environment: where it was measured.
        parts: by name, in the order in which they are measured.
    """

    record_version: Literal[1] = RECORD_VERSION
    suite: Literal["gpu"] = "gpu"
    measured: str
    dry_run: bool
    environment: Environment
    parts: dict[str, PartRecord] = {}


def read_gpu_record(path: Path) -> GpuRecord:
    """Read a record.

    Raises:
        OSError: a file that cannot be read.
        ValueError: another kind of file, with the key at fault.
    """
    try:
        return GpuRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        at = f"{key}: " if key else ""
        raise ValueError(f"{path}: is no record of mixsize bench gpu: {at}{first['msg']}") from error


def write_gpu_record(path: Path, record: GpuRecord) -> None:
    """Write a record in one piece."""
    write_text(path, record.model_dump_json(indent=1) + "\n")
