"""The resize against Pillow's, and its averages over cells against arithmetic by hand."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixsize.ffcv_loaders.engine import native
from mixsize.ffcv_loaders.engine.native import AREA, BICUBIC, BILINEAR, resize

PILLOW = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}


@pytest.mark.usefixtures("rows_first")
@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
def test_any_size_to_any_other_is_pillows_to_within_one_level(resample):
    rng = np.random.default_rng(0)
    exact = []
    for trial in range(400):
        height, width = (rng.integers(1, 400, 2) if trial % 4 else rng.integers(1, 12, 2)).tolist()
        shape = tuple(rng.choice([1, 2, 7, 24, 32, 96, 224, 301], 2).tolist())
        # Noise and edges of full contrast, where a wrong weight shows most.
        image = rng.integers(0, 256, (height, width, 3)) if trial % 3 else rng.choice([0, 255], (height, width, 3))
        image = image.astype(np.uint8)
        ours = resize(image, shape, resample).astype(int)
        theirs = np.asarray(Image.fromarray(image).resize(shape[::-1], PILLOW[resample]))
        assert np.abs(ours - theirs).max() <= 1, (height, width, shape)
        exact.append((ours == theirs).mean())
    assert np.mean(exact) > 0.8


@pytest.mark.usefixtures("rows_first")
@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
def test_a_window_is_pillows_crop_and_then_its_resize(resample):
    """As torchvision's and timm's RandomResizedCrop: pixels beyond the window have no part in it."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        height, width = rng.integers(2, 200, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = rng.integers(top + 1, height + 1), rng.integers(left + 1, width + 1)
        shape = tuple(rng.integers(1, 130, 2).tolist())
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        ours = resize(image, shape, resample, box=(top, left, bottom, right)).astype(int)
        window = Image.fromarray(image).crop((left, top, right, bottom))
        theirs = np.asarray(window.resize(shape[::-1], PILLOW[resample]))
        assert np.abs(ours - theirs).max() <= 1


def test_a_step_enlarged_twice_by_hand():
    # Centres of the results fall on 0.25, 0.75, 1.25 and 1.75; of the pixels, on 0.5 and 1.5. 0.75 is a quarter of the
    # way from the first pixel to the second: 25 of 100.
    row = np.array([[[0, 0, 0], [100, 200, 40]]], np.uint8)
    assert resize(row, (1, 4), BILINEAR)[0, :, 0].tolist() == [0, 25, 75, 100]
    assert resize(row, (1, 4), BILINEAR, mirror=True)[0, :, 1].tolist() == [200, 150, 50, 0]


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC, AREA])
@pytest.mark.parametrize("unit", [1.0, 0.3])
def test_an_even_area_keeps_its_value_and_nothing_leaves_the_range(resample, unit):
    rng = np.random.default_rng(2)
    for value in (0, 1, 127, 201, 255):
        flat = np.full((rng.integers(1, 40), rng.integers(1, 40), 3), value, np.uint8)
        for shape in ((1, 1), (5, 40), (64, 3)):
            if resample == AREA and (shape[0] > flat.shape[0] or shape[1] > flat.shape[1]):
                continue
            assert (resize(flat, shape, resample, unit=unit) == value).all()
    stripes = np.zeros((30, 30, 3), np.uint8)
    stripes[::2] = 255
    assert set(np.unique(resize(stripes, (30, 30), resample))) == {0, 255}


def test_a_mirrored_resize_is_the_resize_mirrored():
    image = np.random.default_rng(3).integers(0, 256, (80, 90, 3), np.uint8)
    for shape in ((80, 90), (37, 41), (120, 200)):
        for unit in (1.0, 0.4):
            once = resize(image, shape, BILINEAR, unit=unit)
            np.testing.assert_array_equal(resize(image, shape, BILINEAR, unit=unit, mirror=True), once[:, ::-1])


