"""Batch-norm statistics of one network, kept by image size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixsize.algorithms.batchnorm.calibration import CalibrationResult, load_statistics, measure_batch_norm
from mixsize.algorithms.batchnorm.layers import batch_norm_layers, running_statistics
from mixsize.algorithms.batchnorm.pooling import LayerStatistics
from mixsize.system.files import in_one_piece


class StatisticsBank:
    """Batch-norm statistics of one network at several image sizes.

    Example:
        >>> network, bank = torch.nn.BatchNorm2d(3), StatisticsBank()
        >>> for size_px in (8, 16):
        ...     result = bank.calibrate(network, size_px, [torch.full((4, 3, size_px, size_px), float(size_px))])
        >>> with bank.use(network, 16):
        ...     print(network.running_mean)
        tensor([16., 16., 16.])
        >>> network.running_mean
        tensor([0., 0., 0.])
    """

    def __init__(self) -> None:
        self._sizes: dict[int, dict[str, LayerStatistics]] = {}

    @property
    def sizes(self) -> list[int]:
        """The image sides in pixels that have statistics, in rising order."""
        return sorted(self._sizes)

    def __contains__(self, size_px: int) -> bool:
        return size_px in self._sizes

    def __getitem__(self, size_px: int) -> dict[str, LayerStatistics]:
        """Each layer's statistics at a size.

        Raises:
            ValueError: the bank has no statistics at this size; the message names the sizes that it has.
        """
        if size_px not in self._sizes:
            has = ", ".join(f"{size} px" for size in self.sizes) or "none"
            raise ValueError(f"the bank has no batch-norm statistics for {size_px} px; it has {has}")
        return self._sizes[size_px]

    def calibrate(
        self,
        model: nn.Module,
        size_px: int,
        batches: Iterable[Any],
        *,
        max_batches: int = 200,
        across_ranks: bool = True,
    ) -> CalibrationResult:
        """Measure a network at a size and keep the result; the network's own statistics stay.

        Args:
            model: this and the rest as in :func:`~mixsize.algorithms.calibrate_batch_norm`.
            size_px: the image side in pixels to keep the statistics under, in place of earlier ones.
            batches: images at that size.
            max_batches: upper bound on the forward passes on each rank.
            across_ranks: pool over all ranks.
        """
        if size_px < 1:
            raise ValueError(f"size_px is {size_px}; it must be at least 1")
        result = measure_batch_norm(model, batches, max_batches=max_batches, across_ranks=across_ranks)
        self._sizes[size_px] = result.statistics
        return result

    def load_into(self, model: nn.Module, size_px: int) -> None:
        """Write the statistics at a size into a network for good.

        Raises:
            ValueError: the bank lacks the size, or the statistics are of another network; nothing is then written.
        """
        load_statistics(model, self[size_px])

    @contextmanager
    def use(self, model: nn.Module, size_px: int) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """A context in which a network carries the statistics at a size; its own return afterwards, bit for bit.

        Contexts can be nested: each restores the statistics that it found.

        Args:
            model: the network that the statistics belong to.
            size_px: image side in pixels.

        Yields:
            the network's own ``running_mean`` and ``running_var``, by layer name.

        Raises:
            ValueError: the bank lacks the size, or the statistics are of another network.
        """
        layers = {name: running_statistics(layer) for name, layer in batch_norm_layers(model).items()}
        own = {name: (mean.clone(), var.clone()) for name, (mean, var) in layers.items()}
        self.load_into(model, size_px)
        try:
            yield own
        finally:
            with torch.no_grad():
                for name, (mean, var) in layers.items():
                    mean.copy_(own[name][0])
                    var.copy_(own[name][1])

    def state_dict(self) -> dict[str, Any]:
        """The statistics in plain values and tensors."""
        return {
            "sizes": {
                str(size): {name: found._asdict() for name, found in self._sizes[size].items()} for size in self.sizes
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the statistics by those that :meth:`state_dict` returned.

        Raises:
            ValueError: the state is not of a bank.
        """
        try:
            sizes = {_size_of(key): layers.items() for key, layers in state["sizes"].items()}
            self._sizes = {size: {name: _layer_of(found) for name, found in layers} for size, layers in sizes.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a state of {type(self).__name__}: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write the bank to a file, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        with in_one_piece(Path(path)) as partial:
            torch.save(self.state_dict(), partial)

    @classmethod
    def load(cls, path: str | Path) -> StatisticsBank:
        """Read a file that :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is not of a bank.
        """
        bank = cls()
        try:
            bank.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except OSError:
            raise
        except Exception as error:  # PyTorch raises many kinds for a file that it did not write.
            raise ValueError(f"{path} is not a file of batch-norm statistics: {error}") from error
        return bank


def _size_of(key: str) -> int:
    if not (isinstance(key, str) and key.isdecimal()):
        raise ValueError(f"{key!r} is not a size in pixels")
    return int(key)


def _layer_of(found: dict[str, Any]) -> LayerStatistics:
    layer = LayerStatistics(**found)
    if not layer.mean.ndim == layer.var.ndim == 1 or len(layer.mean) != len(layer.var):
        raise ValueError(f"a layer has a mean {tuple(layer.mean.shape)} and a variance {tuple(layer.var.shape)}")
    return layer
