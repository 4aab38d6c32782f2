"""Binding of ``jpegcrop.c``: decode part of a JPEG, reduced or not, and resize, without the interpreter lock.

``jpeg_crop``, ``area`` and ``resample`` can be called from compiled code; they take addresses, as ``jpegcrop.c``
documents, and return one of the codes below. Where the extension was not built they refuse every call.
"""

from __future__ import annotations

import ctypes
import functools
import warnings

import numba
import numpy as np
from ffcv.libffcv import ctypes_resize

try:
    from mixsize.ffcv_loaders.decode import _jpegcrop
except ImportError:
    _jpegcrop = None

DONE, BROKEN, OTHER_SIZE, UNSUPPORTED, NO_ROOM, BAD_CALL, NOT_HERE = range(7)
#: Bytes of the buffer that libjpeg's words on a broken file are written to.
MESSAGE_BYTES = 200


@numba.njit(nogil=True)
def _refuse(*arguments):
    return NOT_HERE


def _area_is_opencvs() -> bool:
    """Whether ``area`` gives the bytes of FFCV's OpenCV, of which there are many versions and builds."""
    pixels = np.random.default_rng(0).integers(0, 256, (97, 89, 3), np.uint8)
    for height, width, side in ((97, 89, 32), (64, 89, 63), (33, 40, 32), (97, 50, 7)):
        image = np.ascontiguousarray(pixels[:height, :width])
        ours, theirs = np.zeros((2, side, side, 3), np.uint8)
        size = (height, width)
        code = area(image.ctypes.data, width, 0, 0, *size, *size, side, side, 0, 0, 0, ours.ctypes.data, side)
        ctypes_resize(0, image.ctypes.data, *size, 0, height, 0, width, theirs.ctypes.data, side, side)
        if code != DONE or not np.array_equal(ours, theirs):
            return False
    return True


if _jpegcrop is None:
    jpeg_crop = area = resample = _refuse
else:
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

#: Whether ``area`` may stand in for FFCV's resize; it refuses every call where it may not.
HAS_AREA = _jpegcrop is not None and _area_is_opencvs()
if not HAS_AREA:
    area = _refuse


@functools.cache
def is_built() -> bool:
    """Whether the extension is there; warns where it is not, once a process."""
    if _jpegcrop is None:
        warnings.warn(
            "mixsize's JPEG decoder is not built, so FFCV's decodes every image whole, which takes two to four times as"
            " long: install libjpeg-turbo's header (libjpeg-dev) and a C compiler, then install mixsize again",
            stacklevel=2,
        )
    return _jpegcrop is not None


def explain(code: int, message: np.ndarray) -> str:
    """Why an image did not decode, from the code and what is in the message buffer."""
    words = message.tobytes().split(b"\0")[0].decode("ascii", "replace")
    if code == BROKEN:
        return words
    if code == OTHER_SIZE:
        return f"the index gives another size, {words}"
    if code == UNSUPPORTED:
        return "it is not 8-bit grey, YCbCr or RGB"
    assert code == NO_ROOM, f"code {code}: a call that jpegcrop.c does not allow"
    return "memory ran out"
