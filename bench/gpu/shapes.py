"""What a step costs by its shape: among others in a mix (shape price), and at equal pixels (budget)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum
from statistics import fmean

import torch

from mixsize.algorithms.execution.engines import Engine
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict, above_one, milliseconds, times
from mixsize.bench.gpu.record import BudgetCost, Memory, ShapePrice, ShapeTime, SizeCost, Spread
from mixsize.bench.gpu.training import (
    NoiseBatches,
    TrainingStep,
    drawn_shapes,
    seconds_alone,
    shape_shares,
    shuffled,
    step_seconds,
    tuned_kernels,
)

#: A mix may take this many times its shapes alone.
PRICE_TARGET = 1.03
#: A step of the base's pixels may take this much more or less than the base's.
BUDGET_TARGET = 0.15
#: The network that targets are about.
_TARGET_NETWORK = "resnet50"


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        regime: whose shapes are timed.
        price_networks: in the part ``shape_price``.
        price_engines: likewise, each with each network.
        budget_networks: in the part ``budget``.
        rounds: each visits everything once.
        steps: of a shape alone, in a round.
        images: of the mixed sequence of a round.
    """

    regime: Regime
    price_networks: tuple[str, ...]
    price_engines: tuple[Engine, ...]
    budget_networks: tuple[str, ...]
    rounds: int
    steps: int
    images: int


FULL = Work(
    Regime.from_sizes("s144", Base(224, 256), "B+", rounding="budget"),
    price_networks=("resnet50",),
    price_engines=("eager", "cuda_graphs"),
    budget_networks=("resnet50", "densenet169", "efficientnet_b0"),
    rounds=5,
    steps=6,
    images=27_500,
)
DRY = Work(
    Regime.from_sizes({64: 0.3, 32: 0.7}, Base(64, 8), "B+", rounding="budget"),
    price_networks=("test_resnet",),
    price_engines=("eager",),
    budget_networks=("test_resnet",),
    rounds=2,
    steps=1,
    images=100,
)


def measure_price(network: str, engine: Engine, work: Work, device: torch.device) -> ShapePrice:
    """Steps of each shape alone and inside a mixed sequence, in rounds."""
    shares = shape_shares(work.regime)
    with tuned_kernels():
        step = TrainingStep(network, device, list(shares), engine)
        batches = NoiseBatches(shares, device)
        step.preflight()
        alone_peaks = []
        if engine == "eager":
            # Graphs hold the memory of all their shapes from the preflight on.
            alone_peaks = [_peaks(device, partial(seconds_alone, step, batches, shape, 2)) for shape in shares]
        mixed_peaks = _peaks(device, partial(_visit_mix, step, batches, work))
        alone: dict[InputShape, list[float]] = {shape: [] for shape in shares}
        mixed: dict[InputShape, list[float]] = {shape: [] for shape in shares}
        for number in range(work.rounds):
            for shape in shuffled(shares, number):
                alone[shape].append(seconds_alone(step, batches, shape, work.steps))
            sequence = drawn_shapes(work.regime, work.images, epoch=number + 1)
            for shape, seconds in mean_by_shape(sequence[1:], step_seconds(step, batches, sequence)).items():
                mixed[shape].append(seconds)
    return ShapePrice(
        network=network,
        engine=engine,
        shapes=[
            ShapeTime(
                size_px=shape.size_px,
                images=shape.images,
                step_share=share,
                alone=Spread.of(alone[shape]),
                mixed=Spread.of(mixed[shape]),
                price=Spread.of([m / a for m, a in zip(mixed[shape], alone[shape], strict=True)]),
            )
            for shape, share in sorted(shares.items(), key=lambda item: -item[0].size_px)
        ],
        price=Spread.of(prices(alone, mixed, shares)),
        memory_alone=_largest(alone_peaks),
        memory_mixed=mixed_peaks,
    )


def prices(
    alone: Mapping[InputShape, Sequence[float]],
    mixed: Mapping[InputShape, Sequence[float]],
    shares: Mapping[InputShape, float],
) -> list[float]:
    """Time of the mix over that of the same shapes alone, round by round.

    Args:
        alone: shape -> seconds of a step in each round.
        mixed: likewise, inside the mixed sequence.
        shares: shape -> fraction of the steps.
    """
    rounds = range(len(next(iter(alone.values()))))
    return [
        fsum(share * mixed[shape][i] for shape, share in shares.items())
        / fsum(share * alone[shape][i] for shape, share in shares.items())
        for i in rounds
    ]


def mean_by_shape(shapes: Sequence[InputShape], seconds: Sequence[float]) -> dict[InputShape, float]:
    """Mean seconds of the steps of each shape. The mean, for a stall at a few of the changes is a price too."""
    found: dict[InputShape, list[float]] = {}
    for shape, lap in zip(shapes, seconds, strict=True):
        found.setdefault(shape, []).append(lap)
    return {shape: fmean(laps) for shape, laps in found.items()}


