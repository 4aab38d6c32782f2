"""From decoded pixels to a view: cut a window out, resize it to the view's side, mirror it.

``pixels`` are always a part of the full image or of a smaller copy, ``(rows, columns, 3)`` uint8, whose first row and
column there are ``top`` and ``left``. Resizing is FFCV's, which is OpenCV's ``INTER_AREA``, or gives the same bytes.
The functions run without the interpreter lock and return a code of :mod:`mixsize.ffcv_loaders.decode.jpegcrop`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from ffcv.libffcv import ctypes_resize

from mixsize.ffcv_loaders.decode.augment import FLIP, FRAME_HEIGHT, FRAME_WIDTH, HEIGHT, LEFT, TOP, WIDTH
from mixsize.ffcv_loaders.decode.copies import BEGIN_X, BEGIN_Y, END_X, END_Y, position_in, source_size
from mixsize.ffcv_loaders.decode.jpegcrop import DONE, NOT_HERE, area, resample


class Scratch(NamedTuple):
    """A thread's memory for the image at hand; all uint8 but ``placed``.

    Attributes:
        stored: its bytes as they are in the file.
        decoded: pixels of a decoded JPEG, or of a part of it.
        padded: a window that reaches over the border, on black.
        resized: the whole frame at the size that the view is cut from.
        placed: int64, ``(2,)``: first column and columns of ``decoded``.
        message: libjpeg's words on a broken file.
    """

    stored: np.ndarray
    decoded: np.ndarray
    padded: np.ndarray
    resized: np.ndarray
    placed: np.ndarray
    message: np.ndarray


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


#: Whether ``area`` may stand in for FFCV's resize.
HAS_AREA = _area_is_opencvs()


@numba.njit(nogil=True)
def cut(pixels, top, left, window, scratch, view):
    """Fill ``view`` with a window of the full image; black where it leaves ``pixels``, which are then all there is."""
    top, left, height, width = window[TOP] - top, window[LEFT] - left, window[HEIGHT], window[WIDTH]
    inside = top >= 0 and left >= 0 and top + height <= pixels.shape[0] and left + width <= pixels.shape[1]
    if height == width == len(view):
        if inside:
            _copy(pixels, top, left, 0, 0, height, width, view)
        else:
            _copy_padded(pixels, top, left, height, width, view)
        if window[FLIP]:
            _mirror(view)
        return DONE
    if inside:
        return _resize(pixels, top, left, height, width, window[FLIP], view)
    canvas = scratch.padded[: height * width * 3].reshape((height, width, 3))
    _copy_padded(pixels, top, left, height, width, canvas)
    return _resize(canvas, 0, 0, height, width, window[FLIP], view)


@numba.njit(nogil=True)
def cuts_from_part(window, height, width, side):
    """Whether a view of the full image, of height x width, needs only the part that its window shows."""
    frame_height, frame_width = window[FRAME_HEIGHT], window[FRAME_WIDTH]
    if frame_height == 0:
        return (
            window[TOP] >= 0
            and window[LEFT] >= 0
            and window[TOP] + window[HEIGHT] <= height
            and window[LEFT] + window[WIDTH] <= width
        )
    return (
        HAS_AREA
        and frame_height <= height
        and frame_width <= width
        and (height % frame_height != 0 or width % frame_width != 0)
        and window[HEIGHT] == side
        and window[WIDTH] == side
        and window[TOP] >= 0
        and window[LEFT] >= 0
        and window[TOP] + side <= frame_height
        and window[LEFT] + side <= frame_width
    )


@numba.njit(nogil=True)
def cut_resized(pixels, top, left, window, height, width, scratch, view):
    """Fill ``view`` with a window of the full image, of height x width, resized to the window's frame size."""
    rows, columns = pixels.shape[0], pixels.shape[1]
    frame_height, frame_width = window[FRAME_HEIGHT], window[FRAME_WIDTH]
    if cuts_from_part(window, height, width, len(view)):
        return area(
            pixels.ctypes.data,
            columns,
            top,
            left,
            rows,
            columns,
            height,
            width,
            frame_height,
            frame_width,
            window[TOP],
            window[LEFT],
            window[FLIP],
            view.ctypes.data,
            len(view),
        )
    frame = scratch.resized[: frame_height * frame_width * 3].reshape((frame_height, frame_width, 3))
    _resize_with_ffcv(pixels, 0, 0, height, width, frame)
    return cut(frame, 0, 0, window, scratch, view)


@numba.njit(nogil=True)
def cut_reduced(pixels, top, left, source, need, image, mirror, view):
    """Fill ``view`` with the part of the image that ``need`` names, out of a smaller copy or a reduced one."""
    rows, columns = pixels.shape[0], pixels.shape[1]
    height, width = source_size(source, image)
    return resample(
        pixels.ctypes.data,
        columns,
        top,
        left,
        rows,
        columns,
        height,
        width,
        position_in(source, need[BEGIN_Y], image.heights),
        min(position_in(source, need[END_Y], image.heights), float(height)),
        position_in(source, need[BEGIN_X], image.widths),
        min(position_in(source, need[END_X], image.widths), float(width)),
        mirror,
        view.ctypes.data,
        len(view),
    )


@numba.njit(nogil=True)
def _resize(frame, top, left, height, width, mirror, view):
    columns, side = frame.shape[1], len(view)
    if HAS_AREA:
        first, out = frame.ctypes.data + (top * columns + left) * 3, view.ctypes.data
        code = area(first, columns, 0, 0, height, width, height, width, side, side, 0, 0, mirror, out, side)
        if code != NOT_HERE:
            return code
    _resize_with_ffcv(frame, top, left, height, width, view)
    if mirror:
        _mirror(view)
    return DONE


@numba.njit(nogil=True)
def _resize_with_ffcv(frame, top, left, height, width, view):
    ctypes_resize(
        0,
        frame.ctypes.data,
        frame.shape[0],
        frame.shape[1],
        top,
        top + height,
        left,
        left + width,
        view.ctypes.data,
        view.shape[0],
        view.shape[1],
    )


@numba.njit(nogil=True)
def _copy_padded(frame, top, left, height, width, canvas):
    canvas[:] = 0
    first_row, first_col = max(0, top), max(0, left)
    rows = min(frame.shape[0], top + height) - first_row
    cols = min(frame.shape[1], left + width) - first_col
    if rows > 0 and cols > 0:
        _copy(frame, first_row, first_col, first_row - top, first_col - left, rows, cols, canvas)


@numba.njit(nogil=True)
def _copy(frame, from_row, from_col, to_row, to_col, rows, cols, canvas):
    for r in range(rows):
        for c in range(cols):
            for channel in range(3):
                canvas[to_row + r, to_col + c, channel] = frame[from_row + r, from_col + c, channel]


@numba.njit(nogil=True)
def _mirror(view):
    side = view.shape[1]
    for r in range(view.shape[0]):
        row = view[r]
        for c in range(side // 2):
            # Channel by channel: as a loop over three this takes twice as long.
            opposite = side - 1 - c
            red, green, blue = row[c, 0], row[c, 1], row[c, 2]
            row[c, 0], row[c, 1], row[c, 2] = row[opposite, 0], row[opposite, 1], row[opposite, 2]
            row[opposite, 0], row[opposite, 1], row[opposite, 2] = red, green, blue
