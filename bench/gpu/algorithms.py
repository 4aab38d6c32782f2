"""What the algorithms add to a training step: time, and host synchronisations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu.clock import LapClock
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict, above_one, milliseconds, times
from mixsize.bench.gpu.record import AlgorithmsCost, Spread, StepCost
from mixsize.bench.gpu.trace import host_waits, record_trace
from mixsize.bench.gpu.training import NoiseBatches, TrainingStep, tuned_kernels
from mixsize.bench.overhead.overhead import TrainerPair

#: A step with every algorithm may take this many times one with none.
COST_TARGET = 1.01
_TARGET_NETWORK = "resnet50"


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        networks: timm names.
        shape: of each step.
        pairs: steps with and without, turn about.
        traced_steps: of the longer of the two fits that are traced.
    """

    networks: tuple[str, ...]
    shape: InputShape
    pairs: int
    traced_steps: int


FULL = Work(("resnet50",), InputShape(256, 224), pairs=40, traced_steps=12)
DRY = Work(("test_resnet",), InputShape(4, 32), pairs=2, traced_steps=3)
#: The shorter one; what fits have before and after their steps is in both.
_SHORT_STEPS = 2


def measure_algorithms(network: str, work: Work, device: torch.device) -> AlgorithmsCost:
    """Steps with and without, and the waits of each kind."""
    shape = work.shape
    with tuned_kernels():
        smoothing = measure_smoothing(network, work, device)
        pair = TrainerPair(network, shape.size_px, shape.images, device)
        seconds = pair.measure(work.pairs)
        syncs = {}
        for name, trainer in pair.trainers.items():
            counts = [
                host_waits(record_trace(partial(trainer.fit, duration=f"{steps}ba"), device))
                for steps in (_SHORT_STEPS, work.traced_steps)
            ]
            syncs[name] = waits_a_step(counts[0], _SHORT_STEPS, counts[1], work.traced_steps)
    return AlgorithmsCost(
        network=network,
        size_px=shape.size_px,
        images=shape.images,
        all_algorithms=step_cost(seconds["all"], seconds["none"]),
        smoothing=smoothing,
        host_syncs=syncs["all"],
        base_host_syncs=syncs["none"],
    )


def measure_smoothing(network: str, work: Work, device: torch.device) -> StepCost:
    """Gradient smoothing in a plain loop, every other step."""
    step = TrainingStep(network, device, [work.shape])
    images, labels = NoiseBatches([work.shape], device)[work.shape]
    step.preflight()
    clock = LapClock(device)
    # The first pair warms up; each pair begins with the other kind.
    order = [smooth for pair in range(work.pairs + 1) for smooth in ((True, False) if pair % 2 else (False, True))]
    clock.mark()
    for smooth in order:
        step(images, labels, smooth=smooth)
        clock.mark()
    laps = list(zip(order, clock.laps(), strict=True))[2:]
    return step_cost([lap for smooth, lap in laps if smooth], [lap for smooth, lap in laps if not smooth])


def step_cost(seconds: Sequence[float], base_seconds: Sequence[float]) -> StepCost:
    """Both sides, and their ratio pair by pair."""
    return StepCost(
        seconds=Spread.of(seconds),
        base_seconds=Spread.of(base_seconds),
        ratio=Spread.of([mine / other for mine, other in zip(seconds, base_seconds, strict=True)]),
    )


def waits_a_step(short_waits: int, short_steps: int, long_waits: int, long_steps: int) -> float:
    """Host synchronisations of a step, from two traces of unequal length: what both have in common drops out."""
    return (long_waits - short_waits) / (long_steps - short_steps)


def units(bench: Bench) -> list[Unit]:
    """One for each network."""
    work = DRY if bench.dry_run else FULL
    return [Unit(network, 60, partial(measure_algorithms, network, work, bench.device)) for network in work.networks]


def table(found: UnitFigures) -> PartTable:
    """Two rows for each network, and its waits."""
    rows, notes = [], []
    for cost in found.values():
        assert isinstance(cost, AlgorithmsCost)
        for words, part in (
            ("all algorithms, under Composer", cost.all_algorithms),
            ("gradient smoothing, plain loop", cost.smoothing),
        ):
            rows.append(
                [
                    f"{cost.network}, {cost.images:,} x {cost.size_px} px: {words}",
                    milliseconds(part.seconds),
                    milliseconds(part.base_seconds),
                    times(part.ratio),
                ]
            )
        notes.append(
            f"Host synchronisations of a step of {cost.network}: {cost.host_syncs:g} with all algorithms, "
            f"{cost.base_host_syncs:g} with none."
        )
    return PartTable(["algorithms", "with, ms", "without, ms", "ratio"], rows, notes)


def verdicts(found: UnitFigures) -> list[Verdict]:
    """On time and on synchronisations."""
    cost_target = f"all algorithms at most {above_one(COST_TARGET)} of a step: {_TARGET_NETWORK}"
    sync_target = f"no host synchronisation of ours: {_TARGET_NETWORK}"
    cost = found.get(_TARGET_NETWORK)
    if cost is None:
        return [Verdict(cost_target), Verdict(sync_target)]
    assert isinstance(cost, AlgorithmsCost)
    ratio, ours = cost.all_algorithms.ratio.median, cost.host_syncs - cost.base_host_syncs
    return [
        Verdict(cost_target, above_one(ratio), ratio <= COST_TARGET),
        Verdict(sync_target, f"{ours:g} a step", ours <= 0),
    ]


PART = Part("algorithms", "what smoothing and the other algorithms add to a step", units, table, verdicts)
