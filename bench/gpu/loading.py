"""With the loader and without: an epoch of mixed sizes against a fixed one, and calibration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import torch

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm
from mixsize.algorithms.regime.plan import EpochPlan, plan_epoch
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape, shapes_of
from mixsize.bench.gpu.case import Cases, Row, Setup, ratios, spread
from mixsize.bench.gpu.step import (
    SEED,
    Batch,
    TrainingStep,
    drawn_shapes,
    noise_batches,
    shuffled,
    synchronize,
    tuned_kernels,
)
from mixsize.ffcv_loaders.decode.augment import CenterCrop
from mixsize.ffcv_loaders.decode.decode import EVALUATION_MIN_OVERSAMPLING
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.system.ranks import default_threads

#: Served first, as the first images that a process decodes wait for compilation.
_WARM_UP_IMAGES = 64
FIXED = "fixed"


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        network: timm name.
        sizes: the mix, as for :meth:`Regime.from_sizes`.
        base: the fixed size and its batch.
        images: of a round's epoch. Whole batches move the shares of the sizes by a few per cent.
        rounds: of epochs. Calibration takes half as many, rounded up.
        calibration_px: sides to calibrate at.
        calibration_batches: forward passes for each, of the base's batch size.
    """

    network: str
    sizes: str | dict[int, float]
    base: Base
    images: int
    rounds: int
    calibration_px: tuple[int, ...]
    calibration_batches: int

    @property
    def regimes(self) -> dict[str, Regime]:
        """The fixed size and the mix, by name."""
        return {FIXED: Regime.fixed(self.base), "mixed": Regime.from_sizes(self.sizes, self.base, "B+")}


FULL = Work("resnet50", "s144", Base(224, 256), 21_600, 3, (128, 224, 288), 200)
DRY = Work("test_resnet", {64: 0.3, 32: 0.7}, Base(64, 8), 100, 2, (32,), 2)


def epoch_cases(setup: Setup) -> Cases:
    """One case, as the regimes are compared within a round."""
    work = DRY if setup.dry_run else FULL
    return {work.network: partial(measure_epochs, work, setup)}


def calibration_cases(setup: Setup) -> Cases:
    """Each size."""
    work = DRY if setup.dry_run else FULL
    return {
        f"{work.network} {size_px} px, {work.calibration_batches} x {work.base.batch_size}": partial(
            measure_calibration, size_px, work, setup
        )
        for size_px in work.calibration_px
    }


def measure_epochs(work: Work, setup: Setup) -> list[Row]:
    """Images a second of both regimes, from JPEGs through the loader and from batches on the device."""
    regimes = work.regimes
    shapes = {shape for regime in regimes.values() for shape in shapes_of(regime)}
    largest_first = sorted(shapes, key=lambda shape: -shape.images * shape.size_px**2)
    rates: dict[tuple[str, bool], list[float]] = {(name, loads): [] for name in regimes for loads in (True, False)}
    loader = open_images(setup)
    with tuned_kernels():
        step = TrainingStep(work.network, setup.device, largest_first)
        noise = noise_batches(shapes, setup.device)
        step.preflight()
        # The first round reads the file into memory.
        for number in range(work.rounds + 1):
            for name, loads in shuffled(rates, number):
                plan = plan_epoch(regimes[name], work.images, SEED, number)
                drawn = drawn_shapes(regimes[name], work.images, number)
                batches = serve(loader, plan) if loads else (noise[shape] for shape in drawn)
                seconds = _seconds(partial(_train, step, batches), setup.device)
                if number:
                    rates[name, loads].append(len(plan.samples) / seconds)
    return [
        {
            "regime": name,
            "pixels/fixed": pixels_an_image(regime, work.images) / pixels_an_image(regimes[FIXED], work.images),
            "jpegs_images/s": spread(rates[name, True]),
            "jpegs_speed-up": ratios(rates[name, True], rates[FIXED, True]),
            "device_images/s": spread(rates[name, False]),
            "device_speed-up": ratios(rates[name, False], rates[FIXED, False]),
        }
        for name, regime in regimes.items()
    ]


def measure_calibration(size_px: int, work: Work, setup: Setup) -> list[Row]:
    """Seconds to calibrate batch norm for one size, from JPEGs and from one batch on the device."""
    shape = InputShape(work.base.batch_size, size_px)
    regime = Regime.fixed(Base(size_px, shape.images))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    loader = open_images(setup, evaluation=True)
    with tuned_kernels(), torch.autocast(setup.device.type, torch.bfloat16):
        network = TrainingStep(work.network, setup.device, [shape]).network.eval()
        batch = noise_batches([shape], setup.device)[shape]
        calibrate_batch_norm(network, repeat(batch), max_batches=3)
        for number in range((work.rounds + 1) // 2):
            for loads in shuffled(seconds, number):
                plan = plan_epoch(regime, work.calibration_batches * shape.images, SEED, number)
                batches: Iterable[Batch] = serve(loader, plan) if loads else repeat(batch)
                calibrate = partial(calibrate_batch_norm, network, batches, max_batches=work.calibration_batches)
                seconds[loads].append(_seconds(calibrate, setup.device))
    return [{"jpegs_s": spread(seconds[True]), "device_s": spread(seconds[False])}]


def open_images(setup: Setup, *, evaluation: bool = False) -> MixSizeLoader:
    """A loader of the photographs that has decoded its first images; its own regime is not used further."""
    warm_up = Regime.fixed(Base(32, 8))
    common = {"num_workers": default_threads(), "device": setup.device, "channels_last": True}
    views = {"augment": CenterCrop(), "min_oversampling": EVALUATION_MIN_OVERSAMPLING} if evaluation else {}
    loader = MixSizeLoader(setup.images, warm_up, **common, **views)
    for _ in serve(loader, plan_epoch(warm_up, _WARM_UP_IMAGES, SEED, 0)):
        pass
    return loader


def serve(loader: MixSizeLoader, plan: EpochPlan) -> Iterator[Batch]:
    """Batches of a plan that may be of more images than the file has: it is read several times over."""
    samples = plan.samples % loader.dataset.num_samples
    for _, images, labels in loader.dataset.serve(replace(plan, samples=samples), 0):
        yield images, labels


def pixels_an_image(regime: Regime, images: int) -> float:
    """Mean pixels that an image of an epoch is trained on, in the whole batches that are timed."""
    plan = plan_epoch(regime, images, SEED, 0)
    return sum(step.size_px**2 * step.num_images for step in plan) / len(plan.samples)


def _train(step: TrainingStep, batches: Iterable[Batch]) -> None:
    for images, labels in batches:
        step(images, labels)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work by the host's clock, until the device has done it too."""
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began
