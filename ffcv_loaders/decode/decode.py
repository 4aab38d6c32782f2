"""From stored bytes to views: decode, cut, resize, mirror, straight into the batch.

A JPEG is decoded only where its views need it, from the stored copy and at the ratio that ``copies`` finds cheapest, by
``jpegcrop``. A view that is read from the full image at its full size has, to the last bit, the pixels of FFCV's
decoder and resize. Unlike FFCV's pipeline, one compiled function serves every size, batch and number of duplicates,
without the interpreter lock; scratch memory is kept per thread rather than per sample, and a JPEG that fails to decode
is reported instead of passing on the previous image's pixels.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import FLIP, FRAME_HEIGHT, FRAME_WIDTH
from mixsize.ffcv_loaders.decode.copies import (
    RATIOS,
    SERVES,
    WHOLE,
    cheapest,
    crop_in,
    empty_groups,
    group_views,
    levels_of,
    shown_part,
    sources_that_serve,
)
from mixsize.ffcv_loaders.decode.cut import Scratch, cut, cut_reduced, cut_resized, cuts_from_part
from mixsize.ffcv_loaders.decode.jpegcrop import DONE, MESSAGE_BYTES, explain, jpeg_crop

#: Default of ``min_oversampling`` for training, by `mixsize bench fidelity`: 35 dB or more on average at every size.
MIN_OVERSAMPLING = 1.0
#: The default for evaluation, whose centre crops need more for the same fidelity.
EVALUATION_MIN_OVERSAMPLING = 1.1

# Enough pieces that a slow image does not leave the other threads idle, few enough that the
# interpreter is hardly asked.
_PIECES_PER_THREAD = 4

#: A code beside those of ``jpegcrop``: the file's bytes could not be read.
UNREADABLE = -1

_pread = ctypes.CDLL(None).pread
_pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
_pread.restype = ctypes.c_ssize_t


class Decoder:
    """Decodes batches of one data set with a pool of threads.

    Args:
        beton: the data set.
        num_workers: decoding threads, at least 1.
        min_oversampling: a view is read from a smaller copy of its image where its window measures this many times the
            view's side S or more in the copy, along both axes; above 0. With ``math.inf`` every view is read from the
            full image at its full size.

    Raises:
        ValueError: ``num_workers`` below 1, or ``min_oversampling`` not above 0.
    """

    def __init__(self, beton: Beton, num_workers: int, min_oversampling: float = MIN_OVERSAMPLING) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
        if not min_oversampling > 0:
            raise ValueError(f"min_oversampling is {min_oversampling}; it must be above 0")
        self._file = beton.file
        self._levels = beton.levels
        self._num_workers = num_workers
        self._min_oversampling = float(min_oversampling)
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="mixsize-decode") if num_workers > 1 else None
        stored = int(beton.levels.data_size.max())
        decoded = int((beton.heights * beton.widths).max()) * 3
        # Pages that no image reaches are never touched, so the largest image costs memory only once it comes up.
        self._scratch: queue.SimpleQueue[Scratch] = queue.SimpleQueue()
        for _ in range(num_workers):
            self._scratch.put(
                Scratch(
                    stored=np.empty(stored, np.uint8),
                    decoded=np.empty(decoded, np.uint8),
                    padded=np.empty(decoded, np.uint8),
                    resized=np.empty(0, np.uint8),
                    placed=np.zeros(2, np.int64),
                    message=np.zeros(MESSAGE_BYTES, np.uint8),
                )
            )

    def decode(self, samples: np.ndarray, duplicates: int, windows: np.ndarray, out: np.ndarray) -> None:
        """Fill a batch.

        Args:
            samples: image indices, shape ``(B,)``.
            duplicates: views D of each image.
            windows: shape ``(B * D, 7)``, from :func:`~mixsize.ffcv_loaders.decode.augment.draw_windows`.
            out: destination, uint8, C-contiguous, shape ``(B * D, S, S, 3)``, RGB.

        Raises:
            BetonError: an image that does not decode, named by its index.
        """
        self.submit(samples, duplicates, windows, out)()

    def submit(self, samples: np.ndarray, duplicates: int, windows: np.ndarray, out: np.ndarray) -> Callable[[], None]:
        """Begin to fill a batch, queued after earlier batches, so no thread idles.

        Arguments are those of :meth:`decode`; ``out`` must not be touched until it is filled.

        Returns:
            A function that waits until the batch is filled; raises as :meth:`decode` does.
        """
        assert out.shape[0] == len(samples) * duplicates == len(windows)
        assert out.flags.c_contiguous
        workers = self._num_workers
        piece = max(1, -(-len(samples) // (workers * _PIECES_PER_THREAD)))
        starts = iter(range(0, len(samples), piece)) if workers == 1 else _SharedRange(0, len(samples), piece)
        resized = int((windows[:, FRAME_HEIGHT] * windows[:, FRAME_WIDTH]).max(initial=0)) * 3

        def work() -> None:
            scratch = self._scratch.get()
            try:
                if scratch.resized.size < resized:
                    scratch = scratch._replace(resized=np.empty(resized, dtype=np.uint8))
                for start in starts:
                    views = slice(start * duplicates, (start + piece) * duplicates)
                    self._decode_piece(samples[start : start + piece], duplicates, windows[views], scratch, out[views])
            finally:
                self._scratch.put(scratch)

        if self._pool is None:
            return work
        futures = [self._pool.submit(work) for _ in range(workers)]

        def wait() -> None:
            for future in futures:
                future.result()

        return wait

    def _decode_piece(
        self, samples: np.ndarray, duplicates: int, windows: np.ndarray, scratch: Scratch, out: np.ndarray
    ) -> None:
        failed, code = _decode_piece(
            self._file.descriptor, self._levels, samples, duplicates, windows, self._min_oversampling, scratch, out
        )
        if code == DONE:
            return
        image = f"{self._file.path}: image {samples[failed]}"
        if code == UNREADABLE:
            raise BetonError(f"{image} cannot be read: the file was cut short, or its disk or network failed")
        raise BetonError(
            f"{image} does not decode as a JPEG: {explain(code, scratch.message)}; the file is damaged: convert the "
            "images again"
        )

    def close(self) -> None:
        """End the threads; waits for the batch in hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


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
def _decode_piece(file, levels, samples, duplicates, windows, min_oversampling, scratch, out):
    """Returns the first sample (counted within this piece) that failed, or -1, and a code that tells why."""
    groups = empty_groups(duplicates)
    for i in range(len(samples)):
        image = levels_of(levels, samples[i])
        views = slice(i * duplicates, (i + 1) * duplicates)
        if image.is_jpeg[0]:
            code = _decode_views(file, image, windows[views], min_oversampling, groups, scratch, out[views])
        else:
            code = _cut_raw_views(file, image, windows[views], scratch, out[views])
        if code != DONE:
            return i, code
    return -1, DONE


