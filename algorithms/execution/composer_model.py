"""Composer's model around a network, the network inside it, and the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from composer.core import State, get_precision_context
from composer.models import ComposerClassifier
from composer.utils import ensure_tuple
from torch import Tensor, nn

from mixsize.algorithms.execution.engines import Engine, Passes, training_passes


class EngineClassifier(ComposerClassifier):
    """A ``ComposerClassifier`` whose training passes may be compiled or replayed; evaluation runs eagerly.

    Args:
        module: takes images ``(N, 3, S, S)`` alone.
        cpu_dtype: autocast the network to this dtype on a CPU, where Composer's Trainer does not; its outputs are cast
            back to float32, for the loss. None: float32 on a CPU.
        kwargs: see ``ComposerClassifier``.
    """

    def __init__(self, module: nn.Module, *, cpu_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        self._cpu_dtype = cpu_dtype
        # In a tuple: an attribute that is a module would be saved with the model, a second time.
        self._passes: tuple[Passes] = (module,)

    def use_engine(self, engine: Engine, num_shapes: int) -> None:
        """Train through an engine from now on; see :func:`~mixsize.algorithms.training_passes`."""
        self._passes = (training_passes(self.module, engine, num_shapes),)

    def forward(self, batch: tuple[Tensor, Any]) -> Tensor:
        """Outputs for the images of a batch."""
        images, _ = batch
        passes = self._passes[0] if self.module.training else self.module
        if self._cpu_dtype is None:
            return passes(images)
        with self.cpu_autocast():
            return passes(images).float()

    def cpu_autocast(self) -> AbstractContextManager[object]:
        """A context in which the network runs as in training on a CPU."""
        return nullcontext() if self._cpu_dtype is None else torch.autocast("cpu", self._cpu_dtype)


@contextmanager
def training_precision(state: State) -> Iterator[None]:
    """A context in which the network inside a Trainer's model runs as in training and evaluation."""
    model = state.model.module if state.is_model_ddp else state.model
    on_cpu = model.cpu_autocast() if isinstance(model, EngineClassifier) else nullcontext()
    # FP8 wants batches of special sizes; Composer evaluates without it too.
    with get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False), on_cpu:
        yield


def network_of(state: State) -> nn.Module:
    """The network that takes images alone, inside the wrappers of Composer and DDP.

    Raises:
        ValueError: the model does not keep it in an attribute ``module``, as ``ComposerClassifier`` does.
    """
    model = state.model.module if state.is_model_ddp else state.model
    network = getattr(model, "module", None)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"batch-norm calibration calls the network on images alone; {type(model).__name__} has no such network in "
            "an attribute 'module', as ComposerClassifier has"
        )
    return network


def trained_parameters(state: State) -> list[Tensor]:
    """Parameters of the optimisers; gradients of others are neither unscaled nor cleared between steps."""
    groups = [group for optimizer in ensure_tuple(state.optimizers) for group in optimizer.param_groups]
    return [parameter for group in groups for parameter in group["params"]]
