"""Lets FFCV's own loader and ours run in one process.

FFCV's reader of memory-mapped files sets ``mutable`` on numba's type of a uint8 array, to declare its map read-only.
Numba keeps one object for each type, so the type changes under every function that was compiled for writable arrays
before, and the next compilation of any of them ends in a ``KeyError``. Importing this module leaves the declaration
out: numba sees for itself that the map is read-only, as it does with FFCV's process cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline.compiler import Compiler


def _compile_reader(self: OSCacheManager) -> Callable[..., Any]:
    def read(address, state):
        mapped, starts, sizes = state
        return mapped[address : address + sizes[np.searchsorted(starts, address)]]

    return Compiler.compile(read)


OSCacheManager.compile_reader = _compile_reader
