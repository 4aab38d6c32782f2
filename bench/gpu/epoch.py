"""An epoch of mixed sizes against one of the fixed size, from JPEGs and without the loader; and the loader alone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import shapes_of
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict, rate, times
from mixsize.bench.gpu.photographs import Photographs, describe
from mixsize.bench.gpu.record import Epochs, EpochTime, LoaderRate, LoaderRates, Spread
from mixsize.bench.gpu.training import NoiseBatches, TrainingStep, drawn_shapes, shuffled, tuned_kernels
from mixsize.ffcv_loaders.beton.reader import Beton

#: An epoch of the mix is to be this many times as fast as one of the fixed size.
SPEED_UP_TARGET = 2.0
#: With so many cores the loader is to deliver what the network takes.
CORES_TARGET = 16
_TARGET_NETWORK = "resnet50"
#: Images of ImageNet's training data, in which an epoch is put into words.
_IMAGENET_IMAGES = 1_281_167

FIXED = "fixed"
_LOADER = "loader"


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        base: of the fixed size.
        sizes: of the mix, by name.
        mix: with larger batches at small sizes.
        networks: timm names.
        images: of an epoch; its sizes' shares come out within a few per cent, although batches are whole.
        rounds: each runs every kind of epoch once.
        loader_rounds: each runs the loader alone once with every number of threads.
    """

    base: Base
    sizes: str
    mix: Regime
    networks: tuple[str, ...]
    images: int
    rounds: int
    loader_rounds: int


_BASE, _DRY_BASE = Base(224, 256), Base(64, 8)
FULL = Work(_BASE, "s144", Regime.from_sizes("s144", _BASE, "B+"), ("resnet50",), 21_600, rounds=3, loader_rounds=2)
DRY = Work(
    _DRY_BASE,
    "64 and 32 px",
    Regime.from_sizes({64: 0.3, 32: 0.7}, _DRY_BASE, "B+"),
    ("test_resnet",),
    100,
    rounds=1,
    loader_rounds=1,
)


def measure_epochs(network: str, work: Work, bench: Bench) -> Epochs:
    """Images a second of both regimes, with the loader and without, turn about."""
    regimes = {FIXED: Regime.fixed(work.base), work.sizes: work.mix}
    shapes = {shape for regime in regimes.values() for shape in shapes_of(regime)}
    # The largest first, which leaves memory in one piece.
    ordered = sorted(shapes, key=lambda shape: shape.images * shape.size_px**2, reverse=True)
    rates: dict[tuple[str, bool], list[float]] = {(name, loads): [] for name in regimes for loads in (True, False)}
    with tuned_kernels(), Beton.open(bench.images) as beton:
        data = describe(bench.images, beton)
        photographs = Photographs(beton, bench.device, bench.threads)
        step = TrainingStep(network, bench.device, ordered)
        noise = NoiseBatches(shapes, bench.device)
        step.preflight()
        photographs.warm_up()
        # The first round reads the file into memory.
        for number in range(work.rounds + 1):
            for name, loads in shuffled(rates, number):
                plan = photographs.plan(regimes[name], work.images, epoch=number)
                if loads:
                    batches: Iterable = photographs.serve(plan)
                else:
                    batches = (noise[shape] for shape in drawn_shapes(regimes[name], work.images, epoch=number))
                seconds = _train(step, batches)
                if number:
                    rates[name, loads].append(len(plan.samples) / seconds)
    pixels = {name: _pixels_an_image(regime, work.images) for name, regime in regimes.items()}
    return Epochs(
        network=network,
        images=work.images,
        threads=bench.threads,
        data=data,
        regimes=[
            EpochTime(
                regime=name,
                with_loader=Spread.of(rates[name, True]),
                without_loader=Spread.of(rates[name, False]),
            )
            for name in regimes
        ],
        speed_up=_speed_up(rates[work.sizes, True], rates[FIXED, True]),
        speed_up_without_loader=_speed_up(rates[work.sizes, False], rates[FIXED, False]),
        pixels=pixels[FIXED] / pixels[work.sizes],
    )


def measure_loader(work: Work, bench: Bench) -> LoaderRates:
    """Images a second that arrive on the device when nothing is trained, by number of threads."""
    rates: dict[int, list[float]] = {threads: [] for threads in thread_counts(bench.threads)}
    with Beton.open(bench.images) as beton:
        data = describe(bench.images, beton)
        Photographs(beton, bench.device, bench.threads).warm_up()
        for number in range(work.loader_rounds):
            for threads in shuffled(rates, number):
                photographs = Photographs(beton, bench.device, threads)
                plan = photographs.plan(work.mix, work.images, epoch=number)
                began = time.perf_counter()
                for _ in photographs.serve(plan):
                    pass
                _wait(bench.device)
                rates[threads].append(len(plan.samples) / (time.perf_counter() - began))
    return LoaderRates(
        regime=work.sizes,
        data=data,
        cores=bench.threads,
        rates=[LoaderRate(threads=threads, images_per_second=Spread.of(values)) for threads, values in rates.items()],
    )


