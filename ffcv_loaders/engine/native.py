"""Binding of the compiled engine; the functions run without the interpreter lock.

``engine.h`` and the comments beside each C function say what they do. Here they take NumPy arrays, checked for type and
layout, and their codes become errors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    _library = ctypes.CDLL(str(Path(__file__).with_name("_engine.so")))
except OSError as error:
    raise ImportError(
        f"mixsize's engine is not built or does not load ({error}): install a wheel of mixsize, or install"
        " libjpeg-turbo's header (libjpeg-dev) and a C compiler and then mixsize again"
    ) from error

DONE, BROKEN, OTHER_SIZE, UNSUPPORTED, NO_ROOM, BAD_CALL, UNREADABLE = range(7)
BILINEAR, BICUBIC, AREA = range(3)
#: Columns of a window.
TOP, LEFT, HEIGHT, WIDTH, FLIP, FRAME_HEIGHT, FRAME_WIDTH = range(7)
#: Changes of an image's pixels, as the engine numbers them.
(
    AFFINE,
    AUTO_CONTRAST,
    BRIGHTNESS,
    COLOUR,
    CONTRAST,
    EQUALIZE,
    INVERT,
    POSTERIZE,
    SHARPNESS,
    SOLARIZE,
    SOLARIZE_ADD,
    HUE,
    IDENTITY,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
    ROTATE,
) = range(18)
_MESSAGE_BYTES = 200

_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _Policy(ctypes.Structure):
    _fields_ = (
        ("table", _pointer),
        ("sub_policies", _int),
        ("cutout_px", _int),
        ("seed", ctypes.c_uint64),
        ("epoch", ctypes.c_uint64),
        ("fill", ctypes.c_uint8 * 4),
    )


class _ViewChanges(ctypes.Structure):
    _fields_ = (
        ("table", _pointer),
        ("weights", _pointer),
        *((name, _int) for name in ("layers", "choices", "length")),
        ("magnitude_std", _double),
        ("magnitude_max", _double),
        ("jitter", _double * 4),
        ("erasing", _double),
        ("seed", ctypes.c_uint64),
        ("epoch", ctypes.c_uint64),
        ("fill", ctypes.c_uint8 * 4),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("file", "levels", "images")),
        *((name, _pointer) for name in ("heights", "widths", "is_jpeg", "ptr", "size", "samples", "windows")),
        *((name, _int) for name in ("count", "duplicates", "side", "filter")),
        ("min_oversampling", _double),
        ("out", _pointer),
        ("policy", ctypes.POINTER(_Policy)),
        ("changes", ctypes.POINTER(_ViewChanges)),
        ("next", _int),
        ("failed", _int),
        ("code", ctypes.c_int32),
        ("message", ctypes.c_char * _MESSAGE_BYTES),
    )


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(_library, f"mixsize_{name}")
    function.restype, function.argtypes = result, arguments
    return function


_new_workspace = _function("new_workspace", _pointer)
_free_workspace = _function("free_workspace", None, _pointer)
_fill = _function("fill", None, ctypes.POINTER(_Batch), _pointer)
_copies_to_read = _function("copies_to_read", _int, ctypes.POINTER(_Batch), _pointer, _pointer)
_draw_windows = _function(
    "draw_windows", None, _int, _pointer, _int, *[_pointer] * 3, *[_int] * 3, *[ctypes.c_uint64] * 2, _pointer
)
_operate = _function("operate", None, _pointer, *[_int] * 3, *[_pointer] * 3)
_apply_policy = _function(
    "apply_policy", None, ctypes.POINTER(_Policy), *[ctypes.c_uint64] * 2, *[_int] * 2, *[_pointer] * 2
)
_change_view = _function(
    "change_view", None, ctypes.POINTER(_ViewChanges), *[ctypes.c_uint64] * 2, _int, *[_pointer] * 2
)
_normalize = _function("normalize", None, _pointer, _int, _int, _pointer, _pointer, _int, _pointer)
_resize = _function("resize", ctypes.c_int32, _pointer, *[_int] * 2, *[_double] * 5, *[_int] * 4, _pointer)
_jpeg_crop = _function(
    "jpeg_crop",
    ctypes.c_int32,
    ctypes.c_char_p,
    ctypes.c_uint64,
    *[_int] * 7,
    _pointer,
    ctypes.c_uint64,
    *[_pointer] * 2,
)
_encode = _function(
    "encode", ctypes.c_int32, _pointer, *[_int] * 3, ctypes.POINTER(_pointer), ctypes.POINTER(ctypes.c_uint64)
)
_free = _function("free", None, _pointer)


class Workspace:
    """The memory that one thread decodes in; it grows as needed and is used again."""

    def __init__(self) -> None:
        self._address = _new_workspace()
        if not self._address:
            raise MemoryError("no memory is left to decode in")

    def __del__(self) -> None:
        _free_workspace(self._address)


class Policy:
    """What changes views between their crop and their resize.

    Args:
        table: float64, shape ``(sub-policies, 2 operations, 2 signs, 8)``: kind, probability, six parameters.
        cutout_px: side of the square that is filled; 0 for none.
        fill: its colour, uint8, shape ``(3,)``.
        seed: the run's seed.
        epoch: from 0.
    """

    def __init__(self, table: np.ndarray, cutout_px: int, fill: np.ndarray, seed: int, epoch: int) -> None:
        assert table.dtype == np.float64
        assert table.flags.c_contiguous
        self._table = table
        self.struct = _Policy(
            table.ctypes.data, len(table), cutout_px, seed, epoch, (ctypes.c_uint8 * 4)(*fill.tolist())
        )


class ViewChanges:
    """What changes views after their resize; ``engine.h`` explains each argument.

    Args:
        table: float64, shape ``(choices, length, 9)``; None for no policy.
        weights: float64, shape ``(choices,)``; None for choices that are all alike.
        layers: choices that are drawn for a view; with weights at most as many as there are.
        magnitude_std: may be infinite.
        magnitude_max: greatest magnitude.
        jitter: greatest changes of brightness, contrast, saturation and hue.
        erasing: probability.
        fill: uint8, shape ``(3,)``.
        seed: the run's seed.
        epoch: from 0.
    """

    def __init__(
        self,
        table: np.ndarray | None,
        weights: np.ndarray | None,
        layers: int,
        magnitude_std: float,
        magnitude_max: float,
        jitter: Sequence[float],
        erasing: float,
        fill: np.ndarray,
        seed: int,
        epoch: int,
    ) -> None:
        for values in (table, weights):
            assert values is None or (values.dtype == np.float64 and values.flags.c_contiguous)
        assert weights is None or layers <= len(weights) <= 64
        self._held = (table, weights)
        choices, length = (0, 0) if table is None else table.shape[:2]
        self.struct = _ViewChanges(
            None if table is None else table.ctypes.data,
            None if weights is None else weights.ctypes.data,
            0 if table is None else layers,
            choices,
            length,
            magnitude_std,
            magnitude_max,
            (_double * 4)(*jitter),
            erasing,
            seed,
            epoch,
            (ctypes.c_uint8 * 4)(*fill.tolist()),
        )


class Batch:
    """A batch to fill; any number of threads may work on it.

    Args:
        file: descriptor of the open file.
        levels: heights, widths, whether a copy is a JPEG, offsets and lengths of every copy, ``(L, N)`` each.
        samples: int64, shape ``(B,)``.
        duplicates: views D of each image.
        windows: int64, shape ``(B * D, 7)``.
        side: of the views in pixels.
        min_oversampling: see :class:`~mixsize.ffcv_loaders.decode.decode.Decoder`.
        out: uint8, C-contiguous, shape ``(B * D, S, S, 3)``, or None where nothing is to be filled.
        resample: BILINEAR or BICUBIC.
        policy: what changes the views before their resize.
        changes: what changes them after it.
    """

    def __init__(
        self,
        file: int,
        levels: Sequence[np.ndarray],
        samples: np.ndarray,
        duplicates: int,
        windows: np.ndarray,
        side: int,
        min_oversampling: float,
        out: np.ndarray | None = None,
        resample: int = BILINEAR,
        policy: Policy | None = None,
        changes: ViewChanges | None = None,
    ) -> None:
        heights, widths, is_jpeg, data_ptr, data_size = levels
        samples = np.ascontiguousarray(samples, np.int64)
        windows = np.ascontiguousarray(windows, np.int64)
        assert windows.shape == (len(samples) * duplicates, 7)
        assert out is None or (out.shape == (len(windows), side, side, 3) and out.flags.c_contiguous)
        assert len(samples) == 0 or (samples.min() >= 0 and samples.max() < heights.shape[1])
        addresses = [values.ctypes.data for values in (heights, widths, is_jpeg, data_ptr, data_size, samples, windows)]
        # The addresses are those of arrays that live as long as this object.
        self._held = (levels, samples, windows, out, policy, changes)
        self._struct = _Batch(
            file,
            *heights.shape,
            *addresses,
            len(samples),
            duplicates,
            side,
            resample,
            min_oversampling,
            None if out is None else out.ctypes.data,
            None if policy is None else ctypes.pointer(policy.struct),
            None if changes is None else ctypes.pointer(changes.struct),
            0,
            -1,
        )

    def fill(self, workspace: Workspace) -> None:
        """Take image after image until none is left or one has failed."""
        _fill(self._struct, workspace._address)

    @property
    def failure(self) -> tuple[int, int, str] | None:
        """Place in ``samples`` of the first image that failed, its code and libjpeg's words; None where none failed."""
        if self._struct.failed < 0:
            return None
        return self._struct.failed, self._struct.code, self._struct.message.decode("ascii", "replace")

    def copies_to_read(self, workspace: Workspace) -> np.ndarray:
        """Offsets and lengths of the stored copies that the views are read from, int64, ``(copies, 2)``."""
        copies = np.empty((self._struct.count * self._struct.duplicates, 2), np.int64)
        count = _copies_to_read(self._struct, workspace._address, copies.ctypes.data)
        if count < 0:
            raise MemoryError("no memory is left to choose copies in")
        return copies[:count]


