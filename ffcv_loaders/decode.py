"""From stored bytes to views: decode, cut, resize, mirror, straight into the batch.

FFCV's own JPEG decoder and area resize do the work, called from compiled code that holds no
interpreter lock. Unlike FFCV's pipeline, one compiled function serves every size, batch and number
of duplicates, scratch memory is kept per thread rather than per sample, and a JPEG that fails to
decode is reported instead of passing on the previous image's pixels.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from ffcv.libffcv import ctypes_imdecode, ctypes_resize

from mixsize.ffcv_loaders.augment import FLIP, FRAME_HEIGHT, FRAME_WIDTH, HEIGHT, LEFT, TOP, WIDTH
from mixsize.ffcv_loaders.beton import Beton, BetonError

# Enough pieces that a slow image does not leave the other threads idle, few enough that the
# interpreter is hardly asked.
_PIECES_PER_THREAD = 4


class Decoder:
    """Decodes batches of one data set with a pool of threads.

    Args:
        beton: the data set.
        threads: decoding threads, at least 1.

    Raises:
        ValueError: ``threads`` below 1.
    """

    def __init__(self, beton: Beton, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        self._beton = beton
        self._data = np.asarray(beton.data)
        self._sides = np.stack([beton.heights, beton.widths], axis=1).astype(np.int64)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mixsize-decode") if threads > 1 else None
        largest = int(self._sides.prod(axis=1).max()) * 3
        # Pages that no image reaches are never touched, so the largest image costs memory only once it comes up.
        self._scratch = [_Scratch(largest) for _ in range(threads)]

    def decode(self, samples: np.ndarray, duplicates: int, windows: np.ndarray, out: np.ndarray) -> None:
        """Fill a batch.

        Args:
            samples: image indices, shape ``(B,)``.
            duplicates: views D of each image.
            windows: shape ``(B * D, 7)``, from :func:`~mixsize.ffcv_loaders.augment.draw_windows`.
            out: destination, uint8, C-contiguous, shape ``(B * D, S, S, 3)``, RGB.

        Raises:
            BetonError: an image that does not decode, named by its index.
        """
        assert out.shape[0] == len(samples) * duplicates == len(windows)
        assert out.flags.c_contiguous
        threads = len(self._scratch)
        piece = max(1, -(-len(samples) // (threads * _PIECES_PER_THREAD)))
        starts = iter(range(0, len(samples), piece)) if threads == 1 else _SharedRange(0, len(samples), piece)

        resized = int((windows[:, FRAME_HEIGHT] * windows[:, FRAME_WIDTH]).max(initial=0)) * 3

        def work(scratch: _Scratch) -> None:
            scratch.fit_resized(resized)
            for start in starts:
                broken = _decode_piece(
                    self._data,
                    self._beton.data_ptr,
                    self._beton.data_size,
                    self._beton.is_jpeg,
                    self._sides,
                    samples[start : start + piece],
                    duplicates,
                    windows[start * duplicates : (start + piece) * duplicates],
                    scratch.frame,
                    scratch.padded,
                    scratch.resized,
                    out[start * duplicates : (start + piece) * duplicates],
                )
                if broken >= 0:
                    raise BetonError(
                        f"{self._beton.path}: image {samples[start + broken]} does not decode as a JPEG; "
                        "the file is damaged: convert the images again"
                    )

        if self._pool is None:
            work(self._scratch[0])
            return
        for future in [self._pool.submit(work, scratch) for scratch in self._scratch]:
            future.result()

    def close(self) -> None:
        """End the threads; waits for the batch in hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


class _Scratch:
    """A thread's memory for the frame at hand: as stored, shifted onto black, and resized."""

    def __init__(self, largest: int) -> None:
        self.frame = np.empty(largest, dtype=np.uint8)
        self.padded = np.empty(largest, dtype=np.uint8)
        self.resized = np.empty(0, dtype=np.uint8)

    def fit_resized(self, num_bytes: int) -> None:
        if self.resized.size < num_bytes:
            self.resized = np.empty(num_bytes, dtype=np.uint8)


class _SharedRange:
    """A range whose items several threads take, each once: advancing a C iterator is atomic."""

    def __init__(self, start: int, stop: int, step: int) -> None:
        self._count = itertools.count(start, step)
        self._stop = stop

    def __iter__(self) -> _SharedRange:
        return self

    def __next__(self) -> int:
        value = next(self._count)
        if value >= self._stop:
            raise StopIteration
        return value


@numba.njit(nogil=True)
def _decode_piece(
    data, data_ptr, data_size, is_jpeg, sides, samples, duplicates, windows, decoded, padded, resized, out
):
    """Returns the first sample (counted within this piece) that failed, or -1."""
    for i in range(len(samples)):
        sample = samples[i]
        height, width = sides[sample, 0], sides[sample, 1]
        start = data_ptr[sample]
        stored = data[start : start + data_size[sample]]
        if is_jpeg[sample]:
            frame = decoded[: height * width * 3].reshape((height, width, 3))
            failed = ctypes_imdecode(
                stored.ctypes.data,
                stored.size,
                height,
                width,
                frame.ctypes.data,
                height,
                width,
                0,
                0,
                1,
                1,
                False,
                False,
            )
            if failed != 0:
                return i
        else:
            frame = stored.reshape((height, width, 3))
        for view in range(i * duplicates, (i + 1) * duplicates):
            window = windows[view]
            source = frame
            if window[FRAME_HEIGHT] > 0:
                pixels = window[FRAME_HEIGHT] * window[FRAME_WIDTH]
                source = resized[: pixels * 3].reshape((window[FRAME_HEIGHT], window[FRAME_WIDTH], 3))
                _resize(frame, 0, 0, height, width, source)
            _cut(source, window[TOP], window[LEFT], window[HEIGHT], window[WIDTH], padded, out[view])
            if window[FLIP]:
                _mirror(out[view])
    return -1


@numba.njit(nogil=True)
def _cut(frame, top, left, height, width, padded, view):
    """Resize the window of ``frame`` to fill ``view``; black where the window leaves the frame."""
    inside = top >= 0 and left >= 0 and top + height <= frame.shape[0] and left + width <= frame.shape[1]
    same_size = height == view.shape[0] and width == view.shape[1]
    if same_size:
        if inside:
            _copy(frame, top, left, 0, 0, height, width, view)
        else:
            _copy_padded(frame, top, left, height, width, view)
    elif inside:
        _resize(frame, top, left, height, width, view)
    else:
        canvas = padded[: height * width * 3].reshape((height, width, 3))
        _copy_padded(frame, top, left, height, width, canvas)
        _resize(canvas, 0, 0, height, width, view)


@numba.njit(nogil=True)
def _resize(frame, top, left, height, width, view):
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
