"""Accuracy over image sizes, by a network's own batch-norm statistics and by calibrated ones; needs torch alone.

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
    """How a network does on a set of images.

    Attributes:
        images: how many, each counted once, over all ranks.
        hits: of them, those whose own class has the highest output.
        hits_in_five: those whose own class is among the five highest; None where there are no more than five classes.
        loss: mean cross-entropy, in nats.
    """

    images: int
    hits: int
    hits_in_five: int | None
    loss: float

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
    """How a network does at one image size.

    Attributes:
        size_px: image side S in pixels.
        own: with the batch-norm statistics that the network came with.
        calibrated: with statistics measured at this size; None where that was not asked for.
        calibration_images: images that those were measured on, over all ranks; 0 where that was not asked for.
    """

    size_px: int
    own: Score
    calibrated: Score | None
    calibration_images: int


def evaluate(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    across_ranks: bool = True,
) -> Score:
    """Count how many images a network classifies correctly.

    The network is as it was afterwards, training flags included. Precision is the caller's: wrap the call in
    ``torch.autocast``; the loss is computed in float32 whatever the network's outputs are.

    Args:
        network: takes images ``(N, C, H, W)`` and gives one output for each class, ``(N, K)``.
        batches: tuples or lists that begin with images and their classes ``(N,)``, whole numbers from 0 to K - 1.
        across_ranks: count over all ranks of ``torch.distributed``, where it is initialised. Every rank must then call
            this, each with its own part of the images; their numbers of batches may differ. All get the same score.

    Raises:
        ValueError: no image at all, a batch of another kind, or outputs of another shape.

    Example:
        >>> evaluate(network, EvalLoader("val.beton", size_px=288, batch_size=256)).top1
        0.7927
    """
    device = device_of(network)
    tally = _Tally(device)
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
    across_ranks: bool = True,
) -> Iterator[SizeScore]:
    """Evaluate a network at several image sizes, with and without batch norm calibrated at each.

    The weights are the same throughout, and the network has its own statistics back, bit for bit, before the next size.

    Args:
        network: see :func:`evaluate`.
        loader_for: takes an image side in pixels and gives the evaluation batches at it; called twice for each size
            where batch norm is calibrated.
        sizes_px: image sides in pixels, in the order wanted.
        calibration_loader_for: takes an image side in pixels and gives batches of training images at it, in an order
            whose first ``calibration_batches`` are a fair sample; None to leave calibration out.
        calibration_batches: forward passes that calibrate a size, on each rank, at most; the paper uses 200.
        across_ranks: see :func:`evaluate`; calibration pools over ranks likewise.

    Yields:
        one :class:`SizeScore` for each size, as soon as it is known.

    Raises:
        ValueError: at once, for sizes or a number of batches that cannot be, or calibration of a network without batch
            norm; while it runs, see :func:`evaluate` and :func:`~mixsize.algorithms.calibrate_batch_norm`.

    Example:
        >>> for row in evaluate_sizes(network, test_at, [160, 224, 288], calibration_loader_for=train_at):
        ...     print(row.size_px, row.own.top1, row.calibrated.top1)
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
        own = evaluate(network, loader_for(size_px), across_ranks=across_ranks)
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
            calibrated = evaluate(network, loader_for(size_px), across_ranks=across_ranks)
        return SizeScore(size_px, own, calibrated, measured.samples)

    return map(score_at, sizes_px)


class _Tally:
    """Sums that stay on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        #: Images, hits, hits in five, and the images that these were looked for in.
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=widest_float(device), device=device)

    def add(self, outputs: Any, labels: Tensor) -> None:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(labels):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"the network gives {found} for {len(labels)} labels; expected ({len(labels)}, classes)")
        outputs = outputs.float()
        self._counts[0] += len(labels)
        self._counts[1] += (outputs.argmax(1) == labels).sum()
        if outputs.shape[1] > 5:
            self._counts[2] += (outputs.topk(5, dim=1).indices == labels[:, None]).sum()
            self._counts[3] += len(labels)
        self._loss += F.cross_entropy(outputs, labels, reduction="none").to(self._loss.dtype).sum()

    def score(self, across_ranks: bool) -> Score:
        if across_ranks and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._counts)
            torch.distributed.all_reduce(self._loss)
        images, hits, hits_in_five, looked_in = self._counts.tolist()
        if images == 0:
            raise ValueError("there was no image to evaluate on")
        return Score(images, hits, hits_in_five if looked_in else None, self._loss.item() / images)


def _parts_of(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, Sequence) or len(batch) < 2 or not all(isinstance(part, Tensor) for part in batch[:2]):
        raise ValueError(f"a batch must be a tuple or list of images and labels, this one is a {type(batch).__name__}")
    return batch[0], batch[1]
