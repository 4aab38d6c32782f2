"""FFCV's JPEG decoder, reached through its shared library: importing the ``ffcv`` package takes seconds."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import numpy as np


@functools.cache
def ffcv_library() -> ctypes.CDLL:
    """FFCV's shared library.

    Raises:
        ImportError: FFCV is not installed, or not wholly.
    """
    spec = importlib.util.find_spec("ffcv")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the ffcv package is not installed")
    found = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("_libffcv*")]
    if not found:
        raise ImportError(f"ffcv's compiled library is missing from {list(spec.submodule_search_locations)}")
    library = ctypes.CDLL(os.fspath(found[0]))
    pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
    library.imdecode.argtypes = [pointer, ctypes.c_uint64, u32, u32, pointer, *[u32] * 6, ctypes.c_bool, ctypes.c_bool]
    library.imdecode.restype = ctypes.c_int
    return library


def decode_as_ffcv_does(data: bytes, height: int, width: int) -> np.ndarray | None:
    """``(height, width, 3)`` uint8 pixels of a JPEG, or None where libjpeg reports an error or a warning."""
    source = np.frombuffer(data, np.uint8)
    pixels = np.empty((height, width, 3), np.uint8)
    failed = ffcv_library().imdecode(
        source.ctypes.data, source.size, height, width, pixels.ctypes.data, height, width, 0, 0, 1, 1, False, False
    )
    return None if failed else pixels
