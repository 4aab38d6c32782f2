"""Data that the tests share: real digits and photographs that come with scikit-learn, and real images where given."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mixsize.ffcv_loaders.convert import convert, convert_splits


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder with train.beton (1,437 images of 8 x 8 px) and test.beton (360), stored raw."""
    folder = tmp_path_factory.mktemp("digits")
    convert_splits("digits", folder, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A .beton file of 24 JPEG photographs in 2 classes, 60 to 400 px, cut from scikit-learn's two."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / "source" / name).mkdir(parents=True)
        for i in range(12):
            height, width = rng.integers(60, 400, 2)
            top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
            image = Image.fromarray(photo[top : top + height, left : left + width])
            image.save(folder / "source" / name / f"{i:02}.jpg", quality=90)
    convert(folder / "source", folder / "photos.beton", store="jpg", workers=1, progress=False)
    return folder / "photos.beton"


@pytest.fixture(scope="session")
def real_images(tmp_path_factory) -> Path:
    """A folder with 2,000 training and 500 test images of CIFAR-10 and 300 of ImageNet, from MIXSIZE_DATA."""
    archives = os.environ.get("MIXSIZE_DATA")
    if not archives:
        pytest.skip("MIXSIZE_DATA names no folder with cifar10-jpeg.tar.xz and imagenet-sample-300.tar")
    folder = tmp_path_factory.mktemp("real")
    counts: dict[str, int] = {}
    limits = {"train": 200, "test": 50}
    with tarfile.open(Path(archives) / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            part = Path(member.name).parent.as_posix()
            split = part.split("/")[0]
            if member.isfile() and counts.get(part, 0) < limits[split]:
                counts[part] = counts.get(part, 0) + 1
                archive.extract(member, folder / "cifar10", filter="data")
    with tarfile.open(Path(archives) / "imagenet-sample-300.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder
