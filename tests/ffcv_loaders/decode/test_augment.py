"""Where views are cut, against torchvision's rules, hand values and the laws of chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from mixsize.ffcv_loaders.decode.augment import (
    CenterCrop,
    PadCrop,
    RandomResizedCrop,
    Resize,
    draw_windows,
)
from mixsize.ffcv_loaders.engine.native import FLIP, HEIGHT, LEFT, TOP, WIDTH

N = 4_000


def windows(augment, height, width, *, duplicates=1, size_px=96, seed=1, epoch=2, samples=None):
    samples = np.arange(N) if samples is None else samples
    heights, widths = np.full(len(samples), height), np.full(len(samples), width)
    return draw_windows(augment, heights, widths, samples, duplicates, size_px, seed, epoch)


def test_random_resized_crops_follow_the_distribution_of_torchvisions():
    ours = windows(RandomResizedCrop(), 375, 500)
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array([TorchvisionCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(N)])
    for column, their_column in ((TOP, 0), (LEFT, 1), (HEIGHT, 2), (WIDTH, 3)):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, their_column])
        # Kolmogorov-Smirnov at p = 0.001: 1.95 * sqrt(2 / N)
        grid = np.arange(501)
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / N
        assert distance < 1.95 * math.sqrt(2 / N)


def test_random_resized_crops_stay_inside_the_frame_and_the_ranges():
    for height, width in ((375, 500), (32, 32), (1, 1), (8, 300), (300, 8)):
        cut = windows(RandomResizedCrop((0.2, 0.5), (0.5, 2.0)), height, width)
        assert (cut[:, TOP] >= 0).all()
        assert (cut[:, LEFT] >= 0).all()
        assert (cut[:, TOP] + cut[:, HEIGHT] <= height).all()
        assert (cut[:, LEFT] + cut[:, WIDTH] <= width).all()
        assert (cut[:, [HEIGHT, WIDTH]] >= 1).all()
    area = windows(RandomResizedCrop((0.2, 0.5), (0.5, 2.0)), 375, 500)
    fractions = area[:, HEIGHT] * area[:, WIDTH] / (375 * 500)
    assert fractions.min() == pytest.approx(0.2, abs=0.01)
    assert fractions.max() == pytest.approx(0.5, abs=0.01)


def test_a_frame_too_long_for_any_crop_gives_its_central_part():
    # 300 x 8 with all of the area asked for: the tallest part of ratio 3/4 is 8 wide and 8 / 0.75 = 11 (10.67) high
    cut = windows(RandomResizedCrop((1.0, 1.0)), 300, 8)
    assert set(map(tuple, cut[:, [HEIGHT, WIDTH, LEFT]].tolist())) == {(11, 8, 0)}
    assert set(cut[:, TOP].tolist()) == {(300 - 11) // 2}


def test_pad_crop_shifts_by_every_offset_alike():
    cut = windows(PadCrop(4), 32, 32)
    assert set(map(tuple, cut[:, [HEIGHT, WIDTH]].tolist())) == {(32, 32)}
    for column in (TOP, LEFT):
        counts = np.bincount(cut[:, column] + 4, minlength=9)
        assert len(counts) == 9
        # Binomial(4000, 1/9): mean 444, standard deviation 20
        assert np.abs(counts - N / 9).max() < 100


def test_half_of_the_views_are_mirrored_unless_told_otherwise():
    for augment in (RandomResizedCrop(), PadCrop(), Resize(flip=True)):
        assert windows(augment, 32, 32)[:, FLIP].mean() == pytest.approx(0.5, abs=0.04)
    for augment in (RandomResizedCrop(flip=False), PadCrop(flip=False), Resize(), CenterCrop()):
        assert not windows(augment, 32, 32)[:, FLIP].any()


def test_resize_takes_the_whole_frame():
    assert set(map(tuple, windows(Resize(), 30, 40).tolist())) == {(0, 0, 30, 40, 0, 0, 0)}


@pytest.mark.parametrize(
    ("height", "width", "size_px", "expected"),
    [
        # shorter side 224 / (7/8) = 256, longer 256 * 500 / 375 = 341.3; margins 32 and 117, halved (58.5 to even)
        (375, 500, 224, (16, 58, 224, 224, 0, 256, 341)),
        # ceil(96 / (7/8)) = ceil(109.7) = 110, longer 146.7; margins 14 and 50
        (375, 500, 96, (7, 25, 96, 96, 0, 110, 146)),
        (500, 375, 96, (25, 7, 96, 96, 0, 146, 110)),
        (1, 1, 96, (7, 7, 96, 96, 0, 110, 110)),
    ],
)
def test_center_crop_is_the_papers_protocol_by_hand(height, width, size_px, expected):
    assert set(map(tuple, windows(CenterCrop(), height, width, size_px=size_px).tolist())) == {expected}


def test_draws_depend_on_sample_epoch_seed_and_duplicate_and_on_nothing_else():
    crop = RandomResizedCrop()
    whole = windows(crop, 375, 500, duplicates=3).reshape(N, 3, -1)
    some = np.array([7, 3, 3999])
    np.testing.assert_array_equal(windows(crop, 375, 500, duplicates=3, samples=some).reshape(3, 3, -1), whole[some])
    np.testing.assert_array_equal(windows(crop, 375, 500, duplicates=1, size_px=224), whole[:, 0])
    for other in (windows(crop, 375, 500, epoch=3), windows(crop, 375, 500, seed=2), whole[:, 1]):
        assert (other[:, :4] == whole[:, 0, :4]).all(axis=1).mean() < 0.01


def test_draws_of_neighbours_are_uncorrelated():
    cut = windows(RandomResizedCrop(), 375, 500, duplicates=2).reshape(N, 2, -1)[..., HEIGHT]
    pairs = [(cut[:-1, 0], cut[1:, 0]), (cut[:, 0], cut[:, 1])]
    pairs += [(cut[:, 0], windows(RandomResizedCrop(), 375, 500, epoch=3)[:, HEIGHT])]
    pairs += [(cut[:, 0], windows(RandomResizedCrop(), 375, 500, seed=2)[:, HEIGHT])]
    for a, b in pairs:
        # 4 standard deviations of a correlation of 4,000 independent pairs
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(N)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomResizedCrop(scale=(0.0, 1.0)), "scale is .*above 0"),
        (lambda: RandomResizedCrop(scale=(0.5, 0.1)), "rising"),
        (lambda: RandomResizedCrop(scale=(0.5, 1.1)), "at most 1"),
        (lambda: RandomResizedCrop(ratio=(-1, 1)), "ratio is"),
        (lambda: PadCrop(-1), "padding is -1"),
        (lambda: CenterCrop(0), "fraction is 0"),
        (lambda: CenterCrop(1.2), "fraction is 1.2"),
    ],
)
def test_impossible_cuts_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
