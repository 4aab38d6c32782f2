"""Batch-norm statistics re-estimated from forward passes at one image size.

A network trained at mixed image sizes carries one running mean and variance per layer, blurred over those sizes.
Source: MixSize (ICLR 2021 submission), section 4.2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixsize.algorithms.batchnorm.layers import batch_norm_layers, normalise_by_batch, running_statistics, unwrapped
from mixsize.algorithms.batchnorm.pooling import LayerStatistics, Pool, pool_alone, pool_ranks
from mixsize.algorithms.execution.preservation import device_of, preserved


@dataclass(frozen=True)
class CalibrationResult:
    """The outcome of a calibration.

    Attributes:
        statistics: of each layer, by its name in the network.
        batches_used: forward passes on this rank.
        samples: images over all ranks.
    """

    statistics: dict[str, LayerStatistics]
    batches_used: int
    samples: int


def calibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int = 200,
    across_ranks: bool = True,
) -> CalibrationResult:
    """Give every batch-norm layer the mean and variance of its inputs over ``batches``.

    Each layer normalises by the batch at hand, as in training; everything else (dropout, stochastic depth) is in
    evaluation mode. Statistics of the batches are pooled, with each batch weighted by its number of values n_i:
    ``mean = sum(n_i * mean_i) / n`` and ``var = sum(n_i * (var_i + (mean_i - mean)**2)) / n``.

    Only ``running_mean`` and ``running_var`` change, and only once all batches are done. Weights, gradients, training
    modes, ``num_batches_tracked`` and the random states of torch, NumPy and Python stay, also after an exception. A
    layer used several times in a forward pass pools every use. A layer that no forward pass reaches keeps its
    statistics. Wrap the call in ``torch.autocast`` to calibrate in the precision of the evaluation.

    Helps networks trained at mixed sizes over the whole range of sizes. Costs accuracy on networks trained at one size
    (MixSize paper): evaluate those as they are.

    Args:
        model: a network that takes images ``(N, C, H, W)`` alone, with or without the wrappers of DDP and
            ``torch.compile``.
        batches: unlabelled images at the size to calibrate for: tensors, or tuples or lists that begin with one. They
            are moved to the network's device.
        max_batches: upper bound on the forward passes on each rank.
        across_ranks: pool over all ranks of ``torch.distributed``, if it is initialised. Every rank must then call
            this function. Ranks may have different numbers of batches; all get the same statistics.

    Raises:
        ValueError: the network has no such layers, there are no batches, or a batch is of another kind.

    Example:
        >>> network = torch.nn.BatchNorm2d(3)
        >>> calibrate_batch_norm(network, [torch.full((4, 3, 8, 8), 5.0), torch.full((2, 3, 8, 8), 2.0)]).samples
        6
        >>> network.running_mean
        tensor([4., 4., 4.])
    """
    result = measure_batch_norm(model, batches, max_batches=max_batches, across_ranks=across_ranks)
    load_statistics(model, result.statistics)
    return result


def measure_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int = 200,
    across_ranks: bool = True,
) -> CalibrationResult:
    """Measure as :func:`calibrate_batch_norm` does and leave the network's own statistics in place."""
    if max_batches < 1:
        raise ValueError(f"max_batches is {max_batches}; it must be at least 1")
    network = unwrapped(model)
    layers = batch_norm_layers(network)
    if not layers:
        raise ValueError(f"{type(network).__name__} has no batch-norm layer that keeps running statistics")
    device, several = device_of(network), across_ranks and _several_ranks()
    pools = {name: Pool(layer.num_features, device) for name, layer in layers.items()}
    opened = iter(batches)
    stream = islice(opened, max_batches)
    if several and any(isinstance(layer, nn.SyncBatchNorm) for layer in layers.values()):
        stream = _to_shortest_rank(stream, device)
    batches_used = samples = 0
    with ExitStack() as stack:
        if opened is not batches:  # An FFCV iterator that is left in mid-epoch keeps its thread and buffers.
            stack.callback(getattr(opened, "close", lambda: None))
        stack.enter_context(preserved(network))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_uncompiled())
        normalise_by_batch(network)
        for name, layer in layers.items():
            stack.enter_context(_pooled(layer, pools[name]))
        for batch in stream:
            images = _images_of(batch).to(device, non_blocking=True)
            network(images)
            batches_used += 1
            samples += len(images)
    if several:
        samples = _total(samples, device)
    if samples == 0:
        raise ValueError("there was no batch to calibrate batch norm on")
    statistics = dict(zip(layers, (pool_ranks if several else pool_alone)(pools.values()), strict=True))
    if not any(found.count for found in statistics.values()):
        raise ValueError(f"no forward pass of {type(network).__name__} reached a batch-norm layer")
    return CalibrationResult(statistics, batches_used, samples)


