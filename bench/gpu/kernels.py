"""How much of a step the device computes, and how much it waits for the next kernel to be launched."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch

from mixsize.algorithms.execution.engines import Engine
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict, milliseconds
from mixsize.bench.gpu.record import KernelGaps, Spread
from mixsize.bench.gpu.trace import busy_seconds, launches, record_trace
from mixsize.bench.gpu.training import NoiseBatches, TrainingStep, step_seconds, tuned_kernels


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        cases: network and shape: a large one, and one so small that launching sets its pace.
        engines: each with each case.
        steps: timed.
        traced_steps: under the profiler.
    """

    cases: tuple[tuple[str, InputShape], ...]
    engines: tuple[Engine, ...]
    steps: int
    traced_steps: int


FULL = Work(
    (("resnet50", InputShape(256, 224)), ("cifar_resnet44", InputShape(256, 32))),
    ("eager", "cuda_graphs", "compile"),
    steps=40,
    traced_steps=5,
)
DRY = Work((("test_resnet", InputShape(4, 32)),), ("eager",), steps=3, traced_steps=2)
#: Steps before those that are timed: kernels are tuned, compiled or recorded.
_FIRST_STEPS = 3


def measure_gaps(network: str, shape: InputShape, engine: Engine, work: Work, device: torch.device) -> KernelGaps:
    """Time steps without the profiler, which slows launching down, then trace a few for what runs on the device."""
    with tuned_kernels():
        step = TrainingStep(network, device, [shape], engine)
        batches = NoiseBatches([shape], device)
        began = time.perf_counter()
        step.preflight()
        step_seconds(step, batches, [shape] * _FIRST_STEPS)
        preparation = time.perf_counter() - began
        seconds = step_seconds(step, batches, [shape] * (work.steps + 1))

        def traced() -> None:
            for _ in range(work.traced_steps):
                step(*batches[shape])

        events = record_trace(traced, device)
    return KernelGaps(
        network=network,
        engine=engine,
        size_px=shape.size_px,
        images=shape.images,
        seconds=Spread.of(seconds),
        busy_seconds=busy_seconds(events, device) / work.traced_steps,
        launches=launches(events) / work.traced_steps,
        preparation_seconds=preparation,
    )


def units(bench: Bench) -> list[Unit]:
    """One for each network and engine; what compiles comes last, as it takes longest."""
    work = DRY if bench.dry_run else FULL
    return [
        Unit(
            f"{network} {engine}",
            90 if engine == "compile" else 20,
            partial(measure_gaps, network, shape, engine, work, bench.device),
        )
        for engine in work.engines
        for network, shape in work.cases
    ]


def table(found: UnitFigures) -> PartTable:
    """A row for each network and engine."""
    rows = []
    for gaps in found.values():
        assert isinstance(gaps, KernelGaps)
        eager = found.get(f"{gaps.network} eager")
        assert eager is None or isinstance(eager, KernelGaps)
        speed_up = "" if eager is None else f"{eager.seconds.median / gaps.seconds.median:.2f}x"
        rows.append(
            [
                f"{gaps.network}, {gaps.images:,} x {gaps.size_px} px, {gaps.engine}",
                milliseconds(gaps.seconds),
                f"{1e3 * gaps.busy_seconds:.2f}",
                f"{100 * gaps.gap:.1f} %",
                f"{gaps.launches:,.0f}",
                speed_up,
                f"{gaps.preparation_seconds:.0f}",
            ]
        )
    head = ["kernel gaps", "step, ms", "device busy, ms", "gap", "launches", "eager / it", "preparation, s"]
    return PartTable(head, rows)


def verdicts(found: UnitFigures) -> list[Verdict]:
    """There is no target."""
    return []


PART = Part(
    "kernel_gaps", "share of a step that is launching; what graphs and compilation give", units, table, verdicts
)
