"""From a ``.beton`` file to batches whose size, batch and duplicates follow a plan.

Rooms, each importing only those before it: ``beton``, ``decode``, ``conversion``, ``pipeline``, then the loaders
themselves. They import the regime from ``mixsize.algorithms`` and no Composer. Names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixsize.system.packages import load

if TYPE_CHECKING:
    from mixsize.ffcv_loaders.beton.info import BetonInfo as BetonInfo
    from mixsize.ffcv_loaders.beton.reader import Beton as Beton
    from mixsize.ffcv_loaders.beton.reader import BetonError as BetonError
    from mixsize.ffcv_loaders.conversion.convert import convert as convert
    from mixsize.ffcv_loaders.decode.augment import CenterCrop as CenterCrop
    from mixsize.ffcv_loaders.decode.augment import PadCrop as PadCrop
    from mixsize.ffcv_loaders.decode.augment import RandomResizedCrop as RandomResizedCrop
    from mixsize.ffcv_loaders.decode.augment import Resize as Resize
    from mixsize.ffcv_loaders.loader import EvalLoader as EvalLoader
    from mixsize.ffcv_loaders.loader import MixSizeLoader as MixSizeLoader
    from mixsize.ffcv_loaders.torch_loader import TorchMixSizeLoader as TorchMixSizeLoader

_MODULES = {
    "beton.info": ("BetonInfo",),
    "beton.reader": ("Beton", "BetonError"),
    "conversion.convert": ("convert",),
    "decode.augment": ("CenterCrop", "PadCrop", "RandomResizedCrop", "Resize"),
    "loader": ("EvalLoader", "MixSizeLoader"),
    "torch_loader": ("TorchMixSizeLoader",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return load(f"{__name__}.{_HOMES[name]}", name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
