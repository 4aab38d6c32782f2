"""Mean and variance of values per channel, pooled over unequal batches and over ranks.

Source: Chan, Golub and LeVeque (1979), whose update never takes the difference of two large squares.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class LayerStatistics(NamedTuple):
    """Pooled statistics of one layer, float32 on the CPU.

    Attributes:
        mean: of each channel, shape ``(C,)``.
        var: of each channel about that mean, biased (divided by ``count``), shape ``(C,)``.
        count: values per channel, N * H * W summed over batches and ranks; 0 if no forward pass reached the layer.
    """

    mean: Tensor
    var: Tensor
    count: int

    @property
    def running_var(self) -> Tensor:
        """The variance as PyTorch keeps it: divided by ``count - 1``."""
        return self.var * (self.count / max(1, self.count - 1))


class Pool:
    """Count, mean and sum of squared deviations of the values in each channel.

    Args:
        channels: C.
        device: where the sums are kept.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=widest_float(device), device=device)
        self.squares = torch.zeros_like(self.mean)

    def add(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Take in a batch of ``count`` values per channel, with its biased variance, without waiting for the device."""
        mean, var = mean.to(self.mean.dtype), var.to(self.mean.dtype)
        fraction = count / (self.count + count)
        delta = mean - self.mean
        self.squares += var * count + delta**2 * (self.count * fraction)
        self.mean += delta * fraction
        self.count += count


def pool_ranks(pools: Iterable[Pool]) -> list[LayerStatistics]:
    """Statistics of each pool over all ranks, equal on every rank; two collectives in all."""
    pools = list(pools)
    sizes = [len(pool.mean) for pool in pools]
    device = pools[0].mean.device
    count = torch.cat([torch.full_like(pool.mean, pool.count, device=device) for pool in pools])
    mean = torch.cat([pool.mean.to(device) for pool in pools])
    squares = torch.cat([pool.squares.to(device) for pool in pools])

    sums = torch.stack([count, count * mean])
    torch.distributed.all_reduce(sums)
    mean_of_all = sums[1] / sums[0].clamp_min(1)
    squares += count * (mean - mean_of_all) ** 2
    torch.distributed.all_reduce(squares)
    parts = zip(*(values.cpu().split(sizes) for values in (sums[0], mean_of_all, squares)), strict=True)
    return [_statistics(int(count[0]), mean, squares) for count, mean, squares in parts]


def pool_alone(pools: Iterable[Pool]) -> list[LayerStatistics]:
    """Statistics of each pool on this rank."""
    return [_statistics(pool.count, pool.mean.cpu(), pool.squares.cpu()) for pool in pools]


def widest_float(device: torch.device) -> torch.dtype:
    """Float64, or float32 on Apple's devices, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _statistics(count: int, mean: Tensor, squares: Tensor) -> LayerStatistics:
    return LayerStatistics(mean.float(), (squares / max(1, count)).float(), count)
