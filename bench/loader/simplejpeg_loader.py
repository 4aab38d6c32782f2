"""simplejpeg in PyTorch's ``DataLoader``: libjpeg-turbo's decoder behind torchvision's transforms."""

from __future__ import annotations

from pathlib import Path

import simplejpeg  # pyright: ignore[reportMissingImports]
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional


def random_resized_crop(path: str, size_px: int) -> torch.Tensor:
    """A random resized crop of a JPEG file: uint8, shape ``(3, size_px, size_px)``.

    The image is decoded at half, a quarter or an eighth of its size where the crop then still has the view's pixels.
    Measured on ImageNet's images, this is 1.4 times as fast as decoding in full at 96 px, and 1.1 times at 224 px.
    """
    jpeg = Path(path).read_bytes()
    height, width = map(int, simplejpeg.decode_jpeg_header(jpeg)[:2])
    crop = RandomResizedCrop.get_params(torch.empty(1, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
    factor = next((factor for factor in (8, 4, 2) if min(crop[2:]) >= factor * size_px), 1)
    pixels = simplejpeg.decode_jpeg(jpeg, min_height=-(-height // factor), min_width=-(-width // factor))
    top, left, rows, columns = (side // factor for side in crop)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return functional.resized_crop(image, top, left, rows, columns, [size_px, size_px], antialias=True)
