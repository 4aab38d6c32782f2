"""AutoAugment's operations against Pillow, through torchvision, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from mixsize.ffcv_loaders.decode.policy import KINDS, magnitude_of, operation_parameters
from mixsize.ffcv_loaders.engine.native import operate

FILL = (125, 123, 114)
NEAREST = {"interpolation": InterpolationMode.NEAREST, "fill": list(FILL)}
SHEAR = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "center": [0, 0], **NEAREST}
SHIFT = {"angle": 0.0, "scale": 1.0, "shear": [0.0, 0.0], **NEAREST}


def degrees(slope):
    return float(np.degrees(np.arctan(slope)))


# Name -> torchvision's operation on a Pillow image, and the magnitudes to try: beyond those of any policy.
PILLOW = {
    "ShearX": (lambda image, m: F.affine(image, shear=[degrees(m), 0.0], **SHEAR), (-0.5, 0.5)),
    "ShearY": (lambda image, m: F.affine(image, shear=[0.0, degrees(m)], **SHEAR), (-0.5, 0.5)),
    "TranslateX": (lambda image, m: F.affine(image, translate=[int(m), 0], **SHIFT), (-40, 40)),
    "TranslateY": (lambda image, m: F.affine(image, translate=[0, int(m)], **SHIFT), (-40, 40)),
    "Rotate": (lambda image, m: F.rotate(image, m, **NEAREST), (-180, 180)),
    "Brightness": (lambda image, m: F.adjust_brightness(image, 1 + m), (-1, 2)),
    "Color": (lambda image, m: F.adjust_saturation(image, 1 + m), (-1, 2)),
    "Contrast": (lambda image, m: F.adjust_contrast(image, 1 + m), (-1, 2)),
    "Sharpness": (lambda image, m: F.adjust_sharpness(image, 1 + m), (-1, 2)),
    "Posterize": (lambda image, m: F.posterize(image, int(m)), (1, 9)),
    "Solarize": (lambda image, m: F.solarize(image, m), (0, 255)),
    "AutoContrast": (lambda image, m: F.autocontrast(image), (0, 1)),
    "Equalize": (lambda image, m: F.equalize(image), (0, 1)),
    "Invert": (lambda image, m: F.invert(image), (0, 1)),
}


def images():
    """Noise over all and over some values, flat colours and gradients, from 1 x 1 to 40 x 40 px."""
    rng = np.random.default_rng(0)
    for k in range(40):
        height, width = (32, 32) if k % 2 else rng.integers(1, 41, 2)
        low = rng.integers(0, 250)
        image = rng.integers(low, rng.integers(low + 1, 257), (height, width, 3), dtype=np.uint8)
        if k % 5 == 0:
            image[:] = image[0, 0]
        if k % 5 == 1:
            image[:] = (np.arange(width) * rng.integers(1, 9) % 256).astype(np.uint8)[:, None]
        yield image


def changed(image, name, magnitude):
    out = image.copy()
    parameters = operation_parameters(name, magnitude, *image.shape[:2])
    operate(out, KINDS[name], parameters, np.array(FILL, dtype=np.uint8))
    return out


def test_every_operation_is_compared():
    assert KINDS.keys() == PILLOW.keys()
    assert len(PILLOW) == 14


@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows_bit_for_bit(name):
    reference, (low, high) = PILLOW[name]
    rng = np.random.default_rng(1)
    for image in images():
        # Multiples of a tenth, as policies have them, lead to values that single precision rounds its own way.
        levels = [magnitude_of(name, level, *image.shape[:2]) for level in rng.permutation(10)[:4]]
        levels += [-magnitude for magnitude in levels if low < 0]
        for magnitude in (low, *levels, *rng.uniform(low, high, 4)):
            magnitude = float(int(magnitude)) if name == "Posterize" else float(magnitude)
            expected = np.asarray(reference(Image.fromarray(image), magnitude))
            np.testing.assert_array_equal(changed(image, name, magnitude), expected, f"{magnitude}, {image.shape}")


def test_a_brighter_pixel_and_a_shifted_row_by_hand():
    # 100 and 200 brightened by half, cut at 255; Pillow drops the fraction of 151.5.
    row = np.array([[[100, 101, 200]]], dtype=np.uint8)
    assert changed(row, "Brightness", 0.5).tolist() == [[[150, 151, 255]]]
    columns = np.arange(1, 5, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    assert changed(columns, "TranslateX", 2.9)[0, :, 0].tolist() == [125, 125, 1, 2]
    assert changed(columns, "TranslateX", -1.0)[0, :, 2].tolist() == [2, 3, 4, 114]
