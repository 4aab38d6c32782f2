"""Decoded views against Pillow, torchvision and NumPy on the same bytes."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F

from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import CenterCrop, Resize, draw_windows
from mixsize.ffcv_loaders.decode.decode import Decoder


def decode(beton, samples, windows, size_px, *, duplicates=1, threads=1, interpolation="bilinear"):
    windows = np.asarray(windows, np.int64)
    windows = np.pad(windows, ((0, 0), (0, 7 - windows.shape[1])))
    out = np.full((len(windows), size_px, size_px, 3), 77, np.uint8)
    # From the full images; what smaller copies give is a matter of test_fidelity.py.
    decoder = Decoder(beton, threads, math.inf, interpolation)
    decoder.decode(np.asarray(samples), duplicates, windows, out)
    decoder.close()
    return out


def stored(beton, sample) -> np.ndarray:
    """The stored image, decoded by Pillow or taken as it is."""
    data = beton.stored(sample)
    if beton.is_jpeg[sample]:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return np.frombuffer(data, np.uint8).reshape(int(beton.heights[sample]), int(beton.widths[sample]), 3)


def test_a_raw_image_at_its_own_size_comes_out_byte_for_byte(digits):
    beton = Beton.open(digits / "train.beton")
    out = decode(beton, [3, 5], [(0, 0, 8, 8, 0), (0, 0, 8, 8, 0)], 8)
    np.testing.assert_array_equal(out, [stored(beton, 3), stored(beton, 5)])


def test_shifts_leave_black_and_mirrors_turn_left_to_right(digits):
    beton = Beton.open(digits / "train.beton")
    image = stored(beton, 3)
    out = decode(beton, [3], [(2, -3, 8, 8, 0), (0, 0, 8, 8, 1), (-8, 0, 8, 8, 0), (9, 20, 8, 8, 0)], 8, duplicates=4)
    shifted = np.zeros_like(image)
    shifted[:6, 3:] = image[2:, :5]
    np.testing.assert_array_equal(out[0], shifted)
    np.testing.assert_array_equal(out[1], image[:, ::-1])
    assert not out[2].any()
    assert not out[3].any()


def test_a_shifted_view_is_padded_before_it_is_resized(digits):
    beton = Beton.open(digits / "train.beton")
    padded = np.pad(stored(beton, 3), ((1, 1), (1, 1), (0, 0)))[0:8, 2:10]
    expected = np.asarray(Image.fromarray(padded).resize((20, 20), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(beton, [3], [(-1, 1, 8, 8, 0)], 20)[0] - expected).max() <= 1


@pytest.mark.usefixtures("rows_first")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [32, 96, 224])
def test_crops_are_torchvisions_resized_crops_to_within_one_level(photos, size_px, interpolation):
    beton = Beton.open(photos)
    samples = np.arange(beton.num_samples)
    windows = np.array(
        [(5, 7, h - 9, w - 11, i % 2) for i, h, w in zip(samples, beton.heights, beton.widths, strict=True)]
    )
    out = decode(beton, samples, windows, size_px, interpolation=interpolation).astype(int)
    for view, sample, (*window, flip) in zip(out, samples, windows, strict=True):
        image = Image.fromarray(stored(beton, sample))
        expected = F.resized_crop(image, *window, [size_px, size_px], F.InterpolationMode(interpolation))
        assert np.abs(view - np.asarray(F.hflip(expected) if flip else expected)).max() <= 1


@pytest.mark.usefixtures("rows_first")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [48, 224])
def test_evaluation_crops_are_torchvisions_resize_then_centre_crop(photos, size_px, interpolation):
    """Shorter side to ceil(8 S / 7), then the central S x S."""
    beton = Beton.open(photos)
    samples = np.arange(beton.num_samples)
    windows = draw_windows(CenterCrop(), beton.heights, beton.widths, samples, 1, size_px, 0, 0)
    out = decode(beton, samples, windows, size_px, threads=2, interpolation=interpolation).astype(int)
    for view, sample in zip(out, samples, strict=True):
        image = Image.fromarray(stored(beton, sample))
        whole = F.resize(image, -(-8 * size_px // 7), F.InterpolationMode(interpolation))
        assert np.abs(view - np.asarray(F.center_crop(whole, [size_px, size_px]))).max() <= 1


def test_threads_share_a_batch_without_changing_it(photos):
    beton = Beton.open(photos)
    samples = np.random.default_rng(0).permutation(beton.num_samples)
    windows = draw_windows(Resize(flip=True), beton.heights[samples], beton.widths[samples], samples, 3, 64, 0, 0)
    alone = decode(beton, samples, windows, 64, duplicates=3)
    for threads in (2, 5, 40):
        np.testing.assert_array_equal(decode(beton, samples, windows, 64, duplicates=3, threads=threads), alone)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_jpeg_that_does_not_decode_is_named(photos, tmp_path, threads):
    beton = Beton.open(photos)
    data = bytearray(photos.read_bytes())
    start = int(beton.data_ptr[17])
    data[start + 2 : start + 600] = bytes(598)
    (tmp_path / "damaged.beton").write_bytes(data)
    damaged = Beton.open(tmp_path / "damaged.beton")
    samples = np.arange(24)
    windows = draw_windows(Resize(), beton.heights, beton.widths, samples, 1, 32, 0, 0)
    with pytest.raises(BetonError, match=r"damaged\.beton: image 17 does not decode"):
        decode(damaged, samples, windows, 32, threads=threads)


def test_impossible_settings_are_refused(digits):
    beton = Beton.open(digits / "train.beton")
    with pytest.raises(ValueError, match="num_workers is 0"):
        Decoder(beton, 0)
    with pytest.raises(ValueError, match="min_oversampling is 0"):
        Decoder(beton, 1, 0)
    with pytest.raises(ValueError, match="interpolation is 'area'; it must be one of bilinear, bicubic"):
        Decoder(beton, 1, 1.0, "area")
