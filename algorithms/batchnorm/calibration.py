"""Batch-norm statistics re-estimated from forward passes at an image size, and kept by size.

A network trained at mixed image sizes carries one running mean and variance a layer, blurred over those
sizes. Before an evaluation at one size, the MixSize paper (section 4.2; ICLR 2021 submission) measures
them anew on a few hundred unlabelled training batches at that size.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: Batches between two looks at whether the statistics still move.
_WINDOW = 10
_FORMAT = "mixsize batch-norm statistics"
_VERSION = 1
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class LayerStatistics(NamedTuple):
    """A layer's pooled statistics, float32 on the CPU.

    Attributes:
        mean: of each channel, shape ``(C,)``.
        var: of each channel about that mean, biased (divided by ``count``), shape ``(C,)``.
        count: values per channel behind them, N * H * W summed over batches and ranks; 0 for a layer that no forward
            pass reached, whose ``mean`` and ``var`` are then the ones it had.
    """

    mean: Tensor
    var: Tensor
    count: int

    @property
    def running_var(self) -> Tensor:
        """The variance as PyTorch keeps it: divided by ``count - 1``."""
        return self.var * (self.count / max(1, self.count - 1))


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration found.

    Attributes:
        statistics: of each layer, by its name in the network.
        batches_used: forward passes on this rank.
        samples: images over all ranks.
        converged: whether ``tolerance`` ended it before the batches did.
    """

    statistics: dict[str, LayerStatistics]
    batches_used: int
    samples: int
    converged: bool