def draw_windows(
    kind: int,
    parameters: Sequence[float],
    flip: bool,
    heights: np.ndarray,
    widths: np.ndarray,
    samples: np.ndarray,
    duplicates: int,
    size_px: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Windows of a batch, int64, ``(B * D, 7)``; kind 0: random resized crops, 1: shifted frames, 2: central crops."""
    windows = np.empty((len(samples) * duplicates, 7), np.int64)
    values = np.array(parameters, np.float64)
    arrays = [np.ascontiguousarray(array, np.int64) for array in (heights, widths, samples)]
    _draw_windows(
        kind,
        values.ctypes.data,
        flip,
        *(array.ctypes.data for array in arrays),
        len(samples),
        duplicates,
        size_px,
        seed,
        epoch,
        windows.ctypes.data,
    )
    return windows


def operate(image: np.ndarray, kind: int, parameters: Sequence[float], fill: np.ndarray) -> None:
    """Change a uint8 image ``(H, W, 3)`` in place by one operation; see ``engine.h``."""
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    values, scratch = np.array(parameters, np.float64), np.empty_like(image)
    addresses = (values.ctypes.data, fill.ctypes.data, scratch.ctypes.data)
    _operate(image.ctypes.data, *image.shape[:2], kind, *addresses)


def apply_policy(view: np.ndarray, policy: Policy, sample: int, duplicate: int) -> None:
    """Change a view at its stored size, uint8 ``(H, W, 3)``, in place, as :class:`Batch` does before the resize."""
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    scratch = np.empty_like(view)
    _apply_policy(policy.struct, sample, duplicate, *view.shape[:2], view.ctypes.data, scratch.ctypes.data)


def change_view(view: np.ndarray, changes: ViewChanges, sample: int, duplicate: int) -> None:
    """Change a view, uint8 ``(S, S, 3)``, in place, as :class:`Batch` changes that of the sample and duplicate."""
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    assert view.shape == (len(view), len(view), 3)
    scratch = np.empty_like(view)
    _change_view(changes.struct, sample, duplicate, len(view), view.ctypes.data, scratch.ctypes.data)


def normalize(pixels: np.ndarray, mean: np.ndarray, scale: np.ndarray, channels_last: bool, out_address: int) -> None:
    """Write ``(pixels - mean) * scale`` of ``(N, H, W, 3)`` uint8 as float32 to an address, in either memory format."""
    assert pixels.flags.c_contiguous
    number, height, width, _ = pixels.shape
    values = np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(scale, np.float32)
    means, scales = (value.ctypes.data for value in values)
    _normalize(pixels.ctypes.data, number, height * width, means, scales, channels_last, out_address)


def resize(
    pixels: np.ndarray,
    shape: tuple[int, int],
    resample: int,
    *,
    box: tuple[float, float, float, float] | None = None,
    unit: float = 1.0,
    mirror: bool = False,
) -> np.ndarray:
    """A uint8 image ``(H, W, 3)``, or its part from (top, left) to (bottom, right), resized to ``shape``.

    ``unit`` below 1 says that each pixel is an average over ``1 / unit`` pixels of a larger image.
    """
    pixels = np.ascontiguousarray(pixels, np.uint8)
    height, width, _ = pixels.shape
    top, left, bottom, right = (0, 0, height, width) if box is None else box
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width
    assert min(shape) > 0
    out = np.empty((*shape, 3), np.uint8)
    place = (pixels.ctypes.data, height, width, top, bottom, left, right, unit)
    code = _resize(*place, *shape, resample, mirror, out.ctypes.data)
    if code == NO_ROOM:
        raise MemoryError("no memory is left to resize in")
    assert code == DONE, code
    return out


def decode_part(
    data: bytes, height: int, width: int, denominator: int, top: int, left: int, rows: int, columns: int
) -> tuple[int, np.ndarray, str]:
    """Decode part of a JPEG whose full size is height x width, reduced to 1 / ``denominator``.

    Returns:
        A code, the pixels ``(rows, columns, 3)``, and libjpeg's words where it failed.
    """
    reduced = -(-width // denominator) if denominator > 0 else 1
    room = np.empty((max(rows, 1), max(reduced, 1), 3), np.uint8)
    placed, message = np.zeros(2, np.int64), np.zeros(_MESSAGE_BYTES, np.uint8)
    part = (height, width, denominator, top, left, rows, columns)
    out = (room.ctypes.data, room.size, placed.ctypes.data, message.ctypes.data)
    code = _jpeg_crop(data, len(data), *part, *out)
    words = message.tobytes().split(b"\0")[0].decode("ascii", "replace")
    if code != DONE:
        return code, room[:0], words
    first, stride = placed
    pixels = room.reshape(-1)[: rows * stride * 3].reshape(rows, stride, 3)
    return code, pixels[:, left - first : left - first + columns], words


def decode_whole(data: bytes, height: int, width: int) -> np.ndarray | None:
    """``(height, width, 3)`` uint8 RGB of a JPEG of this size, or None where libjpeg reports an error or a warning."""
    code, pixels, _ = decode_part(data, height, width, 1, 0, 0, height, width)
    return pixels if code == DONE else None


def encode(pixels: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of ``(height, width, 3)`` uint8 RGB pixels, chroma at full resolution, Huffman tables optimised."""
    pixels = np.ascontiguousarray(pixels, np.uint8)
    address, size = _pointer(), ctypes.c_uint64()
    code = _encode(pixels.ctypes.data, *pixels.shape[:2], quality, ctypes.byref(address), ctypes.byref(size))
    try:
        assert code == DONE, code
        return ctypes.string_at(address.value or 0, size.value)
    finally:
        _free(address)


def explain(code: int, words: str) -> str:
    """Why an image did not decode, from the code and libjpeg's words."""
    if code == BROKEN:
        return words
    if code == OTHER_SIZE:
        return f"the index gives another size, {words}"
    if code == UNSUPPORTED:
        return "it is not 8-bit grey, YCbCr or RGB"
    assert code == NO_ROOM, f"code {code}: a call that the engine does not allow"
    return "memory ran out"
