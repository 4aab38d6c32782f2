"""Similarity of gradients between image sizes and between images, and their variance; needs torch alone.

Paper: MixSize (ICLR 2021 submission), table 2: Spearman's rank correlation and the variance of the whole network's
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixsize.algorithms.batchnorm.layers import normalise_by_batch
from mixsize.algorithms.batchnorm.pooling import Pool
from mixsize.algorithms.execution.preservation import device_of, preserved

#: Outputs ``(N, K)`` and classes ``(N,)`` -> the batch's mean loss, 0-dimensional.
Loss = Callable[[Tensor, Tensor], Tensor]


class Correlation(NamedTuple):
    """Spearman's rank correlation over several pairs of gradients.

    Attributes:
        mean: over the pairs; NaN if the components of a gradient are all equal.
        std: standard deviation over the pairs; NaN for a single pair.
        pairs: number of pairs.
    """

    mean: float
    std: float
    pairs: int


@dataclass(frozen=True)
class GradientComparison:
    """The paper's table 2 for one network.

    Attributes:
        parameters: components of a gradient.
        batches: number of batches at each size.
        between_sizes: (larger size, smaller size) -> correlation of the gradients of the same images at both, one pair
            for each batch.
        between_images: size -> correlation of the gradients of consecutive batches.
        variance: size -> variance of a gradient's component over the batches (divided by batches - 1), mean over all
            components.
    """

    parameters: int
    batches: int
    between_sizes: dict[tuple[int, int], Correlation]
    between_images: dict[int, Correlation]
    variance: dict[int, float]


def compare_gradients(
    network: nn.Module,
    batches: Iterable[Mapping[int, tuple[Tensor, Tensor]]],
    sizes_px: Sequence[int],
    loss: Loss = F.cross_entropy,
) -> GradientComparison:
    """Compare the gradients of the same images at several sizes, and of different images at the same size.

    Batch norm normalises by each batch's own statistics, as in a training step; all other layers are in evaluation
    mode, so that no gradient depends on a draw of dropout or stochastic depth. The network is the same afterwards, bit
    for bit, with running statistics, training modes and ``.grad``. Sums are float64.

    Takes 32 bytes per parameter for each size, and about 50 bytes per parameter to rank a gradient.

    Args:
        network: takes images ``(N, C, S, S)``; parameters that need no gradient are left out.
        batches: for each batch a mapping size -> (images, classes), the same images in the same order at every size,
            and no image in two batches. At least two batches.
        sizes_px: the sizes that each batch has, in pixels.
        loss: a batch's mean loss.

    Raises:
        ValueError: fewer than two batches, no size or one twice, no parameter that takes a gradient, a gradient that is
            not finite.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> images = [torch.rand(8, 3, 16, 16) for _ in range(3)]
        >>> labels = torch.arange(8) % 4
        >>> batches = [{16: (batch, labels), 8: (resize_batch(batch, 8), labels)} for batch in images]
        >>> compare_gradients(network, batches, sizes_px=[16, 8]).between_sizes[16, 8].pairs
        3
    """
    if not sizes_px or len(set(sizes_px)) < len(sizes_px):
        raise ValueError(f"sizes_px is {list(sizes_px)}; it must name at least one size, and each once")
    sizes = sorted(sizes_px, reverse=True)
    between_sizes: dict[tuple[int, int], list[float]] = {pair: [] for pair in combinations(sizes, 2)}
    between_images: dict[int, list[float]] = {size: [] for size in sizes}
    components = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    pools = {size: Pool(components, device_of(network)) for size in sizes}
    previous: dict[int, Tensor] = {}
    count = 0
    with preserved(network):
        normalise_by_batch(network)
        for count, batch in enumerate(batches, start=1):
            ranked: dict[int, Tensor] = {}
            for size in sizes:
                gradient = gradient_vector(network, *batch[size], loss)
                if not gradient.isfinite().all():
                    raise ValueError(f"the gradient of batch {count} at {size} px is not finite")
                pools[size].add(1, gradient, torch.zeros_like(gradient))
                ranked[size] = _standardised_ranks(gradient)
                if size in previous:
                    between_images[size].append(_dot(previous.pop(size), ranked[size]))
            for larger, smaller in between_sizes:
                between_sizes[larger, smaller].append(_dot(ranked[larger], ranked[smaller]))
            previous = ranked
    if count < 2:
        raise ValueError(f"there were {count} batches; different images need at least 2")
    return GradientComparison(
        components,
        count,
        {pair: _correlation(values) for pair, values in between_sizes.items()},
        {size: _correlation(values) for size, values in between_images.items()},
        {size: float(pools[size].squares.mean()) / (count - 1) for size in sizes},
    )


def gradient_vector(network: nn.Module, images: Tensor, labels: Tensor, loss: Loss = F.cross_entropy) -> Tensor:
    """The gradient of a batch's loss with respect to all parameters, concatenated, shape ``(P,)``.

    Zero for a parameter that the loss does not depend on. ``.grad`` of the parameters stays; batch norm in training
    mode updates its running statistics.

    Args:
        network: runs in its current training modes; parameters that need no gradient are left out.
        images: shape ``(N, C, S, S)``.
        labels: classes, shape ``(N,)``.
        loss: takes the network's outputs and the labels.

    Raises:
        ValueError: no parameter takes a gradient.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
        >>> gradient_vector(network, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])).shape
        torch.Size([65])
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the network takes a gradient")
    with torch.enable_grad():
        value = loss(network(images), labels)
    gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation; ties share the mean of their ranks. NaN if all values of either vector are equal.

    Takes O(P log P) time and O(P) memory.

    Args:
        first: finite numbers, shape ``(P,)``.
        second: finite numbers, shape ``(P,)``.

    Raises:
        ValueError: vectors of different lengths, or with fewer than two numbers.

    Example:
        >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 9.0, 7.0])), 3)
        0.5
    """
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"shapes are {tuple(first.shape)} and {tuple(second.shape)}; both must be (P,) with P of at least 2"
        )
    return _dot(_standardised_ranks(first), _standardised_ranks(second))


def _standardised_ranks(values: Tensor) -> Tensor:
    """Ranks minus their mean, scaled to length 1, float64: the dot product of two is their rank correlation."""
    ordered, order = values.sort()
    _, counts = torch.unique_consecutive(ordered, return_counts=True)
    # Values k + 1 to k + c in order, all equal, share the rank k + (c + 1) / 2.
    shared = counts.cumsum(0).double() - (counts - 1) / 2
    ranks = torch.empty(len(values), dtype=torch.float64, device=values.device)
    ranks[order] = shared.repeat_interleave(counts)
    ranks -= (len(values) + 1) / 2
    return ranks / ranks.norm()


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first, second))


def _correlation(values: Sequence[float]) -> Correlation:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Correlation(float(np.mean(values)), std, len(values))
