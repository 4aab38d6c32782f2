"""What a network costs at an image size."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(network: nn.Module, size_px: int, channels: int = 3) -> int:
    """Multiply-accumulates of one image's forward pass: what papers call a network's FLOPs.

    Counted by PyTorch over convolutions, matrix products and attention; a multiply-accumulate is two
    operations there and one here, so that ResNet-50 at 224 px has its familiar 4.1 G.

    Args:
        network: on any device; it is not changed.
        size_px: image side S.
        channels: of the image.
    """
    # On the meta device nothing is computed or allocated; deepcopy first, as moving there loses the weights.
    counted = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(torch.empty(1, channels, size_px, size_px, device="meta"))
    return counter.get_total_flops() // 2
