"""Binding of ``mapguard.c``: a mapped file that is cut short under its reader does not end the process."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref

import numpy as np

try:
    from mixsize.ffcv_loaders.decode import _jpegcrop
except ImportError:
    _library = None
else:
    _library = ctypes.CDLL(_jpegcrop.__file__)
    _library.mixsize_guard.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    _library.mixsize_missing.argtypes = _library.mixsize_release.argtypes = [ctypes.c_int32]
    _library.mixsize_missing.restype = ctypes.c_int64
    _library.mixsize_release.restype = None
_lock = threading.Lock()


class MapGuard:
    """Has the pages of a mapped file that are gone read as zeros, and counts them.

    Where the extension is not built, or not for this system, nothing is guarded and nothing counted.

    Args:
        mapped: the whole mapped file, ``(bytes,)`` uint8; guarded until its mapping goes.
    """

    def __init__(self, mapped: np.memmap) -> None:
        self._slot = -1
        if _library is None or not sys.platform.startswith("linux"):
            return
        with _lock:
            self._slot = _library.mixsize_guard(mapped.ctypes.data, mapped.size)
        if self._slot >= 0:
            # The mmap, not the array: views of the array keep the former alone.
            weakref.finalize(mapped._mmap, self._release).atexit = False  # Threads may read until the very end.

    def _release(self) -> None:
        # Its place may be another file's next.
        slot, self._slot = self._slot, -1
        _library.mixsize_release(slot)

    @property
    def missing_pages(self) -> int:
        """Pages that were read and were not there."""
        return 0 if self._slot < 0 else int(_library.mixsize_missing(self._slot))
