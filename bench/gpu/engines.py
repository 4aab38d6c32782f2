"""Engines against eager passes: time between kernels (``kernel_gaps``) and losses (``equivalence``).

Training amplifies rounding, so two eager runs that differ in one bit drift apart too. An engine's loss curve is
therefore compared with several eager curves from the same weights and batches. All but the first of these are nudged
by as much as bfloat16 rounds: the weights once, the images at every step. An engine that only rounds differently lies
among them. The distance of two curves is the root mean square of their difference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import interpolate

from mixsize.algorithms.execution.engines import Engine
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape, shapes_of
from mixsize.bench.gpu.case import Case, Row, Setup, spread
from mixsize.bench.gpu.step import SEED, TrainingStep, drawn_shapes, noise_batches, step_seconds, tuned_kernels
from mixsize.bench.gpu.trace import busy_seconds, launches, record_trace

#: (share of the steps, allowed distance over the largest distance of an eager run to the others). Early on, when runs
#: have hardly drifted apart, the distance follows the size of the nudge, which matches other kernels' rounding in its
#: order only; but a small error shows best there.
STRETCHES = ((0.1, 4.0), (1.0, 1.5))
#: Half the relative distance of neighbouring bfloat16 numbers.
_HALF_UNIT = 2.0**-9
_TRACED_STEPS = 5
_CLASSES = 10
_PATTERN_PX = 8


@dataclass(frozen=True)
class LossWork:
    """How much is trained: ``steps`` in the regime's shapes, drawn from an epoch of ``images``."""

    network: str
    engines: tuple[Engine, ...]
    regime: Regime
    images: int
    steps: int
    eager_runs: int
    lr: float = 0.05


FULL_LOSSES = LossWork(
    "cifar_resnet20",
    ("cuda_graphs", "compile"),
    Regime.from_sizes("s28", Base(32, 128), "B+"),
    images=50_000,
    steps=200,
    eager_runs=6,
)
DRY_LOSSES = LossWork(
    "test_resnet",
    ("eager",),
    Regime.from_sizes({64: 0.5, 32: 0.5}, Base(64, 4), "B+"),
    images=200,
    steps=20,
    eager_runs=3,
)


def gap_cases(setup: Setup) -> list[Case]:
    """Each engine on a large network, and on one so small that launching kernels sets its pace."""
    networks = {"resnet50": InputShape(256, 224), "cifar_resnet44": InputShape(256, 32)}
    engines: list[Engine] = ["eager", "cuda_graphs", "compile"]
    steps = 40
    if setup.dry_run:
        # Compiling takes minutes on a CPU.
        networks, engines, steps = {"test_resnet": InputShape(4, 32)}, engines[:1], 3
    return [
        Case(
            "kernel_gaps",
            f"{network} {engine}, {shape.images} x {shape.size_px} px",
            90 if engine == "compile" else 20,
            partial(measure_gaps, network, shape, engine, steps, setup.device),
        )
        for engine in engines
        for network, shape in networks.items()
    ]


def loss_cases(setup: Setup) -> list[Case]:
    """Each engine but the eager one."""
    work = DRY_LOSSES if setup.dry_run else FULL_LOSSES
    return [
        Case(
            "equivalence",
            f"{work.network} {engine}",
            150 if engine == "compile" else 30,
            partial(measure_losses, engine, work, setup.device),
        )
        for engine in work.engines
    ]


def measure_gaps(network: str, shape: InputShape, engine: Engine, steps: int, device: torch.device) -> list[Row]:
    """Time steps without the profiler, which slows launches down; then trace a few for what ran on the device."""
    with tuned_kernels():
        step = TrainingStep(network, device, [shape], engine)
        batches = noise_batches([shape], device)
        began = time.perf_counter()
        step.preflight()
        step_seconds(step, batches, [shape] * 3)
        preparation = time.perf_counter() - began
        seconds = step_seconds(step, batches, [shape] * (steps + 1))
        events = record_trace(lambda: [step(*batches[shape]) for _ in range(_TRACED_STEPS)], device)
    busy = busy_seconds(events, device) / _TRACED_STEPS
    found = spread(seconds, 1e3)
    return [
        {
            "step_ms": found,
            "busy_ms": 1e3 * busy,
            "gap": max(0.0, 1 - 1e3 * busy / found["median"]),
            "launches": launches(events) / _TRACED_STEPS,
            "preparation_s": preparation,
        }
    ]


