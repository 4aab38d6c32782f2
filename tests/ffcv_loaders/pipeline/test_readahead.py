import os
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.quasi_random import QuasiRandom
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders import MixSizeLoader, RandomResizedCrop
from mixsize.ffcv_loaders.beton.reader import Beton, BetonError
from mixsize.ffcv_loaders.conversion.convert import convert
from mixsize.ffcv_loaders.decode.augment import draw_windows
from mixsize.ffcv_loaders.decode.decode import Decoder
from mixsize.ffcv_loaders.engine.native import Batch, Workspace
from mixsize.ffcv_loaders.pipeline import readahead

REGIME = Regime.from_sizes({32: 0.5, 64: 0.5}, Base(64, 4), "D+")


@pytest.fixture(scope="module")
def levels_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    generator = np.random.default_rng(5)
    for index in range(24):
        small = generator.integers(0, 256, (20, 26, 3), np.uint8)
        (folder / "images" / str(index % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((260, 200)).save(folder / "images" / str(index % 3) / f"{index:02}.jpg")
    convert(folder / "images", folder / "images.beton", levels=(2, 4), workers=1, progress=False)
    return folder / "images.beton"


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(readahead, "bytes_at_hand", lambda: 1_000)


def copies_of(beton, samples, duplicates, windows, size_px, threshold):
    batch = Batch(beton.file.descriptor, beton.levels, samples, duplicates, windows, size_px, threshold)
    return batch.copies_to_read(Workspace())


@contextmanager
def other_bytes_zeroed(path, copies):
    """The file with zeros in place of every stored image that is not among ``copies``."""
    with Beton.open(path) as beton:
        kept = {int(start) for start, _ in copies}
        ranges = zip(beton.levels.data_ptr.ravel().tolist(), beton.levels.data_size.ravel().tolist(), strict=True)
        zeroed = [(start, size, beton.file.read(start, size)) for start, size in ranges if start not in kept]
    with open(path, "r+b") as file:
        for start, size, _ in zeroed:
            file.seek(start)
            file.write(bytes(size))
        file.flush()
        yield
        for start, _, content in zeroed:
            file.seek(start)
            file.write(content)


@pytest.mark.parametrize(("size_px", "duplicates"), [(32, 1), (64, 1), (32, 3), (128, 2)])
def test_what_is_asked_for_is_what_decoding_reads(levels_file, size_px, duplicates):
    with Beton.open(levels_file) as beton:
        samples = np.arange(24)
        windows = draw_windows(RandomResizedCrop(), beton.heights, beton.widths, samples, duplicates, size_px, 1, 0)
        copies = copies_of(beton, samples, duplicates, windows, size_px, 1.1)
        whole, partial = np.zeros((2, 24 * duplicates, size_px, size_px, 3), np.uint8)
        decoder = Decoder(beton, 1, 1.1)
        decoder.decode(samples, duplicates, windows, whole)
        with other_bytes_zeroed(levels_file, copies):
            decoder.decode(samples, duplicates, windows, partial)
        assert np.array_equal(whole, partial)
        # And no byte of it in vain: without any one of the copies an image is missing.
        for left_out in range(0, len(copies), 5):
            kept = [copy for copy in copies.tolist() if copy != copies[left_out].tolist()]
            with other_bytes_zeroed(levels_file, kept), pytest.raises(BetonError):
                decoder.decode(samples, duplicates, windows, partial)


def test_small_views_are_read_from_small_copies(levels_file):
    with Beton.open(levels_file) as beton:
        samples = np.arange(24)
        windows = draw_windows(RandomResizedCrop(scale=(0.9, 1.0)), beton.heights, beton.widths, samples, 1, 32, 1, 0)
        copies = copies_of(beton, samples, 1, windows, 32, 1.1)
        assert np.array_equal(copies[:, 0], beton.levels.data_ptr[2])


def test_a_file_that_fits_is_left_to_the_kernel(levels_file, monkeypatch):
    plan = plan_epoch(REGIME, 24, 0, 0)
    with Beton.open(levels_file) as beton:
        for share, kind in ((1.9, readahead.ImageReadahead), (2.1, type(None))):
            monkeypatch.setattr(readahead, "bytes_at_hand", lambda share=share: share * beton.file.num_bytes)
            opened = readahead.open_readahead(beton, plan, None, 1.1)
            assert type(opened) is kind


def test_where_single_images_are_requested_the_kernel_reads_nothing_around_them(
    levels_file, little_memory, monkeypatch
):
    advice = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, kind: advice.append(kind))
    with Beton.open(levels_file) as beton:
        readahead.open_readahead(beton, plan_epoch(REGIME, 24, 0, 0), None, 1.1)
    assert advice == [os.POSIX_FADV_RANDOM]


def test_batches_are_the_same_however_they_are_read(levels_file, monkeypatch):
    def batches(**options):
        loader = MixSizeLoader(levels_file, REGIME, augment=RandomResizedCrop(), num_workers=2, device="cpu", **options)
        return [*loader, *loader]

    usual = batches()
    monkeypatch.setattr(readahead, "bytes_at_hand", lambda: 1_000)
    for images_ahead in (1, 5, 512):
        monkeypatch.setattr(readahead.ImageReadahead, "images_ahead", images_ahead)
        ahead = batches()
        assert len(ahead) == len(usual)
        for (images, labels), (others, their_labels) in zip(usual, ahead, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, their_labels)


def test_steps_are_announced_in_time_and_in_order(levels_file, little_memory, monkeypatch):
    events = []
    announce, decode = readahead.ImageReadahead.announce, Decoder.submit
    monkeypatch.setattr(readahead.ImageReadahead, "images_ahead", 8)

    def noting_announce(self, index, step, windows):
        events.append(("ask", *step.samples))
        announce(self, index, step, windows)

    def noting_decode(self, samples, *rest):
        events.append(("read", *samples))
        return decode(self, samples, *rest)

    monkeypatch.setattr(readahead.ImageReadahead, "announce", noting_announce)
    monkeypatch.setattr(Decoder, "submit", noting_decode)
    loader = MixSizeLoader(levels_file, REGIME, num_workers=1, device="cpu")
    steps = [("ask", *step.samples) for step in loader.dataset.plan()]
    list(loader)
    assert [event for event in events if event[0] == "ask"] == steps
    for number, event in enumerate(events):
        if event[0] == "read":
            asked = [sample for kind, *samples in events[:number] if kind == "ask" for sample in samples]
            at = asked.index(event[1])
            assert len(asked) - at >= min(8, 24 - at)


def test_pages_are_asked_for_once_in_order_and_a_window_ahead(levels_file, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: asked.append(start))
    with Beton.open(levels_file) as beton:
        paged = QuasiRandom(np.arange(24, dtype=np.int32) // 2, np.arange(12) * 100, 100, window=3)
        plan = plan_epoch(REGIME, 24, 0, 0, quasi_random=paged)
        reader = readahead.PageReadahead(beton, plan, paged)
        for index, step in enumerate(plan):
            reader.announce(index, step, np.empty((0, 7)))
            assert set(paged.starts[paged.page_of[step.samples]]) <= set(asked)
        assert asked == (plan.pages * 100).tolist()
        # Resumed in the middle: from the window at hand on.
        asked.clear()
        middle = len(plan) // 2
        resumed = readahead.PageReadahead(beton, plan, paged)
        resumed.announce(middle, plan[middle], np.empty((0, 7)))
        first = int(12 * plan.offsets[middle] / plan.offsets[-1]) // 3 * 3
        assert asked[0] == plan.pages[first] * 100


def test_a_quasi_random_loader_serves_each_image_once_and_resumes(levels_file):
    def loader(**options):
        return MixSizeLoader(
            levels_file, Regime.fixed(Base(32, 4)), num_workers=1, device="cpu", window_mib=8, **options
        )

    whole = list(loader())
    assert sum(len(labels) for _, labels in whole) == 24
    begun = loader()
    list(islice(begun, 2))
    resumed = loader()
    resumed.dataset.load_state_dict(begun.dataset.state_dict(8))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], resumed, strict=True))
    other = MixSizeLoader(levels_file, Regime.fixed(Base(32, 4)), num_workers=1, device="cpu")
    other.dataset.load_state_dict(begun.dataset.state_dict(8))
    with pytest.raises(ValueError, match="window_pages was 1, is None"):
        next(iter(other))
    with pytest.raises(ValueError, match="window_mib is 0; it must be at least 1"):
        MixSizeLoader(levels_file, REGIME, window_mib=0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"min_oversampling": 2.0}, r"min_oversampling was 1\.1, is 2\.0"),
        ({"interpolation": "bicubic"}, "interpolation was 'bilinear', is 'bicubic'"),
    ],
)
def test_other_pixels_are_another_run(levels_file, changed, words):
    begun = MixSizeLoader(levels_file, REGIME, device="cpu", min_oversampling=1.1)
    other = MixSizeLoader(levels_file, REGIME, device="cpu", **{"min_oversampling": 1.1, **changed})
    other.dataset.load_state_dict(begun.dataset.state_dict(0))
    with pytest.raises(ValueError, match=words):
        next(iter(other))


def test_shuffled_files_hold_the_same_images_in_another_order(levels_file):
    out = levels_file.with_name("shuffled.beton")
    images: Path = levels_file.parent / "images"
    convert(images, out, levels=(2, 4), shuffle=3, workers=1, progress=False, overwrite=True)
    with Beton.open(levels_file) as plain, Beton.open(out) as shuffled:
        order = np.random.default_rng(3).permutation(24)
        assert np.array_equal(shuffled.labels, plain.labels[order])
        assert np.array_equal(shuffled.data_size, plain.data_size[order])
        assert shuffled.info.classes == plain.info.classes
    with pytest.raises(ValueError, match="shuffle is -1; it must be at least 0"):
        convert(images, out, shuffle=-1, overwrite=True)
