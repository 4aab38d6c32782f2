"""Whole batches over every kind of stored image, whatever the windows: the fuzzer's seeds, replayed."""

from __future__ import annotations

import math
import tempfile

import numpy as np
import pytest

from mixsize.ffcv_loaders.engine.native import (
    BAD_CALL,
    BICUBIC,
    BILINEAR,
    BROKEN,
    UNREADABLE,
    Batch,
    Workspace,
    draw_windows,
)

from .jpeg_corpus import BROKEN_FILES, CORPUS, WHOLE_FILES, declared_size

SIDE = 24
CANARY = 77


class Stored:
    """Images in a file, with the tables that the engine takes."""

    def __init__(self, images, file):
        self.file = file
        rows, end = [], 0
        for data, size, is_jpeg in images:
            self.file.write(data)
            rows.append((*size, is_jpeg, end, len(data)))
            end += len(data)
        self.file.flush()
        types = (np.int64, np.int64, np.bool_, np.uint64, np.uint64)
        columns = zip(zip(*rows, strict=True), types, strict=True)
        self.levels = [np.array([column], kind) for column, kind in columns]

    def fill(self, samples, duplicates, windows, least=math.inf, resample=BILINEAR, side=SIDE):
        """The views, or the failure; what lies behind them must not change."""
        size = len(windows) * side * side * 3
        memory = np.full(size + 64, CANARY, np.uint8)
        out = memory[:size].reshape(len(windows), side, side, 3)
        batch = Batch(self.file.fileno(), self.levels, samples, duplicates, windows, side, least, out, resample)
        batch.fill(Workspace())
        assert (memory[size:] == CANARY).all()
        return batch.failure or out

    def windows(self, samples, duplicates, kind, parameters, seed):
        heights, widths = self.levels[0][0, samples], self.levels[1][0, samples]
        return draw_windows(kind, parameters, True, heights, widths, samples, duplicates, SIDE, seed, 0)


@pytest.fixture
def store():
    """Stores images in a file."""
    with tempfile.TemporaryFile() as file:
        yield lambda images: Stored(images, file)


def jpeg(name):
    return CORPUS[name], declared_size(CORPUS[name]), True


RAW = (np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8).tobytes(), (31, 45), False)
KINDS = {"crops": (0, (0.08, 1.0, -0.3, 0.3)), "shifts": (1, (9,)), "centres": (2, (0.875,))}


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("kind", KINDS)
def test_a_view_has_the_same_pixels_alone_and_among_others(store, kind, resample):
    stored = store([*map(jpeg, WHOLE_FILES), RAW])
    samples = np.random.default_rng(1).permutation(len(WHOLE_FILES) + 1)
    windows = stored.windows(samples, 3, *KINDS[kind], seed=5)
    together = stored.fill(samples, 3, windows, resample=resample)
    for place in range(0, len(windows), 5):
        alone = stored.fill(samples[place // 3 : place // 3 + 1], 1, windows[place : place + 1], resample=resample)
        np.testing.assert_array_equal(alone[0], together[place])


def test_hundreds_of_views_share_a_few_decodes_and_each_has_its_own_pixels(store):
    """More views than are compared in pairs at once, against the same windows one by one."""
    stored = store([jpeg("rgb")])
    samples, duplicates = np.array([0]), 150
    windows = stored.windows(samples, duplicates, *KINDS["crops"], seed=7)
    together = stored.fill(samples, duplicates, windows)
    for view, window in zip(together, windows, strict=True):
        np.testing.assert_array_equal(view, stored.fill(samples, 1, window[None])[0])
    batch = Batch(stored.file.fileno(), stored.levels, samples, duplicates, windows, SIDE, math.inf)
    assert len(batch.copies_to_read(Workspace())) <= 3


@pytest.mark.parametrize("name", sorted(BROKEN_FILES))
def test_an_image_that_does_not_decode_is_the_one_that_failed(store, name):
    size = (45, 70) if name in ("huge", "no_height") else declared_size(CORPUS[name])
    stored = store([jpeg("420"), (CORPUS[name], size, True), RAW])
    whole = np.zeros((3, 7), np.int64)
    whole[:, 2:4] = [declared_size(CORPUS["420"]), size, RAW[1]]
    place, code, _ = stored.fill(np.array([0, 1, 2]), 1, whole)
    assert place == 1
    assert code >= BROKEN


def test_a_file_that_ends_early_is_unreadable(store):
    stored = store([RAW, RAW])
    stored.file.truncate(5_000)
    windows = stored.windows(np.array([0, 1]), 1, *KINDS["crops"], seed=0)
    assert stored.fill(np.array([0, 1]), 1, windows)[:2] == (1, UNREADABLE)


def test_windows_that_no_crop_draws_are_bad_calls_or_views(store):
    rng = np.random.default_rng(2)
    stored = store([jpeg("420"), RAW])
    seen = set()
    for _ in range(400):
        samples = rng.integers(0, 2, 1)
        windows = stored.windows(samples, 1, *KINDS[list(KINDS)[rng.integers(3)]], seed=int(rng.integers(99)))
        column = int(rng.integers(0, 7))
        windows[0, column] = rng.choice([-(2**63), -70_000, -40, -1, 0, 1, 44, 1_000, 2**40, 2**63 - 1])
        result = stored.fill(samples, 1, windows)
        seen.add(isinstance(result, tuple))
        if isinstance(result, tuple):
            assert result[1] == BAD_CALL
    assert seen == {True, False}