def measure_losses(engine: Engine, work: LossWork, device: torch.device) -> list[Row]:
    """Train eagerly several times and with the engine once, on the same batches from the same weights."""
    eager = [loss_curve(work, "eager", device, nudge) for nudge in range(work.eager_runs)]
    curve = loss_curve(work, engine, device)
    return compare_curves(curve, eager)


def compare_curves(curve: np.ndarray, eager: Sequence[np.ndarray]) -> list[Row]:
    """An engine's loss curve beside eager ones, over the first steps and over all.

    Returns:
        Rows with the mean distance of the engine to the eager runs in nats, the largest mean distance of an eager run
        to the others, their ratio, its allowed value, and ``same``.
    """
    rows = []
    for share, allowed in STRETCHES:
        steps = max(2, round(share * len(curve)))
        parts = [part[:steps] for part in eager]
        noise = max(_mean_distance(part, [*parts[:i], *parts[i + 1 :]]) for i, part in enumerate(parts))
        distance = _mean_distance(curve[:steps], parts)
        rows.append(
            {
                "steps": steps,
                "distance_nats": distance,
                "eager_nats": noise,
                "ratio": distance / noise if noise else None,
                "allowed": allowed,
                "same": "yes" if distance <= allowed * noise else "no",
            }
        )
    return rows


def loss_curve(work: LossWork, engine: Engine, device: torch.device, nudge: int = 0) -> np.ndarray:
    """Loss at each step, in nats.

    Args:
        work: what is trained.
        engine: how it is run.
        device: where.
        nudge: which random nudge the weights and images get; 0 for none.
    """
    step = TrainingStep(work.network, device, shapes_of(work.regime), engine, classes=_CLASSES, lr=work.lr)
    generator = torch.Generator(device).manual_seed(SEED)
    patterns = torch.randn((_CLASSES, 3, _PATTERN_PX, _PATTERN_PX), generator=generator, device=device)
    nudges = torch.Generator(device).manual_seed(SEED + nudge)
    if nudge:
        with torch.no_grad():
            for parameter in step.parameters:
                parameter.mul_(rounding_factors(parameter, nudges))
    losses = []
    for index, shape in enumerate(drawn_shapes(work.regime, work.images, epoch=0)[: work.steps]):
        images, labels = _pattern_batch(patterns, shape, index)
        losses.append(step(images * rounding_factors(images, nudges) if nudge else images, labels))
    assert len(losses) == work.steps
    return torch.stack(losses).double().cpu().numpy()


def rounding_factors(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random factors that move values by as much as rounding to bfloat16 may."""
    return 1 + _HALF_UNIT * (2 * torch.rand(tensor.shape, generator=generator, device=tensor.device) - 1)


def _mean_distance(curve: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.sqrt(np.mean((curve - other) ** 2)) for other in others]))


def _pattern_batch(patterns: torch.Tensor, shape: InputShape, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's batch of noisy coarse patterns, one pattern for each class: easy enough that the loss falls."""
    device = patterns.device
    seed = int(np.random.SeedSequence(SEED, spawn_key=(index,)).generate_state(1)[0])
    generator = torch.Generator(device).manual_seed(seed)
    labels = torch.randint(_CLASSES, (shape.images,), generator=generator, device=device)
    clean = interpolate(patterns[labels], size=shape.size_px, mode="bilinear", align_corners=False)
    noisy = clean + torch.randn(clean.shape, generator=generator, device=device)
    return noisy.contiguous(memory_format=torch.channels_last), labels