def test_areas_average_whole_cells_and_count_parts_by_their_share():
    image = np.random.default_rng(4).integers(0, 256, (30, 40, 3), np.uint8)
    means = image.reshape(10, 3, 10, 4, 3).mean((1, 3))
    assert np.abs(resize(image, (10, 10), AREA) - means).max() < 0.5 + 0.02
    # Three pixels to two: each result is one pixel and half of the middle one.
    row = np.array([[[0, 0, 0], [90, 60, 30], [240, 120, 0]]], np.uint8)
    assert resize(row, (1, 2), AREA).tolist() == [[[30, 20, 10], [190, 100, 10]]]


def smooth(y, x):
    return 128 + 60 * np.sin(0.11 * y)[:, None] * np.cos(0.07 * x)[None] + 30 * np.sin(0.023 * x)[None]


@pytest.mark.parametrize(("resample", "most"), [(BILINEAR, 1.0), (BICUBIC, 1.2)])
@pytest.mark.parametrize("window", [(0, 0, 240, 320), (12, 30, 200, 300), (36, 8, 84, 296)])
def test_a_copy_gives_the_view_that_the_full_image_gives(resample, most, window):
    """Cells of a copy are averages over 3 x 4 pixels; a smooth image loses nothing by it."""
    full = smooth(np.arange(240) + 0.5, np.arange(320) + 0.5)
    copy = full.reshape(80, 3, 80, 4).mean((1, 3))
    full, copy = (np.repeat(np.rint(image).astype(np.uint8)[..., None], 3, axis=2) for image in (full, copy))
    top, left, bottom, right = window
    shape = ((bottom - top) // 4, (right - left) // 5)
    expected = resize(full, shape, resample, box=window).astype(int)
    rows = resize(copy, shape, resample, box=(top / 3, left / 4, bottom / 3, right / 4), unit=0.25).astype(int)
    assert np.abs(rows - expected).max() <= 2
    assert np.abs(rows - expected).mean() < most / 2


@pytest.fixture(scope="module")
def without_vectors(tmp_path_factory):
    """The engine's resize and normalisation compiled as for a processor without wide vectors."""
    library = tmp_path_factory.mktemp("plain") / "plain.so"
    engine = Path(__file__).parents[3] / "ffcv_loaders/engine"
    sources = [str(engine / name) for name in ("memory.c", "resize.c", "normalize.c")]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    options = ["-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-DMIXSIZE_PLAIN"]
    subprocess.run([compiler, *options, *sources, "-lm", "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def test_processors_without_wide_vectors_give_the_same_pixels(without_vectors, monkeypatch):
    rng = np.random.default_rng(5)
    plain = without_vectors.mixsize_resize
    plain.argtypes, plain.restype = native._resize.argtypes, native._resize.restype
    for unit in (1.0, 0.3):
        for _ in range(60):
            height, width = rng.integers(1, 300, 2)
            shape = tuple(rng.integers(1, 150, 2).tolist())
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            expected = resize(image, shape, BILINEAR, unit=unit)
            with monkeypatch.context() as patch:
                patch.setattr(native, "_resize", plain)
                np.testing.assert_array_equal(resize(image, shape, BILINEAR, unit=unit), expected)


def test_processors_without_wide_vectors_normalise_alike(without_vectors, monkeypatch):
    rng = np.random.default_rng(6)
    plain = without_vectors.mixsize_normalize
    plain.argtypes, plain.restype = native._normalize.argtypes, native._normalize.restype
    mean, scale = np.array([120.5, 110.25, 99]), np.array([0.017, 0.018, 0.0175])
    for side in (1, 3, 8, 17):
        pixels = rng.integers(0, 256, (3, side, side, 3), np.uint8)
        ours, theirs = np.empty((2, 3, 3, side, side), np.float32)
        native.normalize(pixels, mean, scale, False, ours.ctypes.data)
        with monkeypatch.context() as patch:
            patch.setattr(native, "_normalize", plain)
            native.normalize(pixels, mean, scale, False, theirs.ctypes.data)
        np.testing.assert_array_equal(ours, theirs)
