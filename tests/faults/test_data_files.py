"""Data files that change or are damaged while a loader reads them."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.conversion.encode import Encoding
from mixsize.ffcv_loaders.conversion.sources import ArraySource, open_digits
from mixsize.ffcv_loaders.conversion.writer import write_beton
from mixsize.ffcv_loaders.decode.augment import Resize
from mixsize.ffcv_loaders.loader import MixSizeLoader

SPOILT = 150


def loader(path):
    return MixSizeLoader(path, Regime.fixed(Base(16, 50)), augment=Resize(), device="cpu")


@pytest.fixture
def train(digits, tmp_path):
    return shutil.copy(digits / "train.beton", tmp_path / "train.beton")


def write_to(path):
    with open(path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def replace(path):
    other = path.with_suffix(".other")
    other.write_bytes(b"something else")
    other.replace(path)


@pytest.mark.parametrize("change", [write_to, cut_short])
def test_a_file_that_is_changed_in_place_ends_the_epoch_with_an_error(train, change):
    batches = iter(loader(train))
    next(batches)
    change(train)
    with pytest.raises(BetonError, match=r"train\.beton: was written to while it was read"):
        list(batches)


@pytest.mark.parametrize("change", [replace, os.unlink])
def test_a_file_that_is_replaced_or_removed_is_read_to_the_end(train, change):
    expected = [images for images, _ in loader(train)]
    batches = iter(loader(train))
    found = [next(batches)[0]]
    change(train)
    found += [images for images, _ in batches]
    assert all(map(torch.equal, found, expected))
    assert len(found) == len(expected) == 1437 // 50


@pytest.fixture
def jpegs(tmp_path):
    """A file of 200 digits stored as JPEG, and the offset of one of them."""
    digits = open_digits("train")
    source = ArraySource(digits.pixels[:200], digits.labels[:200], digits.classes, digits.kind, digits.split)
    write_beton(source, tmp_path / "jpegs.beton", Encoding("jpg"), workers=1, progress=False)
    with Beton.open(tmp_path / "jpegs.beton") as beton:
        return tmp_path / "jpegs.beton", int(beton.data_ptr[SPOILT])


def test_an_image_that_no_longer_decodes_is_named(jpegs):
    path, start = jpegs
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\0\0")
    with pytest.raises(BetonError, match=rf"jpegs\.beton: image {SPOILT} does not decode as a JPEG: Not a JPEG file"):
        list(loader(path))


def test_an_image_that_decodes_to_another_picture_is_not_noticed(jpegs):
    path, start = jpegs
    with open(path, "r+b") as file:
        file.seek(start)
        table = start + file.read(600).index(b"\xff\xdb") + 5  # The quantisation of the mean comes first.
        file.seek(table)
        (before,) = file.read(1)
        file.seek(table)
        file.write(bytes([before ^ 0x40]))
    assert len(list(loader(path))) == 4
