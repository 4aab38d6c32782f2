"""YAML recipes, their schema, and the way from a recipe to a Trainer; and the trained network for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixsize.system.packages import load

if TYPE_CHECKING:
    from mixsize.recipes.models.inference import load_at_size as load_at_size

_MODULES = {"models.inference": ("load_at_size",)}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return load(f"{__name__}.{_HOMES[name]}", name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
