"""The C extension against FFCV's decoder and resize, on every kind of JPEG, and against arithmetic by hand."""

from __future__ import annotations

import itertools
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from ffcv.libffcv import ctypes_imdecode, ctypes_resize

import mixsize.ffcv_loaders.decode as decode_room
from mixsize.ffcv_loaders.decode import jpegcrop
from mixsize.ffcv_loaders.decode.cut import HAS_AREA
from mixsize.ffcv_loaders.decode.jpegcrop import (
    BAD_CALL,
    BROKEN,
    DONE,
    MESSAGE_BYTES,
    NO_ROOM,
    NOT_HERE,
    OTHER_SIZE,
    UNSUPPORTED,
    area,
    explain,
    jpeg_crop,
    resample,
)

CORPUS = {path.stem: path.read_bytes() for path in Path(__file__).parents[2].glob("fuzz/corpus/*.jpg")}
BROKEN_FILES = {
    "cmyk": (UNSUPPORTED, "not 8-bit grey"),
    "damaged": (BROKEN, "Corrupt JPEG data"),
    "huge": (BROKEN, "premature end"),
    "lossless": (BROKEN, "Unsupported"),
    "no_height": (BROKEN, "Empty JPEG image"),
    "truncated": (BROKEN, "Premature end"),
    "twelve_bit": (BROKEN, "precision 12"),
}
WHOLE_FILES = sorted(set(CORPUS) - set(BROKEN_FILES))
CANARY = 77


def declared_size(data: bytes) -> tuple[int, int]:
    """Height and width in the frame header."""
    at = 2
    while not 0xC0 <= data[at + 1] <= 0xCF or data[at + 1] in (0xC4, 0xC8, 0xCC):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")