def load_statistics(model: nn.Module, statistics: dict[str, LayerStatistics]) -> None:
    """Write statistics into a network's batch-norm layers; layers with a count of 0 keep their own.

    Raises:
        ValueError: layers that are missing on either side or differ in channels; nothing is then written.
    """
    layers = batch_norm_layers(model)
    _check_fit(layers, statistics)
    with torch.no_grad():
        for name, layer in layers.items():
            found = statistics[name]
            if found.count:
                mean, var = running_statistics(layer)
                mean.copy_(found.mean)
                var.copy_(found.running_var)


@contextmanager
def _pooled(layer: _BatchNorm, pool: Pool) -> Iterator[None]:
    """Pool the statistics that a layer in training mode normalises by, at each of its uses; changes its buffers."""
    mean, var = running_statistics(layer)
    # The running statistics of SyncBatchNorm are of all ranks, and half precision is too coarse for them.
    kernel_tells = not isinstance(layer, nn.SyncBatchNorm) and mean.dtype not in (torch.float16, torch.bfloat16)

    def after_forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = inputs[0]
        count = values.numel() // values.shape[1]
        if kernel_tells:
            pool.add(count, mean, var.to(pool.mean.dtype) * ((count - 1) / count))
        else:
            batch_var, batch_mean = torch.var_mean(values.float(), dim=[0, *range(2, values.ndim)], correction=0)
            pool.add(count, batch_mean, batch_var)

    momentum, layer.momentum = layer.momentum, 1.0  # The kernel then leaves the batch's own statistics behind.
    layer.reset_running_stats()  # Times 0, a value that is not finite would stay.
    handle = layer.register_forward_hook(after_forward)
    try:
        yield
    finally:
        handle.remove()
        layer.momentum = momentum


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled code ignores hooks that were added after it was compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _several_ranks() -> bool:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return initialised and torch.distributed.get_world_size() > 1


def _total(value: int, device: torch.device) -> int:
    """The sum of a number over all ranks."""
    total = torch.tensor(value, device=device)
    torch.distributed.all_reduce(total)
    return int(total.item())


def _to_shortest_rank(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches up to the end of the shortest rank's: SyncBatchNorm makes every forward pass wait for all ranks."""
    for batch in batches:
        if _total(0, device):
            return
        yield batch
    _total(1, device)


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise ValueError(
            f"a batch is of type {type(batch).__name__}; it must be a tensor of images, or a tuple or list that begins "
            "with one"
        )
    return images


def _check_fit(layers: dict[str, _BatchNorm], statistics: dict[str, LayerStatistics]) -> None:
    for name in sorted(layers.keys() ^ statistics.keys()):
        owner, other = ("network", "statistics") if name in layers else ("statistics", "network")
        raise ValueError(f"the statistics are of another network: layer {name!r} of the {owner} is not in the {other}")
    for name, layer in layers.items():
        if len(statistics[name].mean) != layer.num_features:
            raise ValueError(
                f"layer {name!r} has {layer.num_features} channels; its statistics have {len(statistics[name].mean)}"
            )
