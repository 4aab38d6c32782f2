"""A pass of every shape before training: kernels chosen, memory reserved, a shape that does not fit named at once.

Under a regime the first steps of each shape are slow, as convolutions are tuned, networks compiled and memory reserved
in them, and the largest shape may come up only after hours. A regime has few shapes, so all can be visited beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from mixsize.algorithms.regime.shapes import InputShape

# What CPU memory, cuDNN and cuBLAS say when there is too little; PyTorch has a class of its own only for CUDA memory.
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

    Afterwards the network's buffers (batch-norm statistics) and PyTorch's random state are as before, and its
    gradients are None.

    Args:
        step: forward pass, loss and backward pass of images ``(N, 3, S, S)`` and int64 labels ``(N,)``, all of class
            0; it must not move the parameters.
        network: what ``step`` trains.
        shapes: see :func:`shapes_of`; the largest first leaves memory in one piece.
        channels_last: memory format of the images.
        progress: show a bar on standard error.

    Returns:
        Seconds that it took.

    Raises:
        ValueError: a shape that does not fit into memory.
    """
    began = time.perf_counter()
    device = next(network.parameters()).device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with _kept(network, device):
        for shape in tqdm(list(shapes), desc="visiting shapes", unit="shape", disable=not progress, leave=False):
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
            network.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, of whichever kind."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in _NO_MEMORY)


@contextmanager
def _kept(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave buffers, modes and random state as they were."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    modes = [(module, module.training) for module in network.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            network.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, training in modes:
                module.training = training