def batch_norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm layers that keep running statistics, by name.

    ``BatchNorm1d/2d/3d``, ``SyncBatchNorm`` and what derives from them, as timm's ``BatchNormAct2d`` does. Frozen ones
    (torchvision's and timm's) are no such layers, and one made with ``track_running_stats=False`` keeps none.
    """
    return {
        name: module
        for name, module in _unwrapped(model).named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


def calibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int = 200,
    tolerance: float | None = None,
    device: str | torch.device | None = None,
    images_of: Callable[[Any], Tensor] | None = None,
    across_ranks: bool = True,
) -> CalibrationResult:
    """Give every batch-norm layer the mean and variance that it sees on ``batches``.

    Each layer normalises by the batch at hand, as in training, while everything else (dropout, stochastic depth) is in
    evaluation mode. The batches' statistics are pooled (Chan, Golub and LeVeque 1979), so that unequal batches weigh by
    their values and the spread between batches counts:
    ``mean = sum(n_i * mean_i) / n`` and ``var = sum(n_i * (var_i + (mean_i - mean)**2)) / n``.

    Only ``running_mean`` and ``running_var`` change, and only once all batches are done: weights, gradients, training
    flags, momentum, ``num_batches_tracked`` and the random states of torch, numpy and Python are as before, also after
    an exception. A layer used several times in a forward pass pools every use; one that is never reached keeps its
    statistics. Precision is the caller's: wrap the call in ``torch.autocast`` to calibrate as the evaluation runs.

    Helps networks trained at mixed sizes over the whole range of sizes; on networks trained at one size it costs
    accuracy (MixSize paper), so evaluate those as they are.

    Args:
        model: a network that takes images ``(N, C, H, W)`` alone; the wrappers of DDP and ``torch.compile`` are seen
            through.
        batches: of unlabelled images, all of the size to calibrate for; each a tensor, or a tuple or list that begins
            with one.
        max_batches: forward passes on each rank, at most.
        tolerance: ends early once the pooled statistics of every layer moved, over the last 10 batches, by no more
            than this fraction of the layer's standard deviation (root mean square over its channels, the larger
            of the means' and the standard deviations' movement). On several ranks all end together.
        device: where images go; by default the layers'.
        images_of: takes the images out of a batch of another kind.
        across_ranks: pool over all ranks of ``torch.distributed``, where it is initialised. Every rank must then call
            this; their numbers of batches may differ. All get the same statistics.

    Returns:
        the statistics, with the number of batches and images behind them.

    Raises:
        ValueError: a network without such layers, no batches, or batches whose images cannot be told.

    Example:
        >>> images = MixSizeLoader("train.beton", Regime.fixed(Base(288, 256)), augment=CenterCrop())
        >>> calibrate_batch_norm(network, images, max_batches=200).samples
        51200
    """
    result = measure_batch_norm(
        model,
        batches,
        max_batches=max_batches,
        tolerance=tolerance,
        device=device,
        images_of=images_of,
        across_ranks=across_ranks,
    )
    load_statistics(model, result.statistics)
    return result


def measure_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int = 200,
    tolerance: float | None = None,
    device: str | torch.device | None = None,
    images_of: Callable[[Any], Tensor] | None = None,
    across_ranks: bool = True,
) -> CalibrationResult:
    """Measure as :func:`calibrate_batch_norm` does, and leave the network's own statistics in place."""
    if max_batches < 1:
        raise ValueError(f"max_batches is {max_batches}; it must be at least 1")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must lie above 0")
    network = _unwrapped(model)
    layers = batch_norm_layers(network)
    if not layers:
        raise ValueError(f"{type(network).__name__} has no batch-norm layer that keeps running statistics")
    meter = _Meter(layers, _Ranks(next(iter(layers.values())).running_mean.device, across_ranks))
    feed = _Feed(network, meter, images_of or _first_tensor, torch.device(device or meter.ranks.device))
    with ExitStack() as stack:
        stack.enter_context(_random_states_kept(meter.ranks.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_uncompiled())
        stack.enter_context(_only_training(network, layers.values()))
        stack.enter_context(meter.attached())
        stream = meter.in_step(islice(batches, max_batches))
        pool, converged = _pool_until(feed, stream, tolerance)
    samples = meter.ranks.total(feed.samples)
    if samples == 0:
        raise ValueError("there was no batch to calibrate batch norm on")
    if not bool(pool.count.any()):
        raise ValueError(f"no forward pass of {type(network).__name__} reached a batch-norm layer")
    return CalibrationResult(meter.statistics(pool), feed.batches, samples, converged)


def load_statistics(model: nn.Module, statistics: dict[str, LayerStatistics]) -> None:
    """Write statistics into a network's batch-norm layers; those with a count of 0 keep their own.

    Raises:
        ValueError: layers that are missing on either side or differ in channels; nothing is then written.
    """
    layers = batch_norm_layers(model)
    _check_fit(layers, statistics)
    with torch.no_grad():
        for name, layer in layers.items():
            found = statistics[name]
            if found.count:
                layer.running_mean.copy_(found.mean)
                layer.running_var.copy_(found.running_var)


class StatisticsBank:
    """Batch-norm statistics of one network at several image sizes.

    Example:
        >>> bank = StatisticsBank()
        >>> for size_px in (128, 224, 288):
        ...     bank.calibrate(network, size_px, loader_for(size_px))
        >>> bank.save("resnet50-bn.pt")
        >>> with bank.use(network, 288):
        ...     accuracy = evaluate(network, size_px=288)
    """

    def __init__(self) -> None:
        self._sizes: dict[int, dict[str, LayerStatistics]] = {}

    @property
    def sizes(self) -> list[int]:
        """The image sides in pixels that it has statistics for, rising."""
        return sorted(self._sizes)

    def __contains__(self, size_px: int) -> bool:
        return size_px in self._sizes

    def __getitem__(self, size_px: int) -> dict[str, LayerStatistics]:
        """Each layer's statistics at a size.

        Raises:
            ValueError: a size that it has none for; the message names the nearest that it has.
        """
        if size_px not in self._sizes:
            below = [size for size in self.sizes if size < size_px][-1:]
            above = [size for size in self.sizes if size > size_px][:1]
            nearest = " and ".join(f"{size} px" for size in below + above)
            raise ValueError(
                f"the bank has no batch-norm statistics for {size_px} px; "
                + (f"the nearest that it has are for {nearest}" if nearest else "it is empty")
            )
        return self._sizes[size_px]

    def calibrate(
        self,
        model: nn.Module,
        size_px: int,
        batches: Iterable[Any],
        *,
        max_batches: int = 200,
        tolerance: float | None = None,
        device: str | torch.device | None = None,
        images_of: Callable[[Any], Tensor] | None = None,
        across_ranks: bool = True,
    ) -> CalibrationResult:
        """Measure a network at a size and keep the result; the network's own statistics stay.

        Args:
            model: see :func:`calibrate_batch_norm`, as for all that follow.
            size_px: the image side that the statistics are kept under, in pixels; what it replaces is forgotten.
            batches: of images at that size.
            max_batches: see :func:`calibrate_batch_norm`.
            tolerance: likewise.
            device: likewise.
            images_of: likewise.
            across_ranks: likewise.

        Raises:
            ValueError: likewise, or a size below 1.
        """
        size_px = _checked_size(size_px)
        result = measure_batch_norm(
            model,
            batches,
            max_batches=max_batches,
            tolerance=tolerance,
            device=device,
            images_of=images_of,
            across_ranks=across_ranks,
        )
        self._sizes[size_px] = result.statistics
        return result

    def load_into(self, model: nn.Module, size_px: int) -> None:
        """Write a size's statistics into a network for good.

        Raises:
            ValueError: a size that is missing, or statistics of another network; nothing is then written.
        """
        load_statistics(model, self[size_px])

    @contextmanager
    def use(
        self, model: nn.Module, size_px: int, batches: Iterable[Any] | None = None
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """A context in which a network carries a size's statistics; it gets its own back afterwards, bit for bit.

        May be nested: each context restores what it found.

        Args:
            model: the network that the statistics belong to.
            size_px: image side in pixels.
            batches: images to calibrate on where the bank has no statistics for this size yet.

        Yields:
            the network's own statistics, by layer name: ``running_mean`` and ``running_var``.

        Raises:
            ValueError: a size that is missing and has no ``batches``, or statistics of another network.
        """
        if size_px not in self and batches is not None:
            self.calibrate(model, size_px, batches)
        layers = batch_norm_layers(model)
        own = {name: (layer.running_mean.clone(), layer.running_var.clone()) for name, layer in layers.items()}
        self.load_into(model, size_px)
        try:
            yield own
        finally:
            with torch.no_grad():
                for name, layer in layers.items():
                    layer.running_mean.copy_(own[name][0])
                    layer.running_var.copy_(own[name][1])

    def state_dict(self) -> dict[str, Any]:
        """All of it in plain values and tensors."""
        sizes = {str(size): {name: found._asdict() for name, found in self._sizes[size].items()} for size in self.sizes}
        return {"format": _FORMAT, "version": _VERSION, "sizes": sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, in place of what it had.

        Raises:
            ValueError: another kind or version of state, or a layer whose statistics are no such thing.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"this is not a state of {_FORMAT}")
        if state.get("version") != _VERSION:
            raise ValueError(f"these {_FORMAT} have version {state.get('version')!r}; this reads {_VERSION}")
        if not isinstance(state.get("sizes"), dict):
            raise ValueError(f"these {_FORMAT} list no sizes")
        for size, layers in state["sizes"].items():
            if not (isinstance(size, str) and size.isdecimal() and isinstance(layers, dict)):
                raise ValueError(f"these {_FORMAT} list no layers by size under {size!r}")
        self._sizes = {
            _checked_size(int(size)): {
                name: _read_layer(f"layer {name!r} at {size} px", found) for name, found in layers.items()
            }
            for size, layers in state["sizes"].items()
        }

    def save(self, path: str | Path) -> None:
        """Write the bank to a file of its own, whole or not at all.

        Raises:
            OSError: a place that cannot be written.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            torch.save(self.state_dict(), partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> StatisticsBank:
        """Read a file that :meth:`save` wrote.

        Raises:
            OSError: a file that cannot be read.
            ValueError: a file of another kind or version.
        """
        bank = cls()
        try:
            with open(path, "rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # Of bytes that are no such file, unpickling may end in any exception.
            raise ValueError(f"{path} is not a file of {_FORMAT}") from error
        try:
            bank.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return bank


class _Ranks:
    """The processes that pool together, as plain sums; with one process there is nothing to send."""

    def __init__(self, device: torch.device, together: bool) -> None:
        self.device = device
        initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.several = together and initialised and torch.distributed.get_world_size() > 1

    def sum_(self, values: Tensor) -> Tensor:
        if self.several:
            torch.distributed.all_reduce(values)
        return values

    def total(self, value: int) -> int:
        return int(self.sum_(torch.tensor(value, device=self.device)).item()) if self.several else value

    def every(self, flag: bool) -> bool:
        return self.total(int(not flag)) == 0

    def some(self, flag: bool) -> bool:
        return self.total(int(flag)) > 0


class _Pool:
    """Every channel's count, mean and sum of squared deviations, all layers end to end."""

    def __init__(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        self.count, self.mean, self.m2 = count, mean, m2

    def add(self, part: slice, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Chan, Golub and LeVeque's update (1979): never the difference of two large squares."""
        before = self.count[part]
        fraction = count / (before + count).clamp_min(1)
        delta = mean - self.mean[part]
        self.m2[part] += m2 + delta**2 * before * fraction
        self.mean[part] += delta * fraction
        self.count[part] += count

    def over(self, ranks: _Ranks) -> _Pool:
        """The same over all ranks, alike on each."""
        count, weighted = ranks.sum_(torch.stack([self.count, self.count * self.mean]))
        mean = weighted / count.clamp_min(1) if ranks.several else self.mean.clone()
        return _Pool(count, mean, ranks.sum_(self.m2 + self.count * (self.mean - mean) ** 2))

    @property
    def var(self) -> Tensor:
        return self.m2 / self.count.clamp_min(1)


class _Meter:
    """Pools each layer's batch statistics, read off the kernel that normalises with them.

    With a momentum of 1 that kernel leaves the batch's own mean and unbiased variance in the running buffers, so
    reading them costs nothing beside the forward pass; scratch buffers stand in for the layers' own meanwhile.
    """

    def __init__(self, layers: dict[str, nn.Module], ranks: _Ranks) -> None:
        self.ranks = ranks
        self._names = list(layers)
        self._layers = list(layers.values())
        devices = sorted({str(layer.running_mean.device) for layer in self._layers})
        if len(devices) > 1:
            raise ValueError(f"batch-norm layers lie on several devices: {', '.join(devices)}")
        channels = [layer.num_features for layer in self._layers]
        self._ends = [0, *accumulate(channels)]
        widths = torch.tensor(channels, device=ranks.device)
        self._owner = torch.arange(len(channels), device=ranks.device).repeat_interleave(widths)
        # Apple's devices have no float64.
        self._dtype = torch.float32 if ranks.device.type == "mps" else torch.float64
        self._pool = _Pool(*torch.zeros(3, self._ends[-1], dtype=self._dtype, device=ranks.device))
        # Half-precision buffers cannot hold a batch's statistics to any use, so those layers are measured beside.
        self._beside = [layer.running_mean.dtype in (torch.float16, torch.bfloat16) for layer in self._layers]
        self._slots = [self._slot(layer, beside) for layer, beside in zip(self._layers, self._beside, strict=True)]
        self._counts = [0] * len(self._layers)
        self._on_device: dict[tuple[int, ...], Tensor] = {}
        self._synced = self._find_synced()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A context in which the layers write into the scratch buffers; theirs return untouched."""
        kept = [(layer.momentum, [layer._buffers[name] for name in _BUFFERS]) for layer in self._layers]
        calls = torch.zeros((), dtype=torch.long)
        with ExitStack() as hooks:
            try:
                for number, layer in enumerate(self._layers):
                    hook = layer.register_forward_pre_hook(self._hook(number))
                    hooks.callback(hook.remove)
                    mean, var = self._slots[number]
                    if self._beside[number]:
                        mean, var = torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var)
                    layer.momentum = 1.0
                    layer._buffers.update(zip(_BUFFERS, (mean, var, calls), strict=True))
                yield
            finally:
                for layer, (momentum, buffers) in zip(self._layers, kept, strict=True):
                    layer.momentum = momentum
                    layer._buffers.update(zip(_BUFFERS, buffers, strict=True))

    def end_forward(self) -> None:
        """Pool what the forward pass left in the buffers."""
        self._take(range(len(self._layers)))

    def pooled(self) -> _Pool:
        """The statistics so far, over all ranks."""
        return self._pool.over(self.ranks)

    def movement(self, before: _Pool, after: _Pool) -> float:
        """The largest over layers of how far means or standard deviations moved, in standard deviations."""

        def by_layer(values: Tensor) -> Tensor:
            sums = torch.zeros(len(self._layers), dtype=values.dtype, device=values.device)
            return sums.index_add_(0, self._owner, values)

        spread = by_layer(after.var).clamp_min(torch.finfo(self._dtype).tiny)
        moved = torch.stack(
            [by_layer((after.mean - before.mean) ** 2), by_layer((after.var.sqrt() - before.var.sqrt()) ** 2)]
        )
        return float((moved / spread).max().sqrt())

    def statistics(self, pool: _Pool) -> dict[str, LayerStatistics]:
        """Each layer's part of the pool."""
        count, mean, var = pool.count.cpu(), pool.mean.float().cpu(), pool.var.float().cpu()
        found = {}
        for number, (name, layer) in enumerate(zip(self._names, self._layers, strict=True)):
            part = self._part(range(number, number + 1))
            seen = int(count[part.start])
            own = (layer.running_mean.float().cpu(), layer.running_var.float().cpu())
            means, variances = (mean[part], var[part]) if seen else own
            found[name] = LayerStatistics(means.clone(), variances.clone(), seen)
        return found

    def in_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, cut to the shortest rank's where SyncBatchNorm makes each forward pass wait for all ranks."""
        if not self._synced:
            yield from batches
            return
        for batch in batches:
            if not self.ranks.every(True):
                return
            yield batch
        self.ranks.every(False)

    def _hook(self, number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before_layer(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._counts[number]:
                self._take(range(number, number + 1))
            values = inputs[0]
            self._counts[number] = values.numel() // values.shape[1]
            if self._beside[number]:
                mean, var = self._slots[number]
                found = torch.var_mean(values.float(), dim=[0, *range(2, values.ndim)])
                var.copy_(found[0])
                mean.copy_(found[1])

        return before_layer

    def _take(self, which: range) -> None:
        """Move the measurements of consecutive layers from their slots to the pool."""
        key = tuple(self._counts[number] for number in which)
        if key not in self._on_device:
            # Kept, as sending them would make the host wait for the device at every batch.
            self._on_device[key] = torch.tensor(key, dtype=self._dtype, device=self.ranks.device)
        counts = self._on_device[key]
        part = self._part(which)
        owner = self._owner[part] - which.start
        seen = self._behind(which, counts)[owner]
        means, variances = zip(*(self._slots[number] for number in which), strict=True)
        # A biased variance; a layer reached by no rank has seen 0.
        biased = torch.cat(variances).to(self._dtype) * ((seen - 1) / seen.clamp_min(1)).clamp_min(0)
        self._pool.add(part, counts[owner], torch.cat(means).to(self._dtype), counts[owner] * biased)
        for number in which:
            self._counts[number] = 0

    def _behind(self, which: range, counts: Tensor) -> Tensor:
        """Values per channel behind each layer's measured variance.

        SyncBatchNorm measures the batches of all ranks as one. Each rank still weighs that by its own part of the
        values, so that pooling over ranks counts every value once.
        """
        seen = counts
        for group, members in self._synced:
            inside = [number - which.start for number in members if number in which]
            if inside:
                shared = counts[inside]
                torch.distributed.all_reduce(shared, group=group)
                seen = seen.index_copy(0, torch.tensor(inside, device=seen.device), shared)
        return seen

    def _find_synced(self) -> list[tuple[Any, list[int]]]:
        groups: dict[Any, list[int]] = {}
        for number, layer in enumerate(self._layers):
            if self.ranks.several and isinstance(layer, nn.SyncBatchNorm) and not self._beside[number]:
                group = layer.process_group or torch.distributed.group.WORLD
                groups.setdefault(group, []).append(number)
        return list(groups.items())

    def _part(self, which: range) -> slice:
        return slice(self._ends[which.start], self._ends[which.stop])

    @staticmethod
    def _slot(layer: nn.Module, beside: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.float32 if beside else None
        return torch.zeros_like(layer.running_mean, dtype=dtype), torch.zeros_like(layer.running_var, dtype=dtype)


class _Feed:
    """Runs batches through the network and counts them."""

    def __init__(
        self, network: nn.Module, meter: _Meter, images_of: Callable[[Any], Tensor], device: torch.device
    ) -> None:
        self.meter = meter
        self.batches = 0
        self.samples = 0
        self._network = network
        self._images_of = images_of
        self._device = device

    def run(self, batches: Iterable[Any]) -> int:
        before = self.batches
        for batch in batches:
            images = self._images_of(batch).to(self._device, non_blocking=True)
            self._network(images)
            self.meter.end_forward()
            self.batches += 1
            self.samples += len(images)
        return self.batches - before


def _pool_until(feed: _Feed, stream: Iterator[Any], tolerance: float | None) -> tuple[_Pool, bool]:
    """Feed the stream to its end or until every rank sees the pooled statistics stand still."""
    ranks = feed.meter.ranks
    if tolerance is None:
        feed.run(stream)
        return feed.meter.pooled(), False
    before = None
    while True:
        # A rank whose batches are spent still takes part in the others' looks.
        full = feed.run(islice(stream, _WINDOW)) == _WINDOW
        pool = feed.meter.pooled()
        if not ranks.some(full):
            return pool, False
        if before is not None and ranks.every(feed.meter.movement(before, pool) <= tolerance):
            return pool, True
        before = pool


@contextmanager
def _only_training(network: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    # Set one by one: a network's own train() may do more, and children of a layer (drop, act) must not follow it.
    flags = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in flags:
            module.training = False
        for layer in layers:
            layer.training = True
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Loaders draw from the global generators too, so theirs are put back."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled code ignores hooks that were added after it was compiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def _first_tensor(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise ValueError(
            f"cannot tell the images in a batch of type {type(batch).__name__}; pass images_of, a function that takes "
            "them out of it"
        )
    return images


def _check_fit(layers: dict[str, nn.Module], statistics: dict[str, LayerStatistics]) -> None:
    missing = [name for name in layers if name not in statistics]
    foreign = [name for name in statistics if name not in layers]
    if missing or foreign:
        told = [f"has no statistics for the network's layer {name!r}" for name in missing[:1]]
        told += [f"has statistics for {name!r}, which the network has not" for name in foreign[:1]]
        raise ValueError(
            f"the statistics belong to another network ({len(missing)} layers missing, {len(foreign)} unknown): it "
            + " and ".join(told)
        )
    for name, layer in layers.items():
        if len(statistics[name].mean) != layer.num_features:
            raise ValueError(
                f"layer {name!r} has {layer.num_features} channels; its statistics have {len(statistics[name].mean)}"
            )


def _read_layer(place: str, found: Any) -> LayerStatistics:
    if not isinstance(found, dict) or set(found) != set(LayerStatistics._fields):
        raise ValueError(f"{place}: expected {', '.join(LayerStatistics._fields)}")
    mean, var, count = (found[field] for field in LayerStatistics._fields)
    for name, values in (("mean", mean), ("var", var)):
        if not isinstance(values, Tensor) or values.ndim != 1 or not values.is_floating_point():
            raise ValueError(f"{place}: {name} must be a vector of floating-point values")
    if mean.shape != var.shape:
        raise ValueError(f"{place}: mean has {len(mean)} channels and var {len(var)}")
    return LayerStatistics(mean.float().cpu(), var.float().cpu(), int(count))


def _checked_size(size_px: int) -> int:
    if size_px < 1:
        raise ValueError(f"size_px is {size_px}; it must be at least 1")
    return size_px