def thread_counts(cores: int) -> list[int]:
    """Powers of two up to the number of cores, which comes last."""
    counts = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    return [*counts, cores]


def cores_needed(loader: LoaderRates, images_per_second: float) -> int | None:
    """The fewest threads timed that deliver so many images a second, as all larger numbers do; None where none does."""
    enough = None
    for row in reversed(loader.rates):
        if row.images_per_second.median < images_per_second:
            break
        enough = row.threads
    return enough


def _train(step: TrainingStep, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    began = time.perf_counter()
    for images, labels in batches:
        step(images, labels)
    _wait(step.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _speed_up(mixed: list[float], fixed: list[float]) -> Spread:
    return Spread.of([mine / other for mine, other in zip(mixed, fixed, strict=True)])


def _pixels_an_image(regime: Regime, images: int) -> float:
    """Of the whole batches that are timed."""
    plan = plan_epoch(regime, images, 0, 0)
    return sum(step.size_px**2 * step.num_images for step in plan) / len(plan.samples)


def units(bench: Bench) -> list[Unit]:
    """One for each network, and the loader alone."""
    work = DRY if bench.dry_run else FULL
    found = [Unit(network, 110, partial(measure_epochs, network, work, bench)) for network in work.networks]
    return [*found, Unit(_LOADER, 60, partial(measure_loader, work, bench))]


def table(found: UnitFigures) -> PartTable:
    """A row for each network and regime, and one for each number of threads of the loader alone."""
    rows, notes = [], []
    for epochs in found.values():
        if not isinstance(epochs, Epochs):
            continue
        rows += [
            [
                f"{epochs.network}, {row.regime}",
                str(epochs.threads),
                rate(row.with_loader),
                rate(row.without_loader),
                f"{_IMAGENET_IMAGES / row.with_loader.median:,.0f}",
            ]
            for row in epochs.regimes
        ]
        mixed = epochs.regimes[-1]
        notes.append(
            f"An epoch of {mixed.regime} is {times(epochs.speed_up)} as fast as one of the fixed size from JPEGs, "
            f"{times(epochs.speed_up_without_loader)} with the loader taken out; it has 1/{epochs.pixels:.2f} of its "
            f"pixels. {epochs.images:,} images a round, of {_images_words(epochs)}."
        )
    loader = found.get(_LOADER)
    if isinstance(loader, LoaderRates):
        rows += [
            [f"loader alone, {loader.regime}", str(row.threads), rate(row.images_per_second), "", ""]
            for row in loader.rates
        ]
        notes += [_needs_words(epochs, loader) for epochs in found.values() if isinstance(epochs, Epochs)]
    head = ["images/s", "threads", "from JPEGs", "without the loader", "1,281,167 images from JPEGs, s"]
    return PartTable(head, rows, notes)


def verdicts(found: UnitFigures) -> list[Verdict]:
    """On the speed-up, and on the loader with so many cores."""
    speed_target = f"S(144) B+ epoch at least {SPEED_UP_TARGET:.1f}x as fast as fixed 224 px: {_TARGET_NETWORK}"
    loader_target = f"loader not the limit at S(144) with {CORES_TARGET} cores: {_TARGET_NETWORK}"
    epochs, loader = found.get(_TARGET_NETWORK), found.get(_LOADER)
    if not isinstance(epochs, Epochs):
        return [Verdict(speed_target), Verdict(loader_target)]
    speed = Verdict(speed_target, times(epochs.speed_up), epochs.speed_up.median >= SPEED_UP_TARGET)
    if not isinstance(loader, LoaderRates):
        return [speed, Verdict(loader_target)]
    needed = epochs.regimes[-1].without_loader.median
    at_target = [row for row in loader.rates if row.threads == CORES_TARGET]
    if not at_target:
        return [speed, Verdict(loader_target, f"{loader.cores} cores here")]
    delivered = at_target[0].images_per_second.median
    words = f"delivers {delivered:,.0f} images/s, {needed:,.0f} are trained on"
    return [speed, Verdict(loader_target, words, delivered >= needed)]


def _needs_words(epochs: Epochs, loader: LoaderRates) -> str:
    needed = epochs.regimes[-1].without_loader.median
    threads = cores_needed(loader, needed)
    found = f"from {threads} threads on" if threads else f"not with {loader.rates[-1].threads} threads"
    return f"The loader alone delivers the {needed:,.0f} images/s that {epochs.network} takes {found}."


def _images_words(epochs: Epochs) -> str:
    data = epochs.data
    levels = "" if data.levels == 1 else f" in {data.levels} stored resolutions"
    return f"{data.images:,} different ones, {data.mean_width:.0f} x {data.mean_height:.0f} px on average{levels}"


PART = Part(
    "epoch",
    "an S(144) B+ epoch against a fixed one, and the loader by number of threads",
    units,
    table,
    verdicts,
    frozenset({"images"}),
)
