"""Accuracy over image sizes, with a network's own batch-norm statistics and with calibrated ones; needs torch alone.

Paper: MixSize (ICLR 2021 submission), section 4.2 and figures 1 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.algorithms.batchnorm.pooling import widest_float
from mixsize.algorithms.execution.preservation import device_of, preserved


@dataclass(frozen=True)
class Score:
    """Accuracy and loss of a network on a set of images.

    Attributes:
        images: number of images over all ranks.
        hits: images whose class has the highest output.
        hits_in_five: images whose class is among the five highest outputs; None for five classes or fewer.
        loss: mean cross-entropy, in nats.
        class_images: number of images of each class; empty where classes were not counted.
        class_hits: those of them whose class has the highest output.

    Example:
        >>> score = Score(images=200, hits=150, hits_in_five=190, loss=0.8)
        >>> score.top1, score.top5
        (0.75, 0.95)
    """

    images: int
    hits: int
    hits_in_five: int | None
    loss: float
    class_images: tuple[int, ...] = ()
    class_hits: tuple[int, ...] = ()

    @property
    def top1(self) -> float:
        """``hits`` as a fraction of the images."""
        return self.hits / self.images

    @property
    def top5(self) -> float | None:
        """``hits_in_five`` as a fraction of the images."""
        return None if self.hits_in_five is None else self.hits_in_five / self.images


@dataclass(frozen=True)
class SizeScore:
    """Accuracy and loss of a network at one image size.

    Attributes:
        size_px: image side S in pixels.
        own: with the network's own batch-norm statistics.
        calibrated: with statistics measured at this size; None without calibration.
        calibration_images: images that they were measured on, over all ranks; 0 without calibration.

    Example:
        >>> SizeScore(224, own=Score(200, 150, 190, 0.8), calibrated=None, calibration_images=0).own.top1
        0.75
    """

    size_px: int
    own: Score
    calibrated: Score | None
    calibration_images: int


def evaluate(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    num_classes: int | None = None,
    across_ranks: bool = True,
) -> Score:
    """Count the images that a network classifies correctly.

    The network and the random states are as before afterwards, training modes included. Wrap the call in
    ``torch.autocast`` to choose the precision; the loss is always computed in float32.

    Args:
        network: takes images ``(N, C, H, W)`` and gives one output for each class, ``(N, K)``.
        batches: tuples or lists that begin with images and their classes ``(N,)``, whole numbers from 0 to K - 1. They
            are moved to the network's device.
        num_classes: count by class too, for this number of classes K.
        across_ranks: count over all ranks of ``torch.distributed``, if it is initialised. Every rank must then call
            this function with its own part of the images. Ranks may have different numbers of batches; all get the
            same score.

    Raises:
        ValueError: no images, a batch of another kind, or outputs of another shape.

    Example:
        >>> network = torch.nn.Flatten()
        >>> evaluate(network, [(torch.eye(3).reshape(3, 3, 1, 1), torch.tensor([0, 1, 0]))]).hits
        2
    """
    device = device_of(network)
    tally = _Tally(device, num_classes or 0)
    with preserved(network), torch.no_grad():
        network.eval()
        for batch in batches:
            images, labels = _parts_of(batch)
            tally.add(network(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True))
    return tally.score(across_ranks)


def evaluate_sizes(
    network: nn.Module,
    loader_for: Callable[[int], Iterable[Any]],
    sizes_px: Sequence[int],
    *,
    calibration_loader_for: Callable[[int], Iterable[Any]] | None = None,
    calibration_batches: int = 200,
    num_classes: int | None = None,
    across_ranks: bool = True,
) -> Iterator[SizeScore]:
    """Evaluate a network at several image sizes, with and without batch norm calibrated at each.

    The weights are the same throughout, and the network has its own statistics back, bit for bit, before the next size.

    Args:
        network: see :func:`evaluate`.
        loader_for: takes an image side in pixels and returns the evaluation batches; called twice for each size with
            calibration.
        sizes_px: image sides in pixels, in the order wanted.
        calibration_loader_for: takes an image side in pixels and returns batches of training images, augmented as in
            training. The first ``calibration_batches`` must be a fair sample. None for no calibration.
        calibration_batches: upper bound on the forward passes for each size, on each rank; the paper uses 200.
        num_classes: see :func:`evaluate`.
        across_ranks: see :func:`evaluate`; calibration then pools over ranks too.

    Yields:
        one :class:`SizeScore` for each size, as soon as it is computed.

    Raises:
        ValueError: at once: a size or a number of batches out of range, or calibration of a network without batch norm.
            During the evaluation: see :func:`evaluate` and :func:`~mixsize.algorithms.calibrate_batch_norm`.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> def loader_for(size_px):
        ...     return [(torch.rand(4, 3, size_px, size_px), torch.tensor([0, 1, 2, 0]))]
        >>> [(row.size_px, row.own.images) for row in evaluate_sizes(network, loader_for, [16, 24])]
        [(16, 4), (24, 4)]
    """
    if not sizes_px:
        raise ValueError("sizes_px is empty")
    for size_px in sizes_px:
        if size_px < 1:
            raise ValueError(f"sizes_px holds {size_px}; a size must be at least 1")
    if calibration_batches < 1:
        raise ValueError(f"calibration_batches is {calibration_batches}; it must be at least 1")
    if calibration_loader_for is not None and not batch_norm_layers(network):
        raise ValueError(f"{type(network).__name__} has no batch-norm layer that keeps running statistics to calibrate")

    def score_at(size_px: int) -> SizeScore:
        own = evaluate(network, loader_for(size_px), num_classes=num_classes, across_ranks=across_ranks)
        if calibration_loader_for is None:
            return SizeScore(size_px, own, None, 0)
        bank = StatisticsBank()
        measured = bank.calibrate(
            network,
            size_px,
            calibration_loader_for(size_px),
            max_batches=calibration_batches,
            across_ranks=across_ranks,
        )
        with bank.use(network, size_px):
            calibrated = evaluate(network, loader_for(size_px), num_classes=num_classes, across_ranks=across_ranks)
        return SizeScore(size_px, own, calibrated, measured.samples)

    return map(score_at, sizes_px)


class _Tally:
    """Sums that stay on the device until the score is read."""

    def __init__(self, device: torch.device, num_classes: int) -> None:
        #: Images, hits, hits in five, and images with more than five classes.
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        #: Images and hits of each class.
        self._by_class = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=widest_float(device), device=device)

    def add(self, outputs: Any, labels: Tensor) -> None:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(labels):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"the network gives {found} for {len(labels)} labels; expected ({len(labels)}, classes)")
        outputs = outputs.float()
        self._counts[0] += len(labels)
        hits = outputs.argmax(1) == labels
        self._counts[1] += hits.sum()
        if self._by_class.numel():
            self._by_class.index_add_(1, labels, torch.stack([torch.ones_like(hits), hits]).long())
        if outputs.shape[1] > 5:
            self._counts[2] += (outputs.topk(5, dim=1).indices == labels[:, None]).sum()
            self._counts[3] += len(labels)
        self._loss += F.cross_entropy(outputs, labels, reduction="none").to(self._loss.dtype).sum()

    def score(self, across_ranks: bool) -> Score:
        if across_ranks and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._counts)
            torch.distributed.all_reduce(self._by_class)
            torch.distributed.all_reduce(self._loss)
        images, hits, hits_in_five, looked_in = self._counts.tolist()
        if images == 0:
            raise ValueError("there was no image to evaluate on")
        return Score(
            images,
            hits,
            hits_in_five if looked_in else None,
            self._loss.item() / images,
            *map(tuple, self._by_class.tolist()),
        )


def _parts_of(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, Sequence) or len(batch) < 2 or not all(isinstance(part, Tensor) for part in batch[:2]):
        raise ValueError(
            f"a batch is a {type(batch).__name__}; it must be a tuple or list that begins with images and labels"
        )
    return batch[0], batch[1]
