"""Binding of ``jpegcrop.c``: decode part of a JPEG, reduced or not, and resize, without the interpreter lock.

``jpeg_crop``, ``area`` and ``resample`` can be called from compiled code. They take addresses, as ``jpegcrop.c``
documents, and return one of the codes below.
"""

from __future__ import annotations

import ctypes

import numpy as np

try:
    from mixsize.ffcv_loaders.decode import _jpegcrop  # pyright: ignore[reportAttributeAccessIssue]
except ImportError as error:
    raise ImportError(
        "mixsize's JPEG decoder is not built: install a wheel of mixsize, or install libjpeg-turbo's header"
        " (libjpeg-dev) and a C compiler and then mixsize again"
    ) from error

DONE, BROKEN, OTHER_SIZE, UNSUPPORTED, NO_ROOM, BAD_CALL, NOT_HERE = range(7)
#: Bytes of the buffer for libjpeg's words on a broken file.
MESSAGE_BYTES = 200

_library = ctypes.CDLL(_jpegcrop.__file__)
_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
jpeg_crop = _library.mixsize_jpeg_crop
jpeg_crop.argtypes = [_pointer, ctypes.c_uint64, *[_int] * 7, _pointer, ctypes.c_uint64, _pointer, _pointer]
area = _library.mixsize_area
area.argtypes = [_pointer, *[_int] * 12, _pointer, _int]
resample = _library.mixsize_resample
resample.argtypes = [_pointer, *[_int] * 7, *[_double] * 4, _int, _pointer, _int]
for _function in (jpeg_crop, area, resample):
    _function.restype = ctypes.c_int32


def decode_whole(data: bytes, height: int, width: int) -> np.ndarray | None:
    """``(height, width, 3)`` uint8 RGB of a JPEG of this size, or None where libjpeg reports an error or a warning."""
    pixels, placed = np.empty((height, width, 3), np.uint8), np.zeros(2, np.int64)
    out = (pixels.ctypes.data, pixels.size, placed.ctypes.data, None)
    code = jpeg_crop(data, len(data), height, width, 1, 0, 0, height, width, *out)
    return pixels if code == DONE else None


def explain(code: int, message: np.ndarray) -> str:
    """Why an image did not decode, from the code and the message buffer."""
    words = message.tobytes().split(b"\0")[0].decode("ascii", "replace")
    if code == BROKEN:
        return words
    if code == OTHER_SIZE:
        return f"the index gives another size, {words}"
    if code == UNSUPPORTED:
        return "it is not 8-bit grey, YCbCr or RGB"
    assert code == NO_ROOM, f"code {code}: a call that jpegcrop.c does not allow"
    return "memory ran out"
