"""Training a part of a network, the rest kept as its checkpoint has it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def train_head_and_batch_norm(network: nn.Module) -> None:
    """Freeze every parameter but those of a timm network's last layer and of its batch norms.

    Batch norm's running statistics are no parameters: they go on moving in training mode. This is what adapts a
    network to the image size that it is tested at (Touvron et al. 2019, "Fixing the train-test resolution discrepancy",
    who adapt the last batch norm alone).

    Args:
        network: with timm's ``get_classifier``.
    """
    network.requires_grad_(False)
    head = network.get_classifier()
    for module in head if isinstance(head, tuple) else (head,):
        module.requires_grad_(True)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(True)
