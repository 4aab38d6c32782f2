"""Gradient smoothing for a bare PyTorch loop; needs torch alone.

Paper: MixSize (ICLR 2021 submission), section "Gradient smoothing": ``gbar_t = a * gbar_{t-1} + (1 - a) * g_t``
with ``gbar_0 = g_0``, gradients times ``gbar_t / g_t``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

#: When the average takes in the step's own norm: before it is used (released code) or after.
Update = Literal["before", "after"]


class Smoothing(NamedTuple):
    """One step, as 0-dimensional tensors on the gradients' device.

    Attributes:
        grad_norm: L2 norm over all gradients, before smoothing.
        average: the running average after the step; NaN while no norm has been finite.
        factor: the number that the gradients were multiplied by.
    """

    grad_norm: Tensor
    average: Tensor
    factor: Tensor


def smooth_norm(
    norm: Tensor, average: Tensor, *, alpha: float = 0.9, eps: float = 1e-6, update: Update = "before"
) -> Smoothing:
    """One step of the recurrence, without a branch on a device's value.

    ``average' = alpha * average + (1 - alpha) * norm``; the factor is ``average' / (norm + eps)`` with
    ``update="before"`` and ``average / (norm + eps)`` with ``update="after"``. If ``average`` is NaN (none yet),
    ``average' = norm`` and the factor is 1. If ``norm`` is not finite, the average stays and the factor is 1.

    Args:
        norm: of the step's gradients, 0-dimensional.
        average: of the preceding steps, 0-dimensional, or NaN.
        alpha: share of the old average kept in each step.
        eps: added to the denominator, in units of the norm.
        update: see :class:`GradientSmoother`.

    Example:
        >>> smooth_norm(torch.tensor(2.0), torch.tensor(1.0))  # 0.9 * 1 + 0.1 * 2 = 1.1, and 1.1 / 2
        Smoothing(grad_norm=tensor(2.), average=tensor(1.1000), factor=tensor(0.5500))
    """
    first, finite = average.isnan(), norm.isfinite()
    updated = torch.where(first, norm, average.lerp(norm, 1 - alpha))
    used = updated if update == "before" else average
    factor = (used / (norm + eps)).masked_fill(first | ~finite, 1.0)
    return Smoothing(norm, torch.where(finite, updated, average), factor)


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor | None:
    """Global L2 norm over the gradients of ``parameters``, 0-dimensional, on their device.

    Returns:
        None if no parameter has a gradient.

    Raises:
        ValueError: a sparse gradient that this PyTorch has no norm of, or a DTensor gradient not yet summed over
            its mesh.
    """
    sets = _by_layout(parameters)
    return _norm_of_norms([_norm(*part) for part in sets]) if sets else None


class GradientSmoother:
    """Scales gradients so that their global L2 norm follows its running average.

    Nothing is read back to the host: norms, averages and factors stay on the gradients' device.

    Args:
        alpha: share of the old average kept in each step, in [0, 1).
        eps: added to the norm in the denominator, above 0; 1e-6 as in the released code.
        update: ``"before"``: the average takes in the step's norm before it is used (the paper's equation and its
            released code). ``"after"``: the step is scaled by the average of the preceding steps.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> network = torch.nn.Linear(4, 2)
        >>> smoother, optimizer = GradientSmoother(), torch.optim.SGD(network.parameters(), lr=0.1)
        >>> for step in range(3):
        ...     optimizer.zero_grad()
        ...     network(torch.rand(8, 4)).square().mean().backward()
        ...     smoothing = smoother.smooth(network.parameters())
        ...     optimizer.step()
        >>> smoother.steps
        3
    """

    def __init__(self, alpha: float = 0.9, eps: float = 1e-6, update: Update = "before") -> None:
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha is {alpha}; it must lie in [0, 1)")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps is {eps}; it must be above 0 and finite")
        if update not in get_args(Update):
            raise ValueError(f"update is {update!r}; it must be one of {', '.join(map(repr, get_args(Update)))}")
        self.alpha, self.eps = alpha, eps
        self.update: Update = update
        #: Steps with gradients, including those whose norm was not finite.
        self.steps = 0
        #: Key -> average: a number after loading, then a tensor on the gradients' device.
        self._averages: dict[int | None, Tensor | float] = {}

    def __repr__(self) -> str:
        return f"GradientSmoother(alpha={self.alpha}, eps={self.eps}, update={self.update!r})"

    @torch.no_grad()
    def smooth(self, parameters: Iterable[Tensor], *, key: int | None = None) -> Smoothing | None:
        """Multiply the gradients of ``parameters`` by the step's factor, in place.

        Call it once per step, between the last ``backward()`` and the optimiser's ``step()``; with gradient scaling,
        after ``scaler.unscale_()``. The first step and a step whose norm is not finite leave the gradients as they are,
        bit for bit. A norm that is not finite also leaves the average, so that a GradScaler can skip the step.

        Gradients of DDP are whole on every rank and need no communication. DTensor gradients (FSDP2, tensor
        parallelism) cost one all-reduce of a number for each way of sharding. FSDP1 is not supported: its gradients
        are plain tensors that hold one rank's part.

        Args:
            parameters: of any devices and dtypes; those without a gradient are skipped.
            key: which of several averages to use, for instance the image side in pixels; created at first use.

        Returns:
            The step's norm, average and factor; None, and nothing changes, if no parameter has a gradient.

        Raises:
            ValueError: a sparse gradient that this PyTorch has no norm of, or a DTensor gradient not yet summed over
                its mesh.
        """
        sets = _by_layout(parameters)
        if not sets:
            return None
        norm = _norm_of_norms([_norm(*part) for part in sets])
        step = smooth_norm(norm, self._average(key, norm), alpha=self.alpha, eps=self.eps, update=self.update)
        for gradients, _ in sets:
            for group in _alike(gradients):
                # The factor keeps its precision: in float16 it could overflow, and bfloat16 has 8 bits.
                torch._foreach_mul_(group, step.factor.to(group[0].device))  # pyright: ignore[reportPrivateImportUsage]
        self._averages[key] = step.average
        self.steps += 1
        return step

    def state_dict(self) -> dict[str, Any]:
        """Averages and step count in plain values, copied from the device."""
        return {"steps": self.steps, "averages": [[key, float(value)] for key, value in self._averages.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore averages and step count."""
        self.steps = int(state["steps"])
        self._averages = {key: float(value) for key, value in state["averages"]}

    def _average(self, key: int | None, norm: Tensor) -> Tensor:
        average = self._averages.get(key, math.nan)
        if isinstance(average, Tensor):
            return average.to(norm)
        return torch.full_like(norm, average)


