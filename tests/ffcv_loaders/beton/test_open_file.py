"""Reading a file that changes, is replaced or fails under its reader: an error that names it, never a signal."""

from __future__ import annotations

import os
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.decode.augment import RandomResizedCrop, Resize, draw_windows
from mixsize.ffcv_loaders.decode.decode import Decoder
from mixsize.ffcv_loaders.loader import MixSizeLoader


@pytest.fixture(params=["photos", "digits"])
def data(request, tmp_path):
    """A file of JPEG images, and one of raw images."""
    file = request.getfixturevalue(request.param)
    return shutil.copy(file if file.is_file() else file / "train.beton", tmp_path / "data.beton")


def loader(data, **options):
    return MixSizeLoader(data, Regime.fixed(Base(16, 4)), augment=Resize(), num_workers=2, device="cpu", **options)


def decode_all(beton, decoder):
    samples = np.arange(beton.num_samples)
    windows = draw_windows(RandomResizedCrop(), beton.heights, beton.widths, samples, 2, 16, 0, 0)
    decoder.decode(samples, 2, windows, np.empty((2 * len(samples), 16, 16, 3), np.uint8))


def test_a_file_cut_short_while_a_loader_reads_it_is_named(data):
    batches = iter(loader(data))
    next(batches)
    os.truncate(data, 9 << 20 if data.stat().st_size > 9 << 20 else 4096)
    with pytest.raises(BetonError, match=r"data\.beton: was written to while it was read"):
        list(batches)


def test_a_file_written_to_while_a_loader_reads_it_is_named(data):
    batches = iter(loader(data))
    next(batches)
    with open(data, "r+b") as file:
        file.write(b"x")
    os.utime(data, ns=(0, 0))
    with pytest.raises(BetonError, match=r"data\.beton: was written to while it was read"):
        list(batches)


def test_bytes_that_are_gone_are_an_error_that_names_file_and_image(data):
    beton = Beton.open(data)
    decoder = Decoder(beton, 1)
    end = int(beton.data_ptr[5]) + int(beton.data_size[5])
    os.truncate(data, end)
    decode_all_up_to = np.arange(6)
    windows = draw_windows(Resize(), beton.heights[:6], beton.widths[:6], decode_all_up_to, 1, 16, 0, 0)
    out = np.empty((6, 16, 16, 3), np.uint8)
    decoder.decode(decode_all_up_to, 1, windows, out)
    os.truncate(data, end - 1)
    with pytest.raises(BetonError, match=r"data\.beton: image 5 cannot be read: the file was cut short"):
        decoder.decode(decode_all_up_to, 1, windows, out)


def test_a_read_that_fails_is_an_error_that_names_file_and_image(data, monkeypatch):
    beton = Beton.open(data)
    decoder = Decoder(beton, 1)
    with open(data, "ab") as not_for_reading:
        monkeypatch.setattr(beton.file, "descriptor", not_for_reading.fileno())
        with pytest.raises(BetonError, match=r"data\.beton: image 0 cannot be read: .* its disk or network failed"):
            decode_all(beton, decoder)


def replace(path):
    path.with_suffix(".new").write_bytes(b"another")
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [os.unlink, replace])
def test_a_file_that_is_removed_or_replaced_is_read_to_its_end(data, change):
    usual = list(loader(data))
    batches = iter(loader(data))
    begun = list(islice(batches, 1))
    change(data)
    for (images, labels), (others, their_labels) in zip(usual, [*begun, *batches], strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


def test_a_loader_under_way_outlasts_the_closing_of_its_file(data):
    usual = list(loader(data))
    beton = Beton.open(data)
    batches = iter(loader(beton))
    begun = [next(batches)]
    beton.close()
    assert len([*begun, *batches]) == len(usual)
    with pytest.raises(BetonError, match=r"data\.beton: was closed"):
        next(iter(loader(beton)))


def test_files_are_closed_with_their_last_user(data):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        decoder = Decoder(Beton.open(data), 1)
        decode_all(Beton.open(data), decoder)
    del decoder
    assert len(os.listdir("/proc/self/fd")) == before
