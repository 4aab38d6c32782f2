"""A visit to every shape before training: kernels are chosen, memory is reserved, a shape that does not fit is named.

Under a regime the first steps of each shape are slow: convolutions are tuned, networks compiled and memory reserved.
The largest shape may come up only after hours. A regime has few shapes, so all can be visited beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import nn
from tqdm import tqdm

from mixsize.algorithms.execution.preservation import device_of, preserved
from mixsize.algorithms.regime.shapes import InputShape

# Errors of CPU memory, cuDNN and cuBLAS; PyTorch has a class of its own for CUDA memory alone.
_NO_MEMORY = ("can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


def visit_shapes(
    step: Callable[[torch.Tensor, torch.Tensor], object],
    network: nn.Module,
    shapes: Iterable[InputShape],
    *,
    channels_last: bool = False,
    progress: bool = False,
) -> float:
    """Run a training step's passes once for each shape, on noise.

    Afterwards the network's buffers (batch-norm statistics) and modes and the random states are as before, and its
    gradients are None.

    Args:
        step: forward pass, loss and backward pass of images ``(N, 3, S, S)`` and int64 labels ``(N,)``, all of class
            0; it must not change the parameters.
        network: the network that ``step`` trains.
        shapes: see :func:`shapes_of`; the largest first leaves memory in one piece.
        channels_last: memory format of the images.
        progress: show a bar on standard error.

    Returns:
        Seconds that the visit took.

    Raises:
        ValueError: a shape does not fit into memory.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> def step(images, labels):
        ...     torch.nn.functional.cross_entropy(network(images), labels).backward()
        >>> seconds = visit_shapes(step, network, shapes_of(Regime.fixed(Base(size_px=16, batch_size=4))))
    """
    began = time.perf_counter()
    with preserved(network):
        try:
            for shape in tqdm(list(shapes), desc="visiting shapes", unit="shape", disable=not progress, leave=False):
                _visit(step, shape, device_of(network), channels_last)
                network.zero_grad(set_to_none=True)
        finally:
            network.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory of any kind."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in _NO_MEMORY)


def _visit(
    step: Callable[[torch.Tensor, torch.Tensor], object], shape: InputShape, device: torch.device, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    try:
        images = torch.randn((shape.images, 3, shape.size_px, shape.size_px), device=device)
        step(images.to(memory_format=layout), torch.zeros(shape.images, dtype=torch.int64, device=device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"{shape.images} images of {shape.size_px} px do not fit into the memory of {device}: "
            f"{str(error).splitlines()[0]}; train with a smaller batch, or in microbatches of fewer images"
        ) from error
