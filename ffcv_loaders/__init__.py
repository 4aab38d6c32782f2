"""From a .beton file to batches whose size, batch and duplicates follow a plan.

Names load on first use, so that plans need neither torch nor FFCV.
"""

from __future__ import annotations

from typing import Any

from mixsize.packages import load

_HOMES = {
    "Beton": "beton",
    "BetonError": "beton",
    "BetonInfo": "beton",
    "CenterCrop": "augment",
    "EpochPlan": "plan",
    "EvalLoader": "loader",
    "MixSizeLoader": "loader",
    "PadCrop": "augment",
    "RandomResizedCrop": "augment",
    "Resize": "augment",
    "Step": "plan",
    "TorchMixSizeLoader": "torch_loader",
    "plan_epoch": "plan",
    "plan_evaluation": "plan",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return load(f"{__name__}.{_HOMES[name]}", name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
