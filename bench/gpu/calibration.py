"""Seconds to calibrate batch norm for a size."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict
from mixsize.bench.gpu.photographs import Photographs
from mixsize.bench.gpu.record import CalibrationTime, Spread
from mixsize.bench.gpu.training import NoiseBatches, TrainingStep, tuned_kernels
from mixsize.ffcv_loaders.beton.reader import Beton

#: Seconds that a size may take, from JPEGs.
SECONDS_TARGET = 10.0
_TARGET_NETWORK = "resnet50"


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        networks: timm names.
        sizes_px: image sides in pixels.
        batches: forward passes for a size.
        batch_size: images in each.
        rounds: each calibrates once from JPEGs and once from the device.
    """

    networks: tuple[str, ...]
    sizes_px: tuple[int, ...]
    batches: int
    batch_size: int
    rounds: int


FULL = Work(("resnet50",), (128, 224, 288), batches=200, batch_size=256, rounds=2)
DRY = Work(("test_resnet",), (32,), batches=2, batch_size=4, rounds=1)
#: Forward passes before those that are timed.
_FIRST_BATCHES = 3


def measure_calibration(network: str, size_px: int, work: Work, bench: Bench) -> CalibrationTime:
    """Calibrate from JPEGs and from the device, turn about."""
    shape = InputShape(work.batch_size, size_px)
    regime = Regime.fixed(Base(size_px, work.batch_size))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    autocast = torch.autocast(bench.device.type, torch.bfloat16)
    with Beton.open(bench.images) as beton, tuned_kernels(), autocast:
        photographs = Photographs(beton, bench.device, bench.threads, evaluation=True)
        module = TrainingStep(network, bench.device, [shape]).network.eval()
        batch = NoiseBatches([shape], bench.device)[shape]

        def calibrate(batches: Iterable, count: int) -> float:
            began = time.perf_counter()
            # Ends with its statistics on the host: nothing is left to wait for.
            calibrate_batch_norm(module, batches, max_batches=count)
            return time.perf_counter() - began

        calibrate(repeat(batch), _FIRST_BATCHES)
        photographs.warm_up()
        for number in range(work.rounds):
            for loads in (True, False) if number % 2 else (False, True):
                plan = photographs.plan(regime, work.batches * work.batch_size, epoch=number)
                batches = photographs.serve(plan) if loads else repeat(batch)
                seconds[loads].append(calibrate(batches, work.batches))
    return CalibrationTime(
        network=network,
        size_px=size_px,
        batches=work.batches,
        batch_size=work.batch_size,
        threads=bench.threads,
        with_loader=Spread.of(seconds[True]),
        without_loader=Spread.of(seconds[False]),
    )


def units(bench: Bench) -> list[Unit]:
    """One for each network and size."""
    work = DRY if bench.dry_run else FULL
    return [
        Unit(f"{network} {size_px} px", 30, partial(measure_calibration, network, size_px, work, bench))
        for network in work.networks
        for size_px in work.sizes_px
    ]


def table(found: UnitFigures) -> PartTable:
    """A row for each network and size."""
    rows = []
    for row in found.values():
        assert isinstance(row, CalibrationTime)
        rows.append(
            [
                f"{row.network}, {row.size_px} px",
                f"{row.batches} x {row.batch_size}",
                str(row.threads),
                _seconds(row.with_loader),
                _seconds(row.without_loader),
            ]
        )
    return PartTable(["calibration", "batches", "threads", "from JPEGs, s", "without the loader, s"], rows)


def verdicts(found: UnitFigures) -> list[Verdict]:
    """On the slowest size."""
    target = f"calibration of a size with {FULL.batches} batches under {SECONDS_TARGET:.0f} s: {_TARGET_NETWORK}"
    known = [
        row
        for row in found.values()
        if isinstance(row, CalibrationTime) and (row.network, row.batches) == (_TARGET_NETWORK, FULL.batches)
    ]
    if not known:
        return [Verdict(target)]
    slowest = max(known, key=lambda row: row.with_loader.median)
    seconds = slowest.with_loader.median
    return [Verdict(target, f"{seconds:.1f} s at {slowest.size_px} px", seconds < SECONDS_TARGET)]


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.1f} ({spread.low:.1f}-{spread.high:.1f})"


PART = Part(
    "calibration",
    "seconds to calibrate batch norm for a size with 200 batches",
    units,
    table,
    verdicts,
    frozenset({"images"}),
)
