"""The network inside a Composer model."""

from __future__ import annotations

from composer.core import State
from torch import nn


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
