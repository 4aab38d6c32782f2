"""Training only the last layer and the batch norms of a network."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def train_head_and_batch_norm(network: nn.Module) -> None:
    """Freeze every parameter of a timm network except those of its last layer and its batch norms.

    The running statistics of batch norm are still updated in training mode. This adapts a network to the image size
    that it is tested at (Touvron et al. 2019, "Fixing the train-test resolution discrepancy", who adapt only the last
    batch norm).

    Args:
        network: with timm's ``get_classifier``.
    """
    network.requires_grad_(False)
    head = cast(Any, network).get_classifier()
    for module in head if isinstance(head, tuple) else (head,):
        module.requires_grad_(True)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(True)
