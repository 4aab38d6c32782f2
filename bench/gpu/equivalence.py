"""Compiled and recorded passes against eager ones: do their loss curves differ by more than rounding makes them?

Training amplifies rounding: two eager runs that differ in the last bit of bfloat16 drift apart too. So the engine's
curve is held against several eager ones that were nudged by as much as bfloat16 rounds: once in their weights, and at
every step in their images. If an engine only rounds differently, its curve lies among theirs. The measure is the root
mean square of the difference of two curves; an engine's mean distance to the eager curves must not exceed a multiple of
the largest that one of them has to the others. It is asked twice: over the first tenth of the steps, in which runs have
hardly drifted apart and a small error shows, and over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import interpolate

from mixsize.algorithms.execution.engines import Engine
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape, shapes_of
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict
from mixsize.bench.gpu.record import Deviation, Equivalence
from mixsize.bench.gpu.training import TrainingStep, drawn_shapes

#: Multiples of the noise up to which an engine counts as the same computation. How far runs are apart early on follows
#: the size of the nudge, which matches other kernels' rounding in its order only; later it no longer does.
EARLY_ALLOWED = 4.0
ALLOWED = 1.5
#: Part of the steps that is early.
_EARLY = 0.1
#: Half the distance of neighbouring bfloat16 values, relative to them: what rounding to the nearest may move.
_HALF_UNIT = 2.0**-9
_CLASSES = 10
_PATTERN_PX = 8
_NOISE = 1.0
_SEED = 0


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        network: timm name.
        engines: each against eager.
        regime: whose shapes the steps take in turn.
        images: of the epoch that they come from.
        steps: of a curve.
        eager_runs: the first without a nudge.
        lr: learning rate.
    """

    network: str
    engines: tuple[Engine, ...]
    regime: Regime
    images: int
    steps: int
    eager_runs: int
    lr: float = 0.05


FULL = Work(
    "cifar_resnet20",
    ("cuda_graphs", "compile"),
    Regime.from_sizes("s28", Base(32, 128), "B+"),
    images=50_000,
    steps=200,
    eager_runs=6,
)
DRY = Work(
    "test_resnet",
    # Compiling takes minutes on a CPU: an eager run stands in for it.
    ("eager",),
    Regime.from_sizes({64: 0.5, 32: 0.5}, Base(64, 4), "B+"),
    images=200,
    steps=20,
    eager_runs=3,
)


def measure_equivalence(engine: Engine, work: Work, device: torch.device) -> Equivalence:
    """Train eagerly several times and with the engine once, on the same batches from the same weights."""
    eager = [loss_curve(work, "eager", device, nudge) for nudge in range(work.eager_runs)]
    curve = loss_curve(work, engine, device)
    early = max(2, round(_EARLY * work.steps))
    return Equivalence(
        network=work.network,
        engine=engine,
        shapes=len(shapes_of(work.regime)),
        eager_runs=work.eager_runs,
        first_loss=float(eager[0][:early].mean()),
        last_loss=float(eager[0][-early:].mean()),
        deviations=[
            deviation(curve, eager, early, EARLY_ALLOWED),
            deviation(curve, eager, work.steps, ALLOWED),
        ],
    )


def loss_curve(work: Work, engine: Engine, device: torch.device, nudge: int = 0) -> np.ndarray:
    """Loss at each step, in nats.

    Args:
        work: what is trained.
        engine: how.
        device: where.
        nudge: which random nudge by half a unit of bfloat16 the weights and images get; 0 for none.
    """
    task = _Task(device)
    step = TrainingStep(work.network, device, shapes_of(work.regime), engine, classes=_CLASSES, lr=work.lr)
    generator = torch.Generator(device).manual_seed(_SEED + nudge)
    if nudge:
        with torch.no_grad():
            for parameter in step.parameters:
                parameter.mul_(_nudges(parameter, generator))
    losses = []
    for index, shape in enumerate(drawn_shapes(work.regime, work.images, epoch=0)[: work.steps]):
        images, labels = task.batch(index, shape)
        if nudge:
            images = images * _nudges(images, generator)
        losses.append(step(images, labels))
    assert len(losses) == work.steps
    return torch.stack(losses).double().cpu().numpy()


def deviation(curve: np.ndarray, eager: Sequence[np.ndarray], steps: int, allowed: float) -> Deviation:
    """How far a curve is from eager ones over its first steps, beside how far these are from each other."""
    parts = [part[:steps] for part in eager]
    noise = [_mean_distance(part, [other for j, other in enumerate(parts) if j != i]) for i, part in enumerate(parts)]
    return Deviation(steps=steps, engine=_mean_distance(curve[:steps], parts), noise=max(noise), allowed=allowed)


def _mean_distance(curve: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.sqrt(np.mean((curve - other) ** 2)) for other in others]))


def _nudges(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Factors within half a unit of bfloat16 of 1."""
    return 1 + _HALF_UNIT * (2 * torch.rand(tensor.shape, generator=generator, device=tensor.device) - 1)


class _Task:
    """Noisy coarse patterns, one for each class: easy enough that the loss falls within the steps."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(_SEED)
        size = (_CLASSES, 3, _PATTERN_PX, _PATTERN_PX)
        self._patterns = torch.randn(size, generator=generator, device=device)

    def batch(self, index: int, shape: InputShape) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step, the same in every run."""
        device = self._patterns.device
        seed = int(np.random.SeedSequence(_SEED, spawn_key=(index,)).generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(seed)
        labels = torch.randint(_CLASSES, (shape.images,), generator=generator, device=device)
        clean = interpolate(self._patterns[labels], size=shape.size_px, mode="bilinear", align_corners=False)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        return (clean + _NOISE * noise).contiguous(memory_format=torch.channels_last), labels


def units(bench: Bench) -> list[Unit]:
    """One for each engine."""
    work = DRY if bench.dry_run else FULL
    return [
        Unit(
            f"{work.network} {engine}",
            150 if engine == "compile" else 30,
            partial(measure_equivalence, engine, work, bench.device),
        )
        for engine in work.engines
    ]


def table(found: UnitFigures) -> PartTable:
    """A row for each engine and stretch of steps."""
    rows, notes = [], []
    for row in found.values():
        assert isinstance(row, Equivalence)
        rows += [
            [
                f"{row.network}, {row.engine}, first {part.steps} steps",
                f"{part.engine:.5f}",
                f"{part.noise:.5f}",
                f"{part.engine / part.noise:.2f}" if part.noise else "",
                f"{part.allowed:g}",
            ]
            for part in row.deviations
        ]
        notes.append(
            f"{row.network}, {row.engine}: {row.shapes} shapes in turn, {row.eager_runs} eager runs; the loss fell "
            f"from {row.first_loss:.3f} to {row.last_loss:.3f}."
        )
    return PartTable(["loss curve", "distance to eager, nats", "eager runs' own", "ratio", "allowed"], rows, notes)


def verdicts(found: UnitFigures) -> list[Verdict]:
    """One for each engine that targets are about."""
    rows = []
    for engine in FULL.engines:
        target = f"{engine} within bfloat16's rounding of eager over {FULL.steps} steps"
        row = found.get(f"{FULL.network} {engine}")
        if row is None:
            rows.append(Verdict(target))
            continue
        assert isinstance(row, Equivalence)
        words = ", ".join(f"{part.engine:.4f} of {part.allowed * part.noise:.4f} nats" for part in row.deviations)
        rows.append(Verdict(target, words, all(part.within for part in row.deviations)))
    return rows


PART = Part("equivalence", "loss curves of compiled and recorded passes against eager ones", units, table, verdicts)
