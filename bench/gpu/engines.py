"""Time between kernels, for each engine."""

from __future__ import annotations

import time
from functools import partial

import torch

from mixsize.algorithms.execution.engines import Engine
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu.case import Cases, Row, Setup, spread
from mixsize.bench.gpu.step import TrainingStep, noise_batches, step_seconds, tuned_kernels
from mixsize.bench.gpu.trace import busy_seconds, launches, record_trace

_TRACED_STEPS = 5


def cases(setup: Setup) -> Cases:
    """Each engine on a large network, and on one so small that launching kernels sets its pace."""
    networks = {"resnet50": InputShape(256, 224), "cifar_resnet44": InputShape(256, 32)}
    engines: list[Engine] = ["eager", "cuda_graphs", "compile"]
    steps = 40
    if setup.dry_run:
        # Compiling takes minutes on a CPU.
        networks, engines, steps = {"test_resnet": InputShape(4, 32)}, engines[:1], 3
    return {
        f"{network} {engine}, {shape.images} x {shape.size_px} px": partial(
            measure_gaps, network, shape, engine, steps, setup.device
        )
        for engine in engines
        for network, shape in networks.items()
    }


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
