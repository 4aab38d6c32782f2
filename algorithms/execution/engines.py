"""Training passes run eagerly, compiled, or replayed from CUDA graphs.

On small networks launching kernels takes more time than arithmetic; compilation and graphs cut it. Both are made for
one shape, at its first step; a regime has few shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast, get_args

import torch
from torch import nn

from mixsize.algorithms.execution.preservation import preserved

log = logging.getLogger(__name__)

Engine = Literal["eager", "compile", "cuda_graphs"]
Passes = Callable[[torch.Tensor], torch.Tensor]
# As PyTorch advises.
_WARMUP_PASSES = 3


def training_passes(network: nn.Module, engine: Engine, num_shapes: int) -> Passes:
    """A callable to use in place of a network in training steps.

    The network itself stays: evaluate and save it as usual.

    Args:
        network: takes images ``(N, 3, S, S)`` alone.
        engine: ``eager``: the network itself. ``compile``: ``torch.compile``, with static shapes. ``cuda_graphs``:
            forward and backward pass captured in CUDA graphs. A graph returns the same memory at every step: gradients
            must be None when a step begins, and a step may have only one backward pass.
        num_shapes: number of shapes that will be trained on; see :func:`~mixsize.algorithms.shapes_of`.

    Raises:
        ValueError: another engine, or ``cuda_graphs`` for a network that is not on a GPU.

    Example:
        >>> network = torch.nn.Conv2d(3, 8, 3)
        >>> passes = training_passes(network, "eager", num_shapes=4)
        >>> passes(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 8, 14, 14])
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(get_args(Engine))}")
    if engine == "compile":
        _allow_recompilations(num_shapes)
        return torch.compile(network, dynamic=False)
    if engine == "cuda_graphs":
        device = next(network.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"engine is 'cuda_graphs', which needs a CUDA device; the network is on {device}")
        return ShapeGraphs(network, num_shapes)
    return network


def _allow_recompilations(count: int) -> None:
    """Raise PyTorch's limit of 8 compilations per function, after which it silently runs eagerly."""
    # Imported here: it takes a second, and the other engines do not need it.
    from torch._dynamo import config

    key = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, key, max(getattr(config, key), count))


class ShapeGraphs:
    """Captures a network's passes in a pair of CUDA graphs for each shape, at its first step.

    In evaluation mode, and for shapes beyond the expected number, the network runs eagerly.

    Args:
        network: takes images ``(N, 3, S, S)`` alone; on a CUDA device. Its parameters must stay where they are in
            memory, as optimisers leave them.
        num_shapes: number of shapes to capture; each keeps the memory that it trains in.
        capture: makes the graphs of one shape; by default :func:`capture_passes`.
    """

    def __init__(
        self,
        network: nn.Module,
        num_shapes: int,
        capture: Callable[[nn.Module, torch.Tensor], Passes] | None = None,
    ) -> None:
        self._network = network
        self._num_shapes = num_shapes
        self._capture = capture or _capture_in(torch.cuda.graph_pool_handle())
        self._graphs: dict[tuple[object, ...], Passes] = {}
        self._full = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The network's outputs for a batch."""
        if not (self._network.training and torch.is_grad_enabled()):
            return self._network(images)
        key = (images.shape, images.dtype, images.stride(), torch.is_autocast_enabled(images.device.type))
        if key not in self._graphs:
            if len(self._graphs) == self._num_shapes:
                self._warn(images)
                return self._network(images)
            self._graphs[key] = self._capture_apart(images)
        return self._graphs[key](images)

    def _capture_apart(self, images: torch.Tensor) -> Passes:
        """Capture; the trial passes leave the network's buffers and the random state as they were."""
        with preserved(self._network):
            return self._capture(self._network, images)

    def _warn(self, images: torch.Tensor) -> None:
        if not self._full:
            log.warning(
                "a batch of shape %s exceeds the %d shapes captured in CUDA graphs: it runs eagerly",
                tuple(images.shape),
                self._num_shapes,
            )
        self._full = True


def _capture_in(pool: tuple[int, int]) -> Callable[[nn.Module, torch.Tensor], Passes]:
    """Capture into one pool of memory: no two shapes run at the same time."""

    def capture(network: nn.Module, images: torch.Tensor) -> Passes:
        # Capturing replaces the forward method of its module, once for each shape; the network keeps its own.
        shell = _Shell(network)
        with _autocast_without_cache(images.device.type):
            captured = torch.cuda.make_graphed_callables(
                shell, (torch.randn_like(images),), num_warmup_iters=_WARMUP_PASSES, pool=pool
            )
            return cast(Passes, captured)

    return capture


def _autocast_without_cache(device_type: str) -> AbstractContextManager[object]:
    """The current autocast without its cache of cast weights, which would outlive the capture."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, torch.get_autocast_dtype(device_type), cache_enabled=False)


class _Shell(nn.Module):
    """A separate module around a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)
