"""From decoded bytes to the tensors a network takes: device, normalisation, memory format, dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixsize.ffcv_loaders.engine.native import normalize

#: The usual statistics of ImageNet, for a file that carries none of its own.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Staged:
    """A batch on its way to its device.

    Args:
        images: normalised, shape ``(N, 3, S, S)``.
        labels: int64, shape ``(N,)``.
        arrived: recorded when the batch is complete; None where it is complete already.
    """

    images: torch.Tensor
    labels: torch.Tensor
    arrived: torch.cuda.Event | None = None

    def wait(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch, safe to use on the current stream; does not block the host."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.images.device)
            stream.wait_event(self.arrived)  # pyright: ignore[reportArgumentType]
            # Without this the allocator could hand the memory to the side stream while this one still reads it.
            self.images.record_stream(stream)
            self.labels.record_stream(stream)
        return self.images, self.labels


class Stager:
    """Moves and normalises batches: ``(pixels / 255 - mean) / std``.

    On CUDA the copy runs from pinned memory on a stream of its own, and normalisation on the device behind it.

    Args:
        mean: of each channel, on the 0..1 scale.
        std: of each channel, on the 0..1 scale, above 0.
        device: where batches go.
        dtype: floating-point type of the images.
        channels_last: memory format of the images.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{name} has {len(values)} values; it must have one for each of the 3 channels")
        if min(std) <= 0:
            raise ValueError(f"std is {tuple(std)}; each value must be above 0")
        self.device = device
        self.mean = tuple(mean)
        self._dtype = dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._mean = _per_channel(255 * torch.tensor(mean, dtype=torch.float32), device)
        self._inverse_std = _per_channel(1 / (255 * torch.tensor(std, dtype=torch.float32)), device)
        self._shift = -self._mean * self._inverse_std
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def lookahead(self) -> int:
        """Batches to keep on their way while the one before is in use."""
        return 1 if self._stream is not None else 0

    def buffer(self, num_bytes: int) -> torch.Tensor:
        """Host memory to decode into, pinned where the device copies from it."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._stream is not None)

    def stage(self, pixels: torch.Tensor, labels: torch.Tensor) -> Staged:
        """Start moving a batch.

        Args:
            pixels: uint8, shape ``(N, S, S, 3)``, RGB; may be overwritten once ``arrived`` has passed.
            labels: int64, shape ``(N,)``.
        """
        if self._stream is None:
            return Staged(self._normalize(pixels), labels)
        with torch.cuda.stream(self._stream):  # pyright: ignore[reportArgumentType]
            images = self._normalize(pixels.to(self.device, non_blocking=True))
            labels = labels.to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Staged(images, labels, arrived)  # pyright: ignore[reportArgumentType]

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.device.type != "cpu":
            return normalize_on_device(pixels, self._shift, self._inverse_std, self._dtype, self._format)
        n, height, width, channels = pixels.shape
        images = torch.empty((n, channels, height, width), memory_format=self._format)  # float32
        # PyTorch takes three passes over a batch for this, and on channels-last memory leaves its vector kernels.
        channels_last = self._format is torch.channels_last
        statistics = (self._mean.flatten().numpy(), self._inverse_std.flatten().numpy())
        normalize(pixels.numpy(), *statistics, channels_last, images.data_ptr())
        return images.to(self._dtype)


def normalize_on_device(
    pixels: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """``pixels * scale + shift`` in one kernel, which reads each byte once and writes each value once.

    Args:
        pixels: uint8, shape ``(N, S, S, 3)``.
        shift: float32, shape ``(1, 3, 1, 1)``.
        scale: float32, shape ``(1, 3, 1, 1)``.
        dtype: floating-point type of the result; the arithmetic is in float32.
        memory_format: of the result.

    Returns:
        Shape ``(N, 3, S, S)``.
    """
    n, height, width, channels = pixels.shape
    shape = (n, channels, height, width)
    images = torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=memory_format)
    return torch.addcmul(shift, pixels.permute(0, 3, 1, 2), scale, out=images)


def _per_channel(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    return values.view(1, 3, 1, 1).to(device)
