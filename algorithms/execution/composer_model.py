"""Composer's model around a network, the network inside it, and the trained parameters."""

from __future__ import annotations

from typing import Any

from composer.core import State
from composer.models import ComposerClassifier
from composer.utils import ensure_tuple
from torch import Tensor, nn

from mixsize.algorithms.execution.engines import Engine, Passes, training_passes


class EngineClassifier(ComposerClassifier):
    """A ``ComposerClassifier`` whose training passes may be compiled or replayed; evaluation runs eagerly.

    Args:
        module: takes images ``(N, 3, S, S)`` alone.
        kwargs: see ``ComposerClassifier``.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        # In a tuple: an attribute that is a module would be saved with the model, a second time.
        self._passes: tuple[Passes] = (module,)

    def use_engine(self, engine: Engine, num_shapes: int) -> None:
        """Train through an engine from now on; see :func:`~mixsize.algorithms.training_passes`."""
        self._passes = (training_passes(self.module, engine, num_shapes),)

    def forward(self, batch: tuple[Tensor, Any]) -> Tensor:
        """Outputs for the images of a batch."""
        images, _ = batch
        return self._passes[0](images) if self.module.training else self.module(images)


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
