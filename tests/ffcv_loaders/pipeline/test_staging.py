"""Normalisation as it runs on a device: one kernel, in the type and memory format asked for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD, Stager, normalize_on_device


class Operations(TorchDispatchMode):
    """Notes what PyTorch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def channels(values):
    return torch.tensor(values).view(1, 3, 1, 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_one_kernel_and_gives_what_the_formula_says(dtype, layout):
    pixels = torch.randint(0, 256, (5, 7, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channels(IMAGENET_MEAN), channels(IMAGENET_STD)
    shift, scale = -mean / std, 1 / (255 * std)
    with Operations() as operations:
        images = normalize_on_device(pixels, shift, scale, dtype, layout)
    assert operations.names == ["aten.empty.memory_format", "aten.permute.default", "aten.addcmul.out"]
    expected = (pixels.double() / 255).permute(0, 3, 1, 2).sub(mean).div(std)
    # To half a unit in the last place of bfloat16, whose values have 8 significant bits.
    torch.testing.assert_close(images.double(), expected, atol=1e-6, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [False, True])
def test_the_cpus_pass_agrees_with_the_devices(layout):
    pixels = torch.randint(0, 256, (5, 7, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stager = Stager(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"), channels_last=layout)
    images = stager.stage(pixels, torch.zeros(5, dtype=torch.int64)).images
    mean, std = channels(IMAGENET_MEAN), channels(IMAGENET_STD)
    memory_format = torch.channels_last if layout else torch.contiguous_format
    fused = normalize_on_device(pixels, -mean / std, 1 / (255 * std), torch.float32, memory_format)
    torch.testing.assert_close(images, fused, atol=1e-6, rtol=1e-6)
    assert images.stride() == fused.stride()
