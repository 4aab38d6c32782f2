"""Decoding a part of a JPEG against Pillow's decode of the whole, on every kind of JPEG."""

from __future__ import annotations

import io
import itertools
import re
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image

from mixsize.ffcv_loaders.engine import native
from mixsize.ffcv_loaders.engine.native import (
    BAD_CALL,
    BROKEN,
    DONE,
    NO_ROOM,
    OTHER_SIZE,
    encode,
    explain,
)

from .jpeg_corpus import BROKEN_FILES, CORPUS, WHOLE_FILES, declared_size

CANARY = 77


def reduced(size: tuple[int, int], denominator: int) -> tuple[int, int]:
    return -(-size[0] // denominator), -(-size[1] // denominator)


def decode(data: bytes, size, denominator, top, left, rows, cols, capacity=None):
    """The crop, or the code and the reason; what lies behind the buffer must not change."""
    capacity = rows * reduced(size, denominator)[1] * 3 if capacity is None else capacity
    memory = np.full(capacity + 64, CANARY, np.uint8)
    message, placed = np.zeros(200, np.uint8), np.zeros(2, np.int64)
    part = (*size, denominator, top, left, rows, cols)
    out = (memory.ctypes.data, capacity, placed.ctypes.data, message.ctypes.data)
    code = native._jpeg_crop(data, len(data), *part, *out)
    assert (memory[capacity:] == CANARY).all()
    if code != DONE:
        words = message.tobytes().split(b"\0")[0].decode()
        return code, explain(code, words) if code < BAD_CALL else ""
    first, stride = placed
    assert 0 <= first <= left
    assert left + cols <= first + stride <= reduced(size, denominator)[1]
    return memory[: rows * stride * 3].reshape(rows, stride, 3)[:, left - first : left - first + cols]


def decode_with_pillow(data: bytes, denominator) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", tuple(-(-side // denominator) for side in image.size))
    return np.asarray(image.convert("RGB"))


def test_without_the_library_the_import_says_how_to_get_it(tmp_path):
    alone = shutil.copy(native.__file__, tmp_path)
    with pytest.raises(ImportError, match=r"engine is not built.*_engine\.so.*install a wheel.*libjpeg-dev"):
        runpy.run_path(alone)


def test_the_corpus_holds_every_kind_of_jpeg():
    assert len(WHOLE_FILES) >= 20
    assert set(BROKEN_FILES) < set(CORPUS)


@pytest.mark.parametrize("name", WHOLE_FILES)
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
def test_any_crop_has_the_pixels_that_pillow_gives_the_same_part_of_the_whole(name, denominator):
    data = CORPUS[name]
    size = declared_size(data)
    height, width = reduced(size, denominator)
    whole = decode_with_pillow(data, denominator)
    # Pillow takes the size that it is asked for as a bound, and some ratios give the same few pixels. Versions of
    # libjpeg-turbo differ in how they smooth the blocks of a progressive file without its last scans.
    if whole.shape != (height, width, 3) or name == "progressive_unfinished":
        assert denominator > 1 or name == "progressive_unfinished"
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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 300), (45, 70), (301, 203)])
def test_an_encoded_image_is_a_jpeg_of_full_chroma_close_to_its_pixels(height, width):
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(y + x) % 256, (2 * x) % 200, 255 - (y % 256)], axis=2).astype(np.uint8)
    data = encode(pixels, 95)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", (width, height))
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
    assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 2
    # Its Huffman tables are made for it: Pillow's standard ones take more.
    standard = io.BytesIO()
    Image.fromarray(pixels).save(standard, "JPEG", quality=95, subsampling=0)
    assert len(data) < len(standard.getvalue())


def test_noise_is_encoded_whatever_room_it_takes():
    pixels = np.random.default_rng(0).integers(0, 256, (500, 300, 3), np.uint8)
    assert np.asarray(Image.open(io.BytesIO(encode(pixels, 100)))).shape == pixels.shape
