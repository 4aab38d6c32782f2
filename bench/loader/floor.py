"""The floor of decoding whole JPEG images: libjpeg-turbo reads the entropy-coded (Huffman) data and does little else.

It decodes to greyscale at an eighth of the size: of every block it passes over all coefficients, and keeps one. No
transform is left, and no colours. (``jpeg_read_coefficients``, which keeps all of them, takes half as long again: a
buffer for the whole image is no part of streaming decoders, and would put the floor above them.)
"""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from typing import Any

_GREY = 6  # TJPF_GRAY of turbojpeg.h
_REDUCED_BY = 8


def open_turbojpeg() -> Any:
    """The system's libturbojpeg, for :func:`read_entropy_code`."""
    library = ctypes.CDLL(find_library("turbojpeg"))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.tjInitDecompress.restype = pointer
    library.tjDecompress2.argtypes = (pointer, pointer, ctypes.c_ulong, pointer, *[integer] * 5)
    library.tjDestroy.argtypes = (pointer,)
    return library


def read_entropy_code(library: Any, jpeg: bytes, height: int, width: int) -> None:
    """Read all of a JPEG file of ``height`` x ``width`` px; the interpreter lock is free meanwhile.

    Raises:
        ValueError: not a whole JPEG file.
    """
    rows, columns = -(-height // _REDUCED_BY), -(-width // _REDUCED_BY)
    pixels = ctypes.create_string_buffer(rows * columns)
    handle = library.tjInitDecompress()
    failed = library.tjDecompress2(handle, jpeg, len(jpeg), pixels, columns, 0, rows, _GREY, 0)
    library.tjDestroy(handle)
    if failed:
        raise ValueError("not a whole JPEG file")
