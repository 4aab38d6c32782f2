"""From stored bytes to views: decode, cut, resize, mirror, straight into the batch.

A JPEG is decoded only where its views need it, from the stored copy and at the ratio that
``copies`` finds cheapest, by ``jpegcrop``. A view that is read from
the full image at its full size has, to the last bit, the pixels of FFCV's decoder and resize; where the extension is
not built, these do all the work. Unlike FFCV's pipeline, one compiled function serves every size, batch and number of
duplicates, without the interpreter lock; scratch memory is kept per thread rather than per sample, and a JPEG that
fails to decode is reported instead of passing on the previous image's pixels.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from ffcv.libffcv import ctypes_imdecode

from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import FLIP, FRAME_HEIGHT, FRAME_WIDTH
from mixsize.ffcv_loaders.decode.copies import (
    NEED,
    RATIOS,
    SERVES,
    WHOLE,
    cheapest,
    crop_in,
    group_views,
    shown_part,
    sources_that_serve,
)
from mixsize.ffcv_loaders.decode.cut import cut, cut_reduced, cut_resized, cuts_from_part
from mixsize.ffcv_loaders.decode.jpegcrop import BROKEN, DONE, MESSAGE_BYTES, explain, is_built, jpeg_crop

#: Default of ``threshold`` for training, by `mixsize bench fidelity`: 35 dB or more on average at every size.
THRESHOLD = 1.0
#: And for evaluation, whose centre crops need more for as much.
EVALUATION_THRESHOLD = 1.1

# Enough pieces that a slow image does not leave the other threads idle, few enough that the
# interpreter is hardly asked.
_PIECES_PER_THREAD = 4


#: Heights, widths, kinds, offsets and lengths of every stored copy, each ``(L, N)``, as compiled code takes them.
Index = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def index_of(beton: Beton) -> Index:
    """Where the stored copies of a file's images are."""
    levels = beton.levels
    return levels.heights, levels.widths, levels.is_jpeg, levels.data_ptr, levels.data_size


