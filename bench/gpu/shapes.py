"""The cost of a step by its shape: in a mix of shapes (``shape_price``), and at equal pixels (``budget``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum
from statistics import fmean

import torch

from mixsize.algorithms.execution.engines import Engine
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape, shapes_of
from mixsize.bench.gpu.case import Cases, Row, Setup, ratios, spread
from mixsize.bench.gpu.step import (
    TrainingStep,
    drawn_shapes,
    mean_step_seconds,
    noise_batches,
    shuffled,
    step_seconds,
    tuned_kernels,
)


@dataclass(frozen=True)
class Work:
    """How much is measured: in each round ``steps`` of each shape alone, and a mixed epoch of ``images``."""

    regime: Regime
    networks: tuple[str, ...]
    engines: tuple[Engine, ...]
    rounds: int
    steps: int
    images: int


FULL = Work(
    Regime.from_sizes("s144", Base(224, 256), "B+", rounding="budget"),
    networks=("resnet50", "densenet169", "efficientnet_b0"),
    engines=("eager", "cuda_graphs"),
    rounds=5,
    steps=6,
    images=27_500,
)
DRY = Work(
    Regime.from_sizes({64: 0.3, 32: 0.7}, Base(64, 8), "B+", rounding="budget"),
    networks=("test_resnet",),
    engines=("eager",),
    rounds=2,
    steps=1,
    images=100,
)


def price_cases(setup: Setup) -> Cases:
    """The first network with each engine."""
    work = DRY if setup.dry_run else FULL
    network = work.networks[0]
    return {
        f"{network} {engine}": partial(measure_price, network, engine, work, setup.device) for engine in work.engines
    }


def budget_cases(setup: Setup) -> Cases:
    """Every network, eagerly."""
    work = DRY if setup.dry_run else FULL
    return {network: partial(measure_budget, network, work, setup.device) for network in work.networks}


def measure_price(network: str, engine: Engine, work: Work, device: torch.device) -> list[Row]:
    """Steps of each shape alone and in a mixed sequence; the last row weights shapes by their share of the steps."""
    shares = step_shares(work.regime)
    alone: dict[InputShape, list[float]] = {shape: [] for shape in shares}
    mixed: dict[InputShape, list[float]] = {shape: [] for shape in shares}
    with tuned_kernels():
        step = TrainingStep(network, device, list(shares), engine)
        batches = noise_batches(shares, device)
        step.preflight()
        for number in range(work.rounds):
            for shape in shuffled(shares, number):
                alone[shape].append(mean_step_seconds(step, batches, shape, work.steps))
            sequence = drawn_shapes(work.regime, work.images, epoch=number + 1)
            for shape, seconds in mean_by_shape(sequence[1:], step_seconds(step, batches, sequence)).items():
                mixed[shape].append(seconds)
    rows = [
        {
            "size_px": shape.size_px,
            "images": shape.images,
            "step_share": shares[shape],
            "alone_ms": spread(alone[shape], 1e3),
            "mixed_ms": spread(mixed[shape], 1e3),
            "mixed/alone": ratios(mixed[shape], alone[shape]),
        }
        for shape in sorted(shares, key=lambda shape: -shape.size_px)
    ]
    return [*rows, {"size_px": "all", "mixed/alone": spread(prices(alone, mixed, shares))}]


def measure_budget(network: str, work: Work, device: torch.device) -> list[Row]:
    """Steps of each shape alone beside the base's."""
    base = work.regime.base
    base_shape = InputShape(base.batch_size * base.duplicates, base.size_px)
    shapes = sorted({*shapes_of(work.regime), base_shape}, key=lambda shape: -shape.size_px)
    seconds: dict[InputShape, list[float]] = {shape: [] for shape in shapes}
    with tuned_kernels():
        step = TrainingStep(network, device, shapes)
        batches = noise_batches(shapes, device)
        step.preflight()
        for number in range(work.rounds):
            for shape in shuffled(shapes, number):
                seconds[shape].append(mean_step_seconds(step, batches, shape, work.steps))
    return [
        {
            "size_px": shape.size_px,
            "images": shape.images,
            "pixels/base": shape.images * shape.size_px**2 / base.pixels,
            "step_ms": spread(seconds[shape], 1e3),
            "time/base": ratios(seconds[shape], seconds[base_shape]),
        }
        for shape in shapes
    ]


def step_shares(regime: Regime) -> dict[InputShape, float]:
    """Shape -> fraction of the steps, the shape of most pixels first."""
    shares = {
        InputShape(choice.batch_size * choice.duplicates, choice.size_px): share
        for choice, share in zip(regime.choices, regime.step_shares, strict=True)
    }
    return {shape: shares[shape] for shape in shapes_of(regime)}


def prices(
    alone: Mapping[InputShape, Sequence[float]],
    mixed: Mapping[InputShape, Sequence[float]],
    shares: Mapping[InputShape, float],
) -> list[float]:
    """Time of the mix over the time of the same shapes alone, for each round.

    Args:
        alone: shape -> seconds of a step in each round.
        mixed: the same, inside the mixed sequence.
        shares: shape -> fraction of the steps.
    """
    rounds = len(next(iter(alone.values())))
    return [
        fsum(share * mixed[shape][i] for shape, share in shares.items())
        / fsum(share * alone[shape][i] for shape, share in shares.items())
        for i in range(rounds)
    ]


def mean_by_shape(shapes: Sequence[InputShape], seconds: Sequence[float]) -> dict[InputShape, float]:
    """Mean seconds of the steps of each shape. A median would hide a stall at a few changes of shape."""
    found: dict[InputShape, list[float]] = {}
    for shape, taken in zip(shapes, seconds, strict=True):
        found.setdefault(shape, []).append(taken)
    return {shape: fmean(taken) for shape, taken in found.items()}
