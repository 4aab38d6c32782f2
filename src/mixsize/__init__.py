"""Mixed image sizes for Composer and timm.

The public names of :mod:`mixsize.algorithms`, :mod:`mixsize.ffcv_loaders` and :mod:`mixsize.recipes` can be imported
from here.
They load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixsize.algorithms import *
    from mixsize.ffcv_loaders import *
    from mixsize.recipes import *

__version__ = "0.2.0"

_PACKAGES = ("mixsize.algorithms", "mixsize.ffcv_loaders", "mixsize.recipes")


def __getattr__(name: str) -> Any:
    for package in map(import_module, _PACKAGES):
        if name in package.__all__:
            return getattr(package, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", *(name for package in map(import_module, _PACKAGES) for name in package.__all__)]
