"""Resizing a batch on the device that it is on."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize_batch(images: torch.Tensor, size_px: int) -> torch.Tensor:
    """Resize a batch to one side with an antialiased bilinear filter, on the device that it is on.

    Args:
        images: floating point, shape ``(N, C, H, W)``.
        size_px: side S of the result, in pixels.

    Returns:
        Shape ``(N, C, S, S)``; ``images`` itself if it already has that shape.

    Example:
        >>> resize_batch(torch.rand(8, 3, 224, 224), 128).shape
        torch.Size([8, 3, 128, 128])
    """
    if images.shape[-2:] == (size_px, size_px):
        return images
    return F.interpolate(images, size=(size_px, size_px), mode="bilinear", antialias=True)
