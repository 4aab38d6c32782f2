"""The cost of the algorithms: a training step with all against one with none, and calibration against its passes.

The sides of a comparison take turns on the same batches, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from composer import Callback, Trainer
from composer.core import State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from tqdm import tqdm

from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm
from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.algorithms.regime.plan import EpochPlan, Step
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.algorithms.training.epoch_schedule import EpochSchedule
from mixsize.algorithms.training.schedules import constant
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.pipeline.planned import PlannedDataset, PlannedLoader

#: Largest allowed ratio of a step with every algorithm to one with none.
STEP_TARGET = 1.02
#: Largest allowed ratio of calibrating a size to its forward passes.
CALIBRATION_TARGET = 1.1


class _Noise(PlannedDataset):
    """Serves one batch of noise at every step, so that no loading is timed."""

    def __init__(self, size_px: int, batch_size: int, device: torch.device) -> None:
        super().__init__(Regime.fixed(Base(size_px, batch_size)), 0, 1_000_000, "noise", 0, 1)
        generator = torch.Generator(device).manual_seed(0)
        images = torch.randn(batch_size, 3, size_px, size_px, generator=generator, device=device)
        self._images = images.contiguous(memory_format=_layout(device))
        self._labels = torch.arange(batch_size, device=device)

    def serve(self, plan: EpochPlan, first_step: int) -> Iterator[tuple[Step, torch.Tensor, torch.Tensor]]:
        for index in range(first_step, len(plan)):
            yield plan[index], self._images, self._labels


class _StepClock(Callback):
    """Seconds from asking for a batch to the end of its step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._start = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seconds.append(time.perf_counter() - self._start)


class TrainerPair:
    """Two Trainers of the same steps on one batch of noise: ``all`` has every algorithm, ``none`` has none.

    Args:
        model: timm network.
        size_px: image side S in pixels.
        batch_size: images of a step.
        device: a GPU trains in bfloat16 autocast and channels-last memory, the CPU in float32.
    """

    def __init__(self, model: str, size_px: int, batch_size: int, device: torch.device) -> None:
        calibrate = BNCalibrate(lambda size: [], sizes={})
        attached = {"all": [MixSizeSampling(), EpochSchedule(constant()), GradSmoothing(), calibrate], "none": []}
        on_gpu = device.type == "cuda"
        self.trainers: dict[str, Trainer] = {}
        self._clocks = {name: _StepClock() for name in attached}
        for name, algorithms in attached.items():
            torch.manual_seed(0)
            network = timm.create_model(model, num_classes=1000)
            network.to(memory_format=_layout(device))  # pyright: ignore[reportCallIssue]
            classifier = ComposerClassifier(network, num_classes=1000)
            self.trainers[name] = Trainer(
                model=classifier,
                train_dataloader=PlannedLoader(_Noise(size_px, batch_size, device)).data_spec(),
                optimizers=torch.optim.SGD(classifier.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4),
                algorithms=algorithms,
                callbacks=[self._clocks[name]],
                device="gpu" if on_gpu else "cpu",
                precision="amp_bf16" if on_gpu else "fp32",
                progress_bar=False,
                auto_log_hparams=False,
            )

    def measure(self, pairs: int) -> dict[str, list[float]]:
        """Seconds of single steps. Composer reads each step's loss, which waits for the device."""
        works = {name: partial(trainer.fit, duration="1ba") for name, trainer in self.trainers.items()}
        _take_turns(works, pairs, "steps")
        # The first pair warms up.
        return {name: clock.seconds[1:] for name, clock in self._clocks.items()}


def measure_calibration(model: str, size_px: int, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds to calibrate on four batches, and of forward passes over the same batches alone.

    Passes are run with batch norm in training mode, as calibration needs, and in evaluation mode.
    """
    network = timm.create_model(model, num_classes=1000).eval()
    batches = [torch.randn(batch_size, 3, size_px, size_px) for _ in range(4)]

    def passes(training: bool) -> None:
        for layer in batch_norm_layers(network).values():
            layer.train(training)
        with torch.no_grad():
            for images in batches:
                network(images)

    works = {
        "calibration": lambda: calibrate_batch_norm(network, batches),
        "training passes": lambda: passes(True),
        "evaluation passes": lambda: passes(False),
    }
    return _take_turns(works, rounds, "calibration")


def compare(ours: Sequence[float], base: Sequence[float], target: float | None) -> dict[str, Any]:
    """Ratio of each pair: median, quartiles, number."""
    ratios = [mine / other for mine, other in zip(ours, base, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": median,
        "quartiles": [low, high],
        "n": len(ratios),
        "target": target,
        "seconds": statistics.median(ours),
        "base_seconds": statistics.median(base),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench overhead``."""
    parser.add_argument("--model", default="resnet50", help="timm network")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="image side")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images in a step")
    parser.add_argument("--pairs", type=int, default=40, help="measured pairs, after one that warms up")
    parser.add_argument("--out", type=Path, help="result file; by default bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; the returned function measures."""
    if not timm.is_model(args.model):
        raise ValueError(f"--model: unknown timm model {args.model!r}")
    for name, least in (("size", 1), ("batch", 1), ("pairs", 2)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least}")

    def measured() -> int:
        steps = TrainerPair(args.model, args.size, args.batch, torch.device("cpu")).measure(args.pairs)
        found = measure_calibration(args.model, args.size, args.batch, max(2, args.pairs // 2))
        result = {
            "setting": {"model": args.model, "size_px": args.size, "batch_size": args.batch},
            "comparisons": {
                "step, all algorithms / none": compare(steps["all"], steps["none"], STEP_TARGET),
                "calibration / its passes": compare(found["calibration"], found["training passes"], CALIBRATION_TARGET),
                "calibration / evaluation passes": compare(found["calibration"], found["evaluation passes"], None),
            },
        }
        print_table(plain_console(), *table(result), notes=[note(result)])
        keep_result(args.out, "overhead", result)
        return 0

    return measured


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the ratio of each comparison."""
    rows = []
    for name, row in result["comparisons"].items():
        low, high = row["quartiles"]
        target = f"at most {row['target']}" if row["target"] else ""
        rows.append([name, f"{row['ratio']:.3f}", f"{low:.3f}-{high:.3f}", str(row["n"]), target])
    return ["what", "ratio", "quartiles", "n", "target"], rows


def note(result: dict[str, Any]) -> str:
    """The setting of a result."""
    setting = result["setting"]
    shape = f"{setting['batch_size']} x {setting['size_px']} px"
    return f"{setting['model']}, {shape}, interleaved; median and quartiles of n."


def _take_turns(works: Mapping[str, Callable[[], object]], rounds: int, words: str) -> dict[str, list[float]]:
    """Seconds of each work in each round, after a round that warms up. Rounds alternate in their order."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in tqdm(range(rounds + 1), desc=words, unit="round", file=sys.stderr):
        for name in works if number % 2 else reversed(list(works)):
            start = time.perf_counter()
            works[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _layout(device: torch.device) -> torch.memory_format:
    """Channels-last on a GPU, as the recipes for one have it."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format