#: The mesh and placements of sharded gradients; None for whole ones.
_Sharding = tuple[DeviceMesh, tuple[Placement, ...]] | None


def _by_layout(parameters: Iterable[Tensor]) -> list[tuple[list[Tensor], _Sharding]]:
    """Whole gradients, and the local parts of DTensors by mesh and placements."""
    sets: dict[_Sharding, list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            sets.setdefault((gradient.device_mesh, gradient.placements), []).append(gradient.to_local())
        elif gradient is not None:
            sets.setdefault(None, []).append(gradient)
    return [(part, sharding) for sharding, part in sets.items()]


def _norm(gradients: list[Tensor], sharding: _Sharding) -> Tensor:
    try:
        local = _norm_of_norms([norm for group in _alike(gradients) for norm in _norms(group)])
    except RuntimeError as error:
        # Asking every gradient for its layout beforehand would cost as much as collecting them.
        layouts = {str(g.layout) for g in gradients if g.layout != torch.strided}
        if not layouts:
            raise
        raise ValueError(f"gradient smoothing needs dense gradients, not {', '.join(layouts)}") from error
    if sharding is None:
        return local
    mesh, placements = sharding
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"a gradient has placements {placements}: not yet summed over its mesh")
    summed = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    return DTensor.from_local(local.square(), mesh, summed, run_check=False).full_tensor().sqrt()


def _norms(group: list[Tensor]) -> Sequence[Tensor]:
    narrow = group[0].dtype in (torch.float16, torch.bfloat16)
    return torch._foreach_norm(group, 2, dtype=torch.float32 if narrow else None)  # pyright: ignore[reportPrivateImportUsage]


def _norm_of_norms(norms: list[Tensor]) -> Tensor:
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def _alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Groups of one device and dtype, which multi-tensor kernels need."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
