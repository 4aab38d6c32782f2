"""What decoding a whole JPEG image takes at least: reading its entropy-coded (Huffman) data, timed alone.

libjpeg-turbo's lossless transform, asked for no output, reads every DCT coefficient of an image and stops there: no
inverse transform, no colours, no pixels. The library is the one that FFCV decodes with. Entropy-coded data can only be
read from its start, so a loader that decodes crops alone can save what lies below a crop's last row, and no more.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from typing import Any

import numpy as np

_NO_OUTPUT = 16  # TJXOPT_NOOUTPUT of turbojpeg.h


class _Transform(ctypes.Structure):
    """``tjtransform`` of turbojpeg.h; zeros ask for the whole image, unchanged."""

    _fields_ = (
        ("region", ctypes.c_int * 4),
        ("operation", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("custom_filter", ctypes.c_void_p),
    )


class EntropyDecoder:
    """Reads JPEG images' coefficients; use one for each thread. The interpreter lock is free meanwhile.

    Raises:
        OSError: libturbojpeg is not installed.
    """

    def __init__(self) -> None:
        self._library = _turbojpeg()
        self._handle = self._library.tjInitTransform()
        if not self._handle:
            raise MemoryError(self._error(None))
        self._transform = _Transform(options=_NO_OUTPUT)
        # Where an output would go; left empty.
        self._outputs = (ctypes.c_void_p * 1)()
        self._sizes = (ctypes.c_ulong * 1)()

    def decode(self, jpeg: np.ndarray) -> None:
        """Read an image's coefficients.

        Args:
            jpeg: the bytes of a JPEG file, uint8, contiguous, shape ``(bytes,)``.

        Raises:
            ValueError: not a JPEG, or one that is cut short or damaged.
        """
        assert jpeg.dtype == np.uint8
        assert jpeg.flags.c_contiguous
        failed = self._library.tjTransform(
            self._handle,
            jpeg.ctypes.data,
            jpeg.size,
            1,
            self._outputs,
            self._sizes,
            ctypes.byref(self._transform),
            0,
        )
        if failed:
            raise ValueError(f"not a whole JPEG image: {self._error(self._handle)}")

    def close(self) -> None:
        """Free the library's memory."""
        if self._handle:
            self._library.tjDestroy(self._handle)
            self._handle = None

    def _error(self, handle: int | None) -> str:
        return self._library.tjGetErrorStr2(handle).decode("utf-8", "replace")


@functools.cache
def _turbojpeg() -> Any:
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        raise OSError("libturbojpeg is not installed; on Debian or Ubuntu: apt-get install libturbojpeg0")
    library = ctypes.CDLL(name)
    library.tjInitTransform.restype = ctypes.c_void_p
    library.tjTransform.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
    )
    library.tjDestroy.argtypes = (ctypes.c_void_p,)
    library.tjGetErrorStr2.argtypes = (ctypes.c_void_p,)
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    return library
