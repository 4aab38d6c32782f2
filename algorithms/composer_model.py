"""The network inside a Composer model, and the parameters that are trained."""

from __future__ import annotations

from composer.core import State
from composer.utils import ensure_tuple
from torch import Tensor, nn


def network_of(state: State) -> nn.Module:
    """The network that takes images alone, out of the wrappers of Composer and of DDP.

    Raises:
        ValueError: a model that does not keep it in its attribute ``module``, as ``ComposerClassifier`` does.
    """
    model = state.model.module if state.is_model_ddp else state.model
    network = getattr(model, "module", None)
    if not isinstance(network, nn.Module):
        raise ValueError(
            "batch norm is measured by calling the network on images alone, which is looked for in the model's "
            f"attribute 'module', as ComposerClassifier has it; {type(model).__name__} has none"
        )
    return network


def trained_parameters(state: State) -> list[Tensor]:
    """Parameters of the optimisers: the gradients of others are neither unscaled nor cleared between steps."""
    groups = [group for optimizer in ensure_tuple(state.optimizers) for group in optimizer.param_groups]
    return [parameter for group in groups for parameter in group["params"]]