class Decoder:
    """Decodes batches of one data set with a pool of threads.

    Args:
        beton: the data set.
        threads: decoding threads, at least 1.
        threshold: side that a view's window must have in a smaller copy of its image for the view to be read from it,
            along both axes and in multiples of the view's own side S; above 0. With ``math.inf`` every view is read
            from the full image at its full size.

    Raises:
        ValueError: ``threads`` below 1, or ``threshold`` not above 0.
    """

    def __init__(self, beton: Beton, threads: int, threshold: float = THRESHOLD) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}; it must be above 0")
        self._path = beton.path
        self._data = np.asarray(beton.data)
        self._index = index_of(beton)
        self._threads = threads
        self._threshold = float(threshold)
        self._has_extension = is_built()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mixsize-decode") if threads > 1 else None
        largest = int((beton.heights * beton.widths).max()) * 3
        # Pages that no image reaches are never touched, so the largest image costs memory only once it comes up.
        self._scratch: queue.SimpleQueue[_Scratch] = queue.SimpleQueue()
        for _ in range(threads):
            self._scratch.put(_Scratch(largest))

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
        """Begin to fill a batch, behind those begun before: so no thread waits for the last image of a batch.

        Arguments are those of :meth:`decode`; ``out`` must not be touched until it is filled.

        Returns:
            What waits until the batch is filled; raises as :meth:`decode` does.
        """
        assert out.shape[0] == len(samples) * duplicates == len(windows)
        assert out.flags.c_contiguous
        threads = self._threads
        piece = max(1, -(-len(samples) // (threads * _PIECES_PER_THREAD)))
        starts = iter(range(0, len(samples), piece)) if threads == 1 else _SharedRange(0, len(samples), piece)

        resized = int((windows[:, FRAME_HEIGHT] * windows[:, FRAME_WIDTH]).max(initial=0)) * 3

        def work() -> None:
            scratch = self._scratch.get()
            try:
                scratch.fit_resized(resized)
                for start in starts:
                    views = slice(start * duplicates, (start + piece) * duplicates)
                    self._decode_piece(samples[start : start + piece], duplicates, windows[views], scratch, out[views])
            finally:
                self._scratch.put(scratch)

        if self._pool is None:
            return work
        futures = [self._pool.submit(work) for _ in range(threads)]

        def wait() -> None:
            for future in futures:
                future.result()

        return wait

    def _decode_piece(
        self, samples: np.ndarray, duplicates: int, windows: np.ndarray, scratch: _Scratch, out: np.ndarray
    ) -> None:
        views = (samples, duplicates, windows)
        memory = (scratch.frame, scratch.padded, scratch.resized)
        if self._has_extension:
            broken, code = _decode_piece(
                self._data, self._index, *views, self._threshold, *memory, scratch.message, out
            )
        else:
            broken, code = _decode_piece_with_ffcv(self._data, self._index, *views, *memory, out), BROKEN
        if broken >= 0:
            raise BetonError(
                f"{self._path}: image {samples[broken]} does not decode as a JPEG: "
                f"{explain(code, scratch.message)}; the file is damaged: convert the images again"
            )

    def close(self) -> None:
        """End the threads; waits for the batch in hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


class _Scratch:
    """A thread's memory for the frame at hand: as stored, shifted onto black, and resized; and libjpeg's last words."""

    def __init__(self, largest: int) -> None:
        self.frame = np.empty(largest, dtype=np.uint8)
        self.padded = np.empty(largest, dtype=np.uint8)
        self.resized = np.empty(0, dtype=np.uint8)
        self.message = np.zeros(MESSAGE_BYTES, dtype=np.uint8)

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
def _decode_piece(data, index, samples, duplicates, windows, threshold, decoded, padded, resized, message, out):
    """Returns the first sample (counted within this piece) that failed, or -1, and a code that tells why."""
    is_jpeg = index[2]
    views = view_memory(duplicates)
    placed = np.empty(2, dtype=np.int64)
    for i in range(len(samples)):
        sample, first, end = samples[i], i * duplicates, (i + 1) * duplicates
        if is_jpeg[0, sample]:
            memory = (decoded, padded, resized, placed, message)
            code = _decode_views(data, index, sample, windows[first:end], threshold, views, memory, out[first:end])
        else:
            frame = _stored_pixels(data, index, sample)
            code = _cut_views(frame, first, end, windows, padded, resized, out)
        if code != DONE:
            return i, code
    return -1, DONE


@numba.njit(nogil=True)
def view_memory(duplicates):
    """Memory for :func:`group_image`: what each view needs, what each group of views needs, and each view's group."""
    return np.empty((duplicates, NEED)), np.empty((duplicates, NEED)), np.empty(duplicates, dtype=np.int64)


@numba.njit(nogil=True)
def group_image(index, sample, windows, side, threshold, views):
    """Which views of one JPEG, of ``windows`` and ``side``, are decoded together; fills ``views``.

    Returns:
        The number of groups.
    """
    heights, widths, is_jpeg = index[0][:, sample], index[1][:, sample], index[2][:, sample]
    data_ptr, data_size = index[3][:, sample], index[4][:, sample]
    needs, joint, group = views
    for d in range(len(windows)):
        shown_part(windows[d], heights[0], widths[0], needs[d])
        needs[d, WHOLE] = not cuts_from_part(windows[d], heights[0], widths[0], side)
        needs[d, SERVES] = sources_that_serve(needs[d], side, threshold, heights, widths, is_jpeg, data_ptr)
    return group_views(needs, heights, widths, data_size, joint, group)


@numba.njit(nogil=True)
def _decode_views(data, index, sample, windows, threshold, views, memory, out):
    """Fill the views of one JPEG."""
    heights, widths = index[0][:, sample], index[1][:, sample]
    data_ptr, data_size = index[3][:, sample], index[4][:, sample]
    decoded, padded, resized, placed, message = memory
    needs, joint, group = views
    groups = group_image(index, sample, windows, out.shape[1], threshold, views)
    for g in range(groups):
        source = cheapest(joint[g], heights, widths, data_size)[0]
        level = source // RATIOS
        top, rows, left, columns = crop_in(source, joint[g], heights, widths)
        code = jpeg_crop(
            data[data_ptr[level] :].ctypes.data,
            data_size[level],
            heights[level],
            widths[level],
            1 << source % RATIOS,
            top,
            left,
            rows,
            columns,
            decoded.ctypes.data,
            decoded.size,
            placed.ctypes.data,
            message.ctypes.data,
        )
        if code != DONE:
            return code
        left, columns = placed[0], placed[1]
        pixels = decoded[: rows * columns * 3].reshape((rows, columns, 3))
        for d in range(len(windows)):
            if group[d] != g:
                continue
            if source == 0:
                code = _cut_view(pixels, top, left, heights[0], widths[0], windows[d], padded, resized, out[d])
            else:
                mirror = windows[d, FLIP]
                code = cut_reduced(pixels, top, left, source, needs[d], heights, widths, mirror, out[d])
            if code != DONE:
                return code
    return DONE


@numba.njit(nogil=True)
def _decode_piece_with_ffcv(data, index, samples, duplicates, windows, decoded, padded, resized, out):
    """Returns the first sample (counted within this piece) that failed, or -1."""
    heights, widths, is_jpeg, data_ptr, data_size = index
    for i in range(len(samples)):
        sample = samples[i]
        height, width = heights[0, sample], widths[0, sample]
        if is_jpeg[0, sample]:
            frame = decoded[: height * width * 3].reshape((height, width, 3))
            failed = ctypes_imdecode(
                data[data_ptr[0, sample] :].ctypes.data,
                data_size[0, sample],
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
            frame = _stored_pixels(data, index, sample)
        _cut_views(frame, i * duplicates, (i + 1) * duplicates, windows, padded, resized, out)
    return -1


@numba.njit(nogil=True)
def _stored_pixels(data, index, sample):
    heights, widths, _, data_ptr, data_size = index
    start = data_ptr[0, sample]
    return data[start : start + data_size[0, sample]].reshape((heights[0, sample], widths[0, sample], 3))


@numba.njit(nogil=True)
def _cut_views(frame, first, end, windows, padded, resized, out):
    for i in range(first, end):
        code = _cut_view(frame, 0, 0, frame.shape[0], frame.shape[1], windows[i], padded, resized, out[i])
        if code != DONE:
            return code
    return DONE


@numba.njit(nogil=True)
def _cut_view(pixels, top, left, height, width, window, padded, resized, view):
    if window[FRAME_HEIGHT] > 0:
        return cut_resized(pixels, top, left, window, height, width, resized, padded, view)
    return cut(pixels, top, left, window, padded, view)