@numba.njit(nogil=True)
def group_image(image, windows, side, min_oversampling, groups):
    """Which views of one JPEG, of ``windows`` and ``side``, are decoded together; fills ``groups``.

    Returns:
        The number of groups.
    """
    height, width = image.heights[0], image.widths[0]
    for d in range(len(windows)):
        need = groups.needs[d]
        shown_part(windows[d], height, width, need)
        need[WHOLE] = not cuts_from_part(windows[d], height, width, side)
        need[SERVES] = sources_that_serve(need, side, min_oversampling, image)
    return group_views(image, groups)


@numba.njit(nogil=True)
def _decode_views(file, image, windows, min_oversampling, groups, scratch, out):
    """Fill the views of one JPEG."""
    held = -1
    for g in range(group_image(image, windows, out.shape[1], min_oversampling, groups)):
        source = cheapest(groups.joint[g], image)[0]
        level = source // RATIOS
        if level != held:
            if not _read(file, image.data_ptr[level], image.data_size[level], scratch.stored):
                return UNREADABLE
            held = level
        top, rows, left, columns = crop_in(source, groups.joint[g], image)
        code = jpeg_crop(
            scratch.stored.ctypes.data,
            image.data_size[level],
            image.heights[level],
            image.widths[level],
            1 << source % RATIOS,
            top,
            left,
            rows,
            columns,
            scratch.decoded.ctypes.data,
            scratch.decoded.size,
            scratch.placed.ctypes.data,
            scratch.message.ctypes.data,
        )
        if code != DONE:
            return code
        left, columns = scratch.placed[0], scratch.placed[1]
        pixels = scratch.decoded[: rows * columns * 3].reshape((rows, columns, 3))
        for d in range(len(windows)):
            if groups.group[d] != g:
                continue
            if source == 0:
                code = _cut_view(pixels, top, left, image.heights[0], image.widths[0], windows[d], scratch, out[d])
            else:
                code = cut_reduced(pixels, top, left, source, groups.needs[d], image, windows[d, FLIP], out[d])
            if code != DONE:
                return code
    return DONE


@numba.njit(nogil=True)
def _cut_raw_views(file, image, windows, scratch, out):
    """Fill the views of one image that is stored as pixels."""
    size, height, width = image.data_size[0], image.heights[0], image.widths[0]
    if not _read(file, image.data_ptr[0], size, scratch.stored):
        return UNREADABLE
    pixels = scratch.stored[:size].reshape((height, width, 3))
    for d in range(len(windows)):
        code = _cut_view(pixels, 0, 0, height, width, windows[d], scratch, out[d])
        if code != DONE:
            return code
    return DONE


@numba.njit(nogil=True)
def _read(file, offset, size, buffer):
    """Fill the start of a buffer from a file; False where the file ends before, or fails."""
    done, size = np.int64(0), np.int64(size)
    while done < size:
        count = _pread(file, buffer[done:].ctypes.data, size - done, np.int64(offset) + done)
        if count <= 0:
            return False
        done += count
    return True


@numba.njit(nogil=True)
def _cut_view(pixels, top, left, height, width, window, scratch, view):
    if window[FRAME_HEIGHT] > 0:
        return cut_resized(pixels, top, left, window, height, width, scratch, view)
    return cut(pixels, top, left, window, scratch, view)
