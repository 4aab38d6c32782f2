"""Put a network and the random generators back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Restore training modes, buffers and random states when the block ends, also after an exception.

    Covers the generators of Python, NumPy and PyTorch, and the one of the network's CUDA device.
    """
    # Module by module: a network may train partly, and its own train() may do more than set the flag.
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    device = device_of(network)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU for a network without any."""
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
