"""Data for a dry run, from what comes with scikit-learn: its digits, and pieces of its two photographs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from mixsize.ffcv_loaders.conversion.convert import convert, convert_splits

_PIECES = 8
_SIDES_PX = (60, 200)


@dataclass(frozen=True)
class DryData:
    """Files in the place of real ones.

    Attributes:
        cifar: folder of train.beton and test.beton, digits of 8 x 8 px in 10 classes.
        images: ``.beton`` file of a few JPEG photographs in 2 classes.
    """

    cifar: Path
    images: Path


def write_dry_data(folder: Path) -> DryData:
    """Write the files, where they are not there yet."""
    data = DryData(folder / "digits", folder / "photographs.beton")
    if not all((data.cifar / name).is_file() for name in ("train.beton", "test.beton")):
        convert_splits("digits", data.cifar, workers=1, progress=False, overwrite=True)
    if not data.images.is_file():
        _write_photographs(data.images)
    return data


def _write_photographs(file: Path) -> None:
    photographs = load_sample_images()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, photograph in zip(("china", "flower"), photographs.images, strict=True):
            place = Path(folder) / name
            place.mkdir()
            for index in range(_PIECES):
                height, width = generator.integers(*_SIDES_PX, 2)
                top = generator.integers(photograph.shape[0] - height)
                left = generator.integers(photograph.shape[1] - width)
                piece = Image.fromarray(photograph[top : top + height, left : left + width])
                piece.save(place / f"{index}.jpg", quality=90)
        convert(Path(folder), file, store="jpg", workers=1, progress=False)
