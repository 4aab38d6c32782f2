"""A plain PyTorch training step, and batches for it that lie on the device already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from mixsize.algorithms.execution.engines import Engine, training_passes
from mixsize.algorithms.execution.visit import visit_shapes
from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.regime.shapes import InputShape, shapes_of
from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother
from mixsize.bench.gpu.clock import LapClock
from mixsize.recipes.config import schema
from mixsize.recipes.models.network import create_network

CLASSES = 1000

_Case = TypeVar("_Case")
_SEED = 0


class TrainingStep:
    """Forward pass, loss, backward pass and SGD, in bfloat16 autocast and channels-last memory.

    Args:
        network: timm name.
        device: where it trains.
        engine: how the passes run.
        shapes: those that will be trained on.
        classes: outputs of the network.
        lr: learning rate; so low by default that noise does not blow the weights up.
        seed: of the weights.
    """

    def __init__(
        self,
        network: str,
        device: torch.device,
        shapes: Sequence[InputShape],
        engine: Engine = "eager",
        *,
        classes: int = CLASSES,
        lr: float = 1e-3,
        seed: int = _SEED,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = create_network(schema.Model(name=network), classes)
        self.device = device
        self.shapes = tuple(shapes)
        self.network = module.to(device, memory_format=torch.channels_last).train()
        self.parameters = list(self.network.parameters())
        self.smoother = GradientSmoother()
        self._passes = training_passes(self.network, engine, len(self.shapes))
        self._optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=0.9, weight_decay=1e-4)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, smooth: bool = False) -> torch.Tensor:
        """One step; returns the loss, on the device."""
        loss = self.backward(images, labels)
        if smooth:
            self.smoother.smooth(self.parameters)
        self._optimizer.step()
        # Graphs write gradients afresh.
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def backward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Forward pass, loss and backward pass, which leave the parameters as they are; returns the loss."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = cross_entropy(self._passes(images), labels)
        loss.backward()
        return loss.detach()

    def preflight(self) -> float:
        """Visit the shapes; returns the seconds that it took."""
        return visit_shapes(self.backward, self.network, self.shapes, channels_last=True)


class NoiseBatches:
    """One batch of noise for each shape, on the device.

    Args:
        shapes: those that will be asked for.
        device: where they lie.
        classes: that labels are drawn from.
    """

    def __init__(self, shapes: Iterable[InputShape], device: torch.device, classes: int = CLASSES) -> None:
        generator = torch.Generator(device).manual_seed(_SEED)
        self._batches = {}
        for shape in shapes:
            size = (shape.images, 3, shape.size_px, shape.size_px)
            images = torch.randn(size, generator=generator, device=device)
            labels = torch.randint(classes, (shape.images,), generator=generator, device=device)
            self._batches[shape] = images.contiguous(memory_format=torch.channels_last), labels

    def __getitem__(self, shape: InputShape) -> tuple[torch.Tensor, torch.Tensor]:
        return self._batches[shape]


def step_seconds(step: TrainingStep, batches: NoiseBatches, shapes: Sequence[InputShape]) -> list[float]:
    """Train on a sequence of shapes; seconds of each step but the first, before which another shape may have been."""
    clock = LapClock(step.device)
    for shape in shapes:
        step(*batches[shape])
        clock.mark()
    return clock.laps()


def seconds_alone(step: TrainingStep, batches: NoiseBatches, shape: InputShape, steps: int) -> float:
    """Mean seconds of so many steps of one shape, behind one that is not counted."""
    return fmean(step_seconds(step, batches, [shape] * (steps + 1)))


def drawn_shapes(regime: Regime, images: int, epoch: int) -> list[InputShape]:
    """The shapes of an epoch of so many images, in the order in which a regime draws them."""
    plan = plan_epoch(regime, images, _SEED, epoch)
    return [InputShape(step.num_images, step.size_px) for step in plan]


def shape_shares(regime: Regime) -> dict[InputShape, float]:
    """Shape -> fraction of the steps, the one of most pixels first."""
    shares = {
        InputShape(choice.batch_size * choice.duplicates, choice.size_px): share
        for choice, share in zip(regime.choices, regime.step_shares, strict=True)
    }
    return {shape: shares[shape] for shape in shapes_of(regime)}


def shuffled(cases: Iterable[_Case], round_number: int) -> list[_Case]:
    """Cases in an order of the round's own, so that none always follows the same one."""
    cases = list(cases)
    return [cases[i] for i in np.random.default_rng((_SEED, round_number)).permutation(len(cases))]


@contextmanager
def tuned_kernels() -> Iterator[None]:
    """cuDNN times its convolution kernels at each new shape, and keeps to the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
