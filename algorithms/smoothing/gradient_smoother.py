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
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

#: When the average takes in the step's own norm: before it is used (released code) or after.
Update = Literal["before", "after"]

#: Parameters of which each rank holds a part, and the process group over which the parts make the whole.
Shards = tuple[Iterable[Tensor], torch.distributed.ProcessGroup]


class Smoothing(NamedTuple):
    """What one step did, as 0-dimensional tensors on the gradients' device."""

    #: L2 norm over all gradients, before smoothing.
    grad_norm: Tensor
    #: The running average after the step; NaN while no norm has been finite.
    average: Tensor
    #: What the gradients were multiplied by.
    factor: Tensor


def smooth_norm(
    norm: Tensor, average: Tensor, *, alpha: float = 0.9, eps: float = 1e-6, update: Update = "before"
) -> Smoothing:
    """One step of the recurrence, without a branch on a device's value.

    ``average' = alpha * average + (1 - alpha) * norm``; the factor is ``average' / (norm + eps)`` with
    ``update="before"`` and ``average / (norm + eps)`` with ``update="after"``. Where ``average`` is NaN (none yet),
    ``average' = norm`` and the factor is 1. Where ``norm`` is not finite, the average stays and the factor is 1.

    Args:
        norm: of the step's gradients, 0-dimensional.
        average: of the steps before, 0-dimensional, or NaN.
        alpha: share of the old average kept in each step.
        eps: added to the denominator, in units of the norm.
        update: ``"before"`` or ``"after"`` use.

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
    """Global L2 norm over the gradients of ``parameters``, 0-dimensional, on their device; nothing is changed.

    Args:
        parameters: those without a gradient are passed over.

    Returns:
        None where no parameter has a gradient.

    Raises:
        ValueError: a sparse gradient, or a DTensor gradient not yet summed over its mesh.
    """
    sets = _by_layout(_gradients(parameters))
    return _norm_of_sets(sets) if sets else None


class GradientSmoother:
    """Scales gradients so that their global L2 norm follows its running average.

    Nothing is read back to the host: norms, averages and factors stay on the gradients' device.

    Args:
        alpha: share of the old average kept in each step, in [0, 1).
        eps: added to the norm in the denominator, above 0; 1e-6 as in the released code.
        update: ``"before"``: the average takes in the step's norm and is then used (the paper's equation and the
            released code); ``"after"``: the step is scaled by the average of the steps before it.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> smoother = GradientSmoother()
        >>> parameters = list(model.parameters())
        >>> for images, labels in loader:
        ...     optimizer.zero_grad()
        ...     loss_fn(model(images), labels).backward()
        ...     smoother.smooth(parameters)
        ...     optimizer.step()
    """

    def __init__(self, alpha: float = 0.9, eps: float = 1e-6, update: Update = "before") -> None:
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha is {alpha}; it must lie in [0, 1)")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps is {eps}; it must be above 0 and finite")
        if update not in get_args(Update):
            raise ValueError(f"update is {update!r}; it must be one of {', '.join(map(repr, get_args(Update)))}")
        self.alpha, self.eps, self.update = alpha, eps, update
        #: Steps that found gradients, those left alone for a norm that was not finite included.
        self.steps = 0
        #: Key -> average. A number comes from a state and becomes a tensor where the gradients are.
        self._averages: dict[int | None, Tensor | float] = {}

    def __repr__(self) -> str:
        return f"GradientSmoother(alpha={self.alpha}, eps={self.eps}, update={self.update!r})"

    @torch.no_grad()
    def smooth(
        self, parameters: Iterable[Tensor], *, key: int | None = None, sharded: Sequence[Shards] = ()
    ) -> Smoothing | None:
        """Multiply the gradients of ``parameters`` by the step's factor, in place.

        Call it once a step, between the last ``backward()`` and the optimiser's ``step()``; with gradient scaling,
        after ``scaler.unscale_()``. The first step, and a step whose norm is not finite, leave the gradients as they
        are, bit for bit; the latter leaves the average too, so that a GradScaler can skip the step.

        Gradients of DDP are whole on every rank and need no communication. DTensor gradients (FSDP2, tensor
        parallelism) are recognised and cost one all-reduce of a number for each way of sharding.

        Args:
            parameters: of any devices and dtypes; those without a gradient are passed over. A list is quicker than a
                generator that walks the modules.
            key: which of several averages to use, for instance the image side in pixels; created when first met.
            sharded: further parameters whose plain gradients are this rank's part (FSDP1), by process group; every
                rank must pass the same groups in the same order.

        Returns:
            The step's norm, average and factor, or None where no parameter has a gradient: nothing changes then.

        Raises:
            ValueError: a sparse gradient, or a DTensor gradient not yet summed over its mesh.
        """
        sets = [*_by_layout(_gradients(parameters)), *_by_group(sharded)]
        if not sets:
            return None
        norm = _norm_of_sets(sets)
        step = smooth_norm(norm, self._average(key, norm), alpha=self.alpha, eps=self.eps, update=self.update)
        for gradients, _ in sets:
            for group in _alike(gradients):
                # The factor keeps its precision: in float16 it could overflow, and bfloat16 has 8 bits.
                torch._foreach_mul_(group, step.factor.to(group[0].device))
        self._averages[key] = step.average
        self.steps += 1
        return step

    def state_dict(self) -> dict[str, Any]:
        """Averages and step count in plain values; reads them from the device."""
        return {"steps": self.steps, "averages": [[key, float(value)] for key, value in self._averages.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up averages and step count, whatever device they were saved from."""
        self.steps = int(state["steps"])
        self._averages = {key: float(value) for key, value in state["averages"]}

    def _average(self, key: int | None, norm: Tensor) -> Tensor:
        average = self._averages.get(key, math.nan)
        if isinstance(average, Tensor):
            return average.to(norm)
        return torch.full_like(norm, average)


