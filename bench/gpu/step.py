"""A plain PyTorch training step, batches of noise for it, and its timers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from mixsize.algorithms.execution.engines import Engine, training_passes
from mixsize.algorithms.execution.visit import visit_shapes
from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother
from mixsize.recipes.config import schema
from mixsize.recipes.models.network import create_network

CLASSES = 1000
SEED = 0
#: A context in which cuDNN times its convolution kernels at each new shape and keeps the fastest.
tuned_kernels = partial(torch.backends.cudnn.flags, enabled=True, benchmark=True)

Batch = tuple[torch.Tensor, torch.Tensor]
_Item = TypeVar("_Item")


class TrainingStep:
    """Forward pass, loss, backward pass and SGD, in bfloat16 autocast and channels-last memory.

    Args:
        network: timm name.
        device: where it trains.
        shapes: all shapes that it will train on, the largest first.
        engine: as in ``execution.network``.
    """

    def __init__(
        self,
        network: str,
        device: torch.device,
        shapes: Sequence[InputShape],
        engine: Engine = "eager",
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module = create_network(schema.Model.model_validate({"name": network}), CLASSES)
        self.device = device
        self.shapes = tuple(shapes)
        # PyTorch's stub lacks the argument.
        self.network = module.to(device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        self.parameters = list(self.network.parameters())
        self._smoother = GradientSmoother()
        self._passes = training_passes(self.network, engine, len(self.shapes))
        # So low a rate that noise does not blow the weights up.
        self._optimizer = torch.optim.SGD(self.parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, smooth: bool = False) -> torch.Tensor:
        """Train on a batch; returns the loss, on the device."""
        loss = self.backward(images, labels)
        if smooth:
            self._smoother.smooth(self.parameters)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def backward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Forward pass, loss and backward pass; the parameters stay as they are."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = cross_entropy(self._passes(images), labels)
        loss.backward()
        return loss.detach()

    def preflight(self) -> None:
        """Visit every shape once: kernels are tuned, compiled or recorded, and memory is reserved."""
        visit_shapes(self.backward, self.network, self.shapes, channels_last=True)


def noise_batches(shapes: Iterable[InputShape], device: torch.device) -> dict[InputShape, Batch]:
    """One batch of noise for each shape, on the device."""
    generator = torch.Generator(device).manual_seed(SEED)
    batches = {}
    for shape in shapes:
        size = (shape.images, 3, shape.size_px, shape.size_px)
        images = torch.randn(size, generator=generator, device=device)
        labels = torch.randint(CLASSES, (shape.images,), generator=generator, device=device)
        batches[shape] = images.contiguous(memory_format=torch.channels_last), labels
    return batches


def time_each(works: Iterable[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each piece of work, done one after the other: by CUDA events, which do not make the host wait."""
    marks = [_mark(device)]
    for work in works:
        work()
        marks.append(_mark(device))
    synchronize(device)
    if device.type == "cuda":
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
    return [after - before for before, after in pairwise(marks)]


def step_seconds(
    step: TrainingStep, batches: dict[InputShape, Batch], shapes: Sequence[InputShape], skip: int = 1
) -> list[float]:
    """Seconds of each step over a sequence of shapes, without the first ``skip``."""
    return time_each((partial(step, *batches[shape]) for shape in shapes), step.device)[skip:]


def mean_step_seconds(step: TrainingStep, batches: dict[InputShape, Batch], shape: InputShape, steps: int) -> float:
    """Mean seconds of ``steps`` steps of one shape, after one that is not counted."""
    return fmean(step_seconds(step, batches, [shape] * (steps + 1)))


def drawn_shapes(regime: Regime, images: int, epoch: int) -> list[InputShape]:
    """The shapes of an epoch's steps, in the order in which the regime draws them."""
    return [InputShape(step.num_images, step.size_px) for step in plan_epoch(regime, images, SEED, epoch)]


def shuffled(items: Iterable[_Item], round_number: int) -> list[_Item]:
    """The items in an order that differs between rounds, so that none always follows the same one."""
    items = list(items)
    return [items[i] for i in np.random.default_rng((SEED, round_number)).permutation(len(items))]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