def reduced(size: tuple[int, int], denominator: int) -> tuple[int, int]:
    return -(-size[0] // denominator), -(-size[1] // denominator)


def decode(data: bytes, size, denominator, top, left, rows, cols, capacity=None):
    """The crop, or the code; what lies behind the buffer must not change."""
    source = np.frombuffer(data, np.uint8)
    capacity = rows * reduced(size, denominator)[1] * 3 if capacity is None else capacity
    memory = np.full(capacity + 64, CANARY, np.uint8)
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    placed = np.zeros(2, np.int64)
    code = jpeg_crop(
        source.ctypes.data,
        source.size,
        *size,
        denominator,
        top,
        left,
        rows,
        cols,
        memory.ctypes.data,
        capacity,
        placed.ctypes.data,
        message.ctypes.data,
    )
    assert (memory[capacity:] == CANARY).all()
    if code != DONE:
        return code, explain(code, message) if code < BAD_CALL else ""
    first, stride = placed
    assert 0 <= first <= left
    assert left + cols <= first + stride <= reduced(size, denominator)[1]
    return memory[: rows * stride * 3].reshape(rows, stride, 3)[:, left - first : left - first + cols]


def decode_with_ffcv(data: bytes, size, denominator) -> np.ndarray:
    source, pixels = np.frombuffer(data, np.uint8), np.zeros((*reduced(size, denominator), 3), np.uint8)
    failed = ctypes_imdecode(
        source.ctypes.data, source.size, *size, pixels.ctypes.data, *size, 0, 0, 1, denominator, False, False
    )
    assert failed == 0
    return pixels


def test_the_resize_agrees_with_ffcvs_opencv_here():
    assert HAS_AREA


def test_without_the_extension_the_import_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mixsize.ffcv_loaders.decode._jpegcrop", None)
    monkeypatch.delattr(decode_room, "_jpegcrop")
    with pytest.raises(ImportError, match=r"JPEG decoder is not built: install a wheel.*libjpeg-dev"):
        runpy.run_path(jpegcrop.__file__)


def test_the_corpus_holds_every_kind_of_jpeg():
    assert len(WHOLE_FILES) >= 20
    assert set(BROKEN_FILES) < set(CORPUS)


@pytest.mark.parametrize("name", WHOLE_FILES)
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
def test_any_crop_has_the_bytes_that_ffcvs_decoder_gives_the_same_part_of_the_whole(name, denominator):
    data = CORPUS[name]
    size = declared_size(data)
    height, width = reduced(size, denominator)
    if denominator == 1 or min(size) > 8:
        whole = decode_with_ffcv(data, size, denominator)
    else:
        # TurboJPEG is asked for a size, not for a ratio, and several ratios give the same few pixels.
        whole = decode(data, size, denominator, 0, 0, height, width)
    middle = height // 3
    for left, right in itertools.combinations(range(width + 1), 2):
        crop = decode(data, size, denominator, middle, left, 1, right - left)
        np.testing.assert_array_equal(crop, whole[middle : middle + 1, left:right])
    middle = width // 3
    for top, bottom in itertools.combinations(range(height + 1), 2):
        crop = decode(data, size, denominator, top, middle, bottom - top, 1)
        np.testing.assert_array_equal(crop, whole[top:bottom, middle : middle + 1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        top, left = rng.integers(0, height), rng.integers(0, width)
        rows, cols = rng.integers(1, height - top + 1), rng.integers(1, width - left + 1)
        crop = decode(data, size, denominator, top, left, rows, cols)
        np.testing.assert_array_equal(crop, whole[top : top + rows, left : left + cols])


@pytest.mark.parametrize("name", sorted(BROKEN_FILES))
def test_what_cannot_be_decoded_is_refused_with_its_reason(name):
    height, width = declared_size(CORPUS[name])
    code, words = BROKEN_FILES[name]
    size = (height or 45, width)
    # The whole of "huge" would take 12 GB.
    found, reason = decode(CORPUS[name], size, 1, 0, 0, *((1, 1) if name == "huge" else size))
    assert found == code
    assert re.search(words, reason)


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_no_input_and_no_arguments_make_it_crash_or_write_outside_its_buffer(name):
    data, rng = CORPUS[name], np.random.default_rng(0)
    for size in (declared_size(data), (45, 70), (70, 45), (1, 1), (65_500, 8), (8, 65_500)):
        for _ in range(10):
            denominator = int(rng.choice([1, 2, 4, 8]))
            height, width = reduced(size, denominator)
            if height * width == 0 or height * width > 1 << 20:
                continue
            top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
            rows, cols = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
            cut = data[: int(rng.integers(0, len(data) + 1))]
            for part in (data, cut):
                decode(part, size, denominator, top, left, rows, cols)
                decode(part, size, denominator, top, left, rows, cols, capacity=int(rng.integers(0, 500)))


def test_a_file_of_another_size_than_the_index_gives_is_refused():
    data = CORPUS["420"]
    height, width = declared_size(data)
    for size in ((height + 1, width), (height, width - 1), (width, height), (2 * height, 2 * width)):
        assert decode(data, size, 1, 0, 0, 1, 1) == (
            OTHER_SIZE,
            f"the index gives another size, the file says {height} x {width}",
        )


def test_sides_that_only_the_header_has_room_for_are_refused_by_libjpeg():
    data = bytearray(CORPUS["420"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff" * 4
    code, reason = decode(bytes(data), (65_535, 65_535), 8, 0, 0, 1, 1)
    assert code == BROKEN
    assert "65500" in reason


def test_a_buffer_too_small_is_refused():
    data = CORPUS["420"]
    size = declared_size(data)
    assert decode(data, size, 1, 0, 0, *size, capacity=size[0] * size[1] * 3 - 1) == (NO_ROOM, "memory ran out")
    assert decode(data, size, 1, 0, 0, *size, capacity=size[0] * size[1] * 3).shape == (*size, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 0, 0, 1, 1),
        (3, 0, 0, 1, 1),
        (16, 0, 0, 1, 1),
        (1, -1, 0, 1, 1),
        (1, 0, -1, 1, 1),
        (1, 0, 0, 0, 1),
        (1, 0, 0, 1, 0),
        (1, 40, 0, 6, 1),
        (1, 0, 60, 1, 11),
        (2, 0, 0, 24, 1),
    ],
)
def test_crops_outside_the_image_and_other_ratios_are_bad_calls(arguments):
    data = CORPUS["420"]
    assert declared_size(data) == (45, 70)
    assert decode(data, (45, 70), *arguments, capacity=1 << 16)[0] == BAD_CALL


def test_only_so_many_scans_are_read():
    """Each scan passes over the whole image, whatever its bytes: a small file could keep a decoder busy for hours."""
    data = CORPUS["not_interleaved"]
    size = declared_size(data)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    scan = data[first:second]
    np.testing.assert_array_equal(
        decode(data[:first] + 497 * scan + data[first:], size, 1, 0, 0, *size), decode(data, size, 1, 0, 0, *size)
    )
    assert decode(data[:first] + 498 * scan + data[first:], size, 1, 0, 0, *size) == (BROKEN, "more than 500 scans")


def resized_with_ffcv(image: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.zeros((height, width, 3), np.uint8)
    rows, cols = image.shape[:2]
    ctypes_resize(0, image.ctypes.data, rows, cols, 0, rows, 0, cols, out.ctypes.data, height, width)
    return out


def call_area(image, frame, top, left, side, mirror=0, rows=None, cols=None):
    """``area`` on the part ``rows`` x ``cols`` (slices) of an image."""
    rows, cols = rows or slice(0, image.shape[0]), cols or slice(0, image.shape[1])
    part = np.ascontiguousarray(image[rows, cols])
    out = np.full((side * side + 1, 3), CANARY, np.uint8)
    code = area(
        part.ctypes.data,
        part.shape[1],
        rows.start,
        cols.start,
        *part.shape[:2],
        *image.shape[:2],
        *frame,
        top,
        left,
        mirror,
        out.ctypes.data,
        side,
    )
    assert (out[-1] == CANARY).all()
    return code, out[:-1].reshape(side, side, 3)


def test_area_gives_the_bytes_of_ffcvs_resize():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(600):
        side = int(rng.choice([1, 2, 7, 24, 32, 96, 128, 224]))
        height, width = (rng.integers(side, 3 * side + 10, 2)).tolist()
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        code, out = call_area(image, (side, side), 0, 0, side)
        if code == NOT_HERE:
            assert height % side == width % side == 0
            continue
        assert code == DONE
        expected = resized_with_ffcv(image, side, side)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(call_area(image, (side, side), 0, 0, side, mirror=1)[1], expected[:, ::-1])
        compared += 1
    assert compared > 500


def test_area_needs_only_the_pixels_that_its_part_of_the_result_covers():
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = rng.integers(40, 300, 2).tolist()
        frame = (int(rng.integers(20, height)), int(rng.integers(20, width)))
        side = int(rng.integers(1, min(frame) + 1))
        top, left = int(rng.integers(0, frame[0] - side + 1)), int(rng.integers(0, frame[1] - side + 1))
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        step = (height / frame[0], width / frame[1])
        rows = slice(int(top * step[0]), min(height, int((top + side) * step[0]) + 1))
        cols = slice(int(left * step[1]), min(width, int((left + side) * step[1]) + 1))
        code, out = call_area(image, frame, top, left, side, rows=rows, cols=cols)
        if code == NOT_HERE:
            continue
        expected = resized_with_ffcv(image, *frame)[top : top + side, left : left + side]
        np.testing.assert_array_equal(out, expected)
        fewer = slice(rows.start + 2, rows.stop)
        if fewer.stop > fewer.start:
            assert call_area(image, frame, top, left, side, rows=fewer, cols=cols)[0] == BAD_CALL


def test_area_leaves_growing_and_whole_number_ratios_to_opencv():
    image = np.zeros((60, 90, 3), np.uint8)
    assert call_area(image, (61, 80), 0, 0, 10)[0] == NOT_HERE
    assert call_area(image, (50, 91), 0, 0, 10)[0] == NOT_HERE
    assert call_area(image, (20, 45), 0, 0, 10)[0] == NOT_HERE
    assert call_area(image, (20, 44), 0, 0, 10)[0] == DONE


def call_resample(image, window, side, mirror=0, rows=None, cols=None):
    rows, cols = rows or slice(0, image.shape[0]), cols or slice(0, image.shape[1])
    part = np.ascontiguousarray(image[rows, cols])
    out = np.full((side * side + 1, 3), CANARY, np.uint8)
    code = resample(
        part.ctypes.data,
        part.shape[1],
        rows.start,
        cols.start,
        *part.shape[:2],
        *image.shape[:2],
        *map(float, window),
        mirror,
        out.ctypes.data,
        side,
    )
    assert (out[-1] == CANARY).all()
    return code, out[:-1].reshape(side, side, 3)


def test_resampling_whole_cells_averages_them():
    image = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    code, out = call_resample(image, (4, 34, 10, 50), 10)  # 3 x 4 cells to each pixel
    assert code == DONE
    expected = image[4:34, 10:50].reshape(10, 3, 10, 4, 3).mean((1, 3))
    assert np.abs(out - expected).max() < 0.5 + 1e-3
    # At one cell a pixel nothing changes, and nothing outside the window has a part in it.
    np.testing.assert_array_equal(call_resample(image, (3, 33, 7, 37), 30)[1], image[3:33, 7:37])


def test_resampling_a_parabola_gives_its_exact_averages():
    """Cells hold the averages of f = 20 + 0.04 x^2 + 0.03 y^2 (integrals by hand); so must the parts of any window."""

    def averages(edges, factor):
        return factor * np.diff(edges**3 / 3) / np.diff(edges)

    def image_of(y, x):
        values = 20 + averages(y, 0.03)[:, None] + averages(x, 0.04)[None]
        return np.repeat(values[..., None], 3, axis=2)

    exact = image_of(np.arange(51.0), np.arange(61.0))
    assert exact.max() < 255
    for top, bottom, left, right, side in ((4.3, 44.9, 7.7, 51.2, 31), (5.5, 30.1, 3.2, 20.4, 30), (2, 47, 2, 58, 9)):
        code, out = call_resample(np.rint(exact).astype(np.uint8), (top, bottom, left, right), side)
        assert code == DONE
        expected = image_of(np.linspace(top, bottom, side + 1), np.linspace(left, right, side + 1))
        # Half a unit from rounding the input, which overshoot may enlarge, and half a unit from rounding the result.
        assert np.abs(out - expected).max() < 1.3
        assert np.abs((out - expected).mean()) < 0.05


def test_resampling_goes_on_beyond_the_border_with_its_outermost_pixels_and_stays_within_range():
    image = np.zeros((30, 30, 3), np.uint8)
    image[::2] = 255
    code, out = call_resample(image, (0, 30, 0, 30), 30)
    assert code == DONE
    np.testing.assert_array_equal(out, image)
    flat = np.full((9, 13, 3), 201, np.uint8)
    for window in ((0, 9, 0, 13), (0.2, 8.9, 0.1, 12.9), (8.5, 9, 12.5, 13), (0, 0.25, 0, 0.5)):
        for side in (1, 5, 40):
            np.testing.assert_array_equal(call_resample(flat, window, side)[1], np.full((side, side, 3), 201))


def test_resampling_mirrors_and_needs_one_pixel_around_its_window():
    image = np.random.default_rng(3).integers(0, 256, (80, 90, 3), np.uint8)
    window = (20.4, 61.3, 30.0, 55.5)
    code, out = call_resample(image, window, 17)
    assert code == DONE
    np.testing.assert_array_equal(call_resample(image, window, 17, mirror=1)[1], out[:, ::-1])
    part = {"rows": slice(19, 63), "cols": slice(29, 57)}
    np.testing.assert_array_equal(call_resample(image, window, 17, **part)[1], out)
    for axis, smaller in (
        ("rows", slice(20, 63)),
        ("rows", slice(19, 62)),
        ("cols", slice(30, 57)),
        ("cols", slice(29, 56)),
    ):
        assert call_resample(image, window, 17, **{**part, axis: smaller})[0] == BAD_CALL


@pytest.mark.parametrize(
    "window",
    [(-0.1, 5, 0, 5), (0, 80.1, 0, 5), (5, 5, 0, 5), (0, 5, 6, 5), (0, 5, 0, float("nan")), (0, float("inf"), 0, 5)],
)
def test_windows_outside_the_image_are_bad_calls(window):
    assert call_resample(np.zeros((80, 90, 3), np.uint8), window, 5)[0] == BAD_CALL