def measure_budget(network: str, work: Work, device: torch.device) -> BudgetCost:
    """Steps of each shape alone, in rounds, beside the base's."""
    base = InputShape(work.regime.base.batch_size * work.regime.base.duplicates, work.regime.base.size_px)
    shapes = sorted({*shape_shares(work.regime), base}, key=lambda shape: -shape.size_px)
    with tuned_kernels():
        step = TrainingStep(network, device, shapes)
        batches = NoiseBatches(shapes, device)
        step.preflight()
        seconds: dict[InputShape, list[float]] = {shape: [] for shape in shapes}
        for number in range(work.rounds):
            for shape in shuffled(shapes, number):
                seconds[shape].append(seconds_alone(step, batches, shape, work.steps))
    return BudgetCost(
        network=network,
        base_px=base.size_px,
        sizes=[
            SizeCost(
                size_px=shape.size_px,
                images=shape.images,
                pixels=shape.images * shape.size_px**2 / work.regime.base.pixels,
                seconds=Spread.of(seconds[shape]),
                ratio=Spread.of([mine / its for mine, its in zip(seconds[shape], seconds[base], strict=True)]),
            )
            for shape in shapes
        ],
    )


def _visit_mix(step: TrainingStep, batches: NoiseBatches, work: Work) -> None:
    step.preflight()
    step_seconds(step, batches, drawn_shapes(work.regime, work.images, epoch=0))


def _peaks(device: torch.device, action: Callable[[], object]) -> Memory | None:
    """What the allocator came to while something ran, on memory that was given back before."""
    if device.type != "cuda":
        action()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    action()
    found = torch.cuda.memory_stats(device)
    return Memory(
        reserved=found["reserved_bytes.all.peak"],
        allocated=found["allocated_bytes.all.peak"],
        inactive_split=found["inactive_split_bytes.all.peak"],
    )


def _largest(peaks: Sequence[Memory | None]) -> Memory | None:
    known = [peak for peak in peaks if peak is not None]
    if not known:
        return None
    return Memory(
        reserved=max(peak.reserved for peak in known),
        allocated=max(peak.allocated for peak in known),
        inactive_split=max(peak.inactive_split for peak in known),
    )


def price_units(bench: Bench) -> list[Unit]:
    """One for each network and engine."""
    work = DRY if bench.dry_run else FULL
    return [
        Unit(f"{network} {engine}", 60, partial(measure_price, network, engine, work, bench.device))
        for network in work.price_networks
        for engine in work.price_engines
    ]


def budget_units(bench: Bench) -> list[Unit]:
    """One for each network."""
    work = DRY if bench.dry_run else FULL
    return [Unit(network, 50, partial(measure_budget, network, work, bench.device)) for network in work.budget_networks]


def price_table(units: UnitFigures) -> PartTable:
    """A row for each size, and one for the mix."""
    rows, notes = [], []
    for found in units.values():
        assert isinstance(found, ShapePrice)
        name = f"{found.network}, {found.engine}"
        rows += [
            [
                f"{name}, {shape.size_px} px",
                f"{shape.images:,}",
                f"{100 * shape.step_share:.0f} %",
                milliseconds(shape.alone),
                milliseconds(shape.mixed),
                times(shape.price),
            ]
            for shape in found.shapes
        ]
        rows.append([f"{name}, mixed", "", "", "", "", times(found.price)])
        for words, memory in (("each shape alone, at most", found.memory_alone), ("mixed", found.memory_mixed)):
            if memory is not None:
                notes.append(f"Memory of {name}, {words}: {_memory_words(memory)}.")
    head = ["shape price", "images", "steps", "alone, ms", "mixed, ms", "mixed / alone"]
    return PartTable(head, rows, notes)


def budget_table(units: UnitFigures) -> PartTable:
    """A row for each network and size."""
    rows = []
    for found in units.values():
        assert isinstance(found, BudgetCost)
        rows += [
            [
                f"{found.network}, {size.size_px} px",
                f"{size.images:,}",
                f"{size.pixels:.3f}x",
                milliseconds(size.seconds),
                times(size.ratio),
            ]
            for size in found.sizes
        ]
    return PartTable(["budget", "images", "pixels", "step, ms", "time / base"], rows)


def price_verdicts(units: UnitFigures) -> list[Verdict]:
    """One for each engine."""
    rows = []
    for engine in FULL.price_engines:
        target = f"shape price at most {above_one(PRICE_TARGET)}: {_TARGET_NETWORK}, {engine}"
        found = units.get(f"{_TARGET_NETWORK} {engine}")
        if found is None:
            rows.append(Verdict(target))
            continue
        assert isinstance(found, ShapePrice)
        price = found.price.median
        rows.append(Verdict(target, above_one(price), price <= PRICE_TARGET))
    return rows


def budget_verdicts(units: UnitFigures) -> list[Verdict]:
    """On the one network that there is a target for."""
    target = f"steps of equal pixels within {100 * BUDGET_TARGET:.0f} % of the base's time: {_TARGET_NETWORK}"
    found = units.get(_TARGET_NETWORK)
    if found is None:
        return [Verdict(target)]
    assert isinstance(found, BudgetCost)
    ratios = [size.ratio.median for size in found.sizes]
    far = max(ratios, key=lambda ratio: abs(ratio - 1))
    return [Verdict(target, f"{above_one(min(ratios))} to {above_one(max(ratios))}", abs(far - 1) <= BUDGET_TARGET)]


def _memory_words(memory: Memory) -> str:
    gib = 2**30
    return (
        f"{memory.reserved / gib:.2f} GiB reserved, {memory.allocated / gib:.2f} GiB allocated, "
        f"{memory.inactive_split / gib:.2f} GiB in pieces that only their own size of tensor can have (peaks)"
    )


PRICE = Part(
    "shape_price",
    "step time in a mix against the same shapes alone, and memory",
    price_units,
    price_table,
    price_verdicts,
)
BUDGET = Part("budget", "step time by size at equal pixels", budget_units, budget_table, budget_verdicts)
