"""Time and host synchronisations that the algorithms add to a training step."""

from __future__ import annotations

from functools import partial

from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu.case import Cases, Row, Setup, ratios, spread
from mixsize.bench.gpu.step import TrainingStep, noise_batches, time_each, tuned_kernels
from mixsize.bench.gpu.trace import host_waits, record_trace
from mixsize.bench.overhead.overhead import TrainerPair


def cases(setup: Setup) -> Cases:
    """All algorithms under Composer's Trainer, and gradient smoothing in a plain loop."""
    network, shape, pairs = "resnet50", InputShape(256, 224), 40
    if setup.dry_run:
        network, shape, pairs = "test_resnet", InputShape(4, 32), 2
    return {
        f"{network}, all": partial(measure_trainer, network, shape, pairs, setup),
        f"{network}, smoothing alone": partial(measure_smoothing, network, shape, pairs, setup),
    }


def measure_trainer(network: str, shape: InputShape, pairs: int, setup: Setup) -> list[Row]:
    """Steps under Composer's Trainer with every algorithm and with none, and host synchronisations of each."""
    with tuned_kernels():
        pair = TrainerPair(network, shape.size_px, shape.images, setup.device)
        seconds = pair.measure(pairs)
        syncs = {}
        for name, trainer in pair.trainers.items():
            waits = {
                steps: host_waits(record_trace(partial(trainer.fit, duration=f"{steps}ba"), setup.device))
                for steps in (2, 3 if setup.dry_run else 12)
            }
            syncs[name] = waits_a_step(waits)
    row = _row(seconds["all"], seconds["none"])
    return [{**row, "host_syncs_with": syncs["all"], "host_syncs_without": syncs["none"]}]


def measure_smoothing(network: str, shape: InputShape, pairs: int, setup: Setup) -> list[Row]:
    """Steps of a plain loop with gradient smoothing and without."""
    with tuned_kernels():
        step = TrainingStep(network, setup.device, [shape])
        batch = noise_batches([shape], setup.device)[shape]
        step.preflight()
        # The first pair warms up. Pairs alternate in their order.
        order = [smooth for pair in range(pairs + 1) for smooth in ((True, False) if pair % 2 else (False, True))]
        seconds = time_each((partial(step, *batch, smooth=smooth) for smooth in order), setup.device)
    measured = list(zip(order, seconds, strict=True))[2:]
    smoothed, plain = ([taken for smooth, taken in measured if smooth is kind] for kind in (True, False))
    return [_row(smoothed, plain)]


def waits_a_step(waits: dict[int, int]) -> float:
    """Host synchronisations of a step, from two fits of unequal length: those at a fit's start and end cancel.

    Args:
        waits: steps of a fit -> its synchronisations.
    """
    (short, fewer), (long, more) = sorted(waits.items())
    return (more - fewer) / (long - short)


def _row(with_it: list[float], without: list[float]) -> Row:
    return {
        "with_ms": spread(with_it, 1e3),
        "without_ms": spread(without, 1e3),
        "with/without": ratios(with_it, without),
    }