#: How a set of gradients is spread over ranks: not at all, over a process group, or over a mesh.
_Spread = torch.distributed.ProcessGroup | tuple[Any, tuple[Any, ...]] | None


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def _by_layout(gradients: list[Tensor]) -> list[tuple[list[Tensor], _Spread]]:
    """Whole gradients first, then the local parts of DTensors by mesh and placements."""
    whole = [gradient for gradient in gradients if type(gradient) is Tensor]
    if len(whole) == len(gradients):
        return [(whole, None)] if whole else []
    sets: dict[_Spread, list[Tensor]] = {None: whole} if whole else {}
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            sets.setdefault((gradient.device_mesh, gradient.placements), []).append(gradient.to_local())
        elif type(gradient) is not Tensor:
            sets.setdefault(None, []).append(gradient)
    return [(part, spread) for spread, part in sets.items()]


def _by_group(sharded: Sequence[Shards]) -> list[tuple[list[Tensor], _Spread]]:
    sets: list[tuple[list[Tensor], _Spread]] = []
    for parameters, group in sharded:
        parameters = list(parameters)
        # A rank without a gradient in its part still owes the others its zero.
        sets.append((_gradients(parameters) or [parameters[0].new_zeros(())], group))
    return sets


def _norm_of_sets(sets: list[tuple[list[Tensor], _Spread]]) -> Tensor:
    norms = [_norm(*part) for part in sets]
    return norms[0] if len(norms) == 1 else _norm_of_norms(norms)


def _norm(gradients: list[Tensor], spread: _Spread) -> Tensor:
    try:
        local = _norm_of_norms([norm for group in _alike(gradients) for norm in _norms(group)])
    except RuntimeError as error:
        # Looked for only now: a question to each gradient costs as much as collecting it.
        layouts = {str(g.layout) for g in gradients if g.layout != torch.strided}
        if not layouts:
            raise
        raise ValueError(f"gradient smoothing needs dense gradients, not {', '.join(layouts)}") from error
    if spread is None:
        return local
    if isinstance(spread, torch.distributed.ProcessGroup):
        square = local.square()
        torch.distributed.all_reduce(square, group=spread)
        return square.sqrt()
    mesh, placements = spread
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"a gradient has placements {placements}: not yet summed over its mesh")
    summed = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    return DTensor.from_local(local.square(), mesh, summed, run_check=False).full_tensor().sqrt()


def _norms(group: list[Tensor]) -> Sequence[Tensor]:
    narrow = group[0].dtype in (torch.float16, torch.bfloat16)
    return torch._foreach_norm(group, 2, dtype=torch.float32 if narrow else None)


def _norm_of_norms(norms: list[Tensor]) -> Tensor:
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def _alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Groups of one device and dtype, which multi-tensor kernels need."""
    return [lists[0] for lists, _ in _group_tensors_by_device_and_dtype([tensors]).values()]
