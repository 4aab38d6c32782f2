"""Policy and cutout: their distribution, their place between crop and resize, and what they refuse."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders import MixSizeLoader
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import Interpolation, PadCrop, RandomResizedCrop, draw_windows
from mixsize.ffcv_loaders.decode.policy import CIFAR10, magnitude_of, open_policy
from mixsize.ffcv_loaders.engine.native import FLIP, LEFT, TOP, Batch, Workspace
from mixsize.recipes.config import schema

SIDE = 32
MEAN = (0.491, 0.482, 0.447)
FILL = (125, 123, 114)  # 255 times the mean: 125.2, 122.9, 113.99
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}


@dataclass
class Frames:
    """What a policy asks of a data set."""

    heights: np.ndarray
    widths: np.ndarray
    path: Path = Path("some.beton")


def square_frames(side=SIDE):
    return Frames(np.full(1, side), np.full(1, side))


def finished(augment, image, samples, *, duplicates=1, threads=1, seed=3, epoch=0):
    """What the engine makes of views that all show one image, uncropped and at its own size."""
    side = len(image)
    policy = open_policy(augment, square_frames(side), MEAN, seed, epoch)
    number = samples.max() + 1
    sides, offsets, sizes = np.full((1, number), side), np.zeros((1, number), np.uint64), np.uint64(image.nbytes)
    levels = (sides, sides, np.zeros((1, number), np.bool_), offsets, np.full((1, number), sizes))
    views = len(samples) * duplicates
    windows = np.tile([0, 0, side, side, 0, 0, 0], (views, 1))
    out = np.empty((views, side, side, 3), np.uint8)
    with tempfile.TemporaryFile() as file:
        file.write(image.tobytes())
        file.flush()
        batch = Batch(file.fileno(), levels, samples, duplicates, windows, side, 1.0, out, policy=policy)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(batch.fill, [Workspace() for _ in range(threads)]))
    assert batch.failure is None
    return out


@pytest.fixture(scope="module")
def picture():
    """A gradient with noise: every operation changes it, each in its own way."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(30, 190, SIDE)
    noise = rng.integers(0, 40, (SIDE, SIDE, 3))
    return (ramp[:, None, None] + noise * [1.0, 0.7, 0.4]).astype(np.uint8)


# ---- the policy ----


def test_the_sub_policies_are_torchvisions():
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    plain = {"Invert", "AutoContrast", "Equalize"}
    ours = [
        tuple((name, probability, None if name in plain else level) for name, probability, level in sub_policy)
        for sub_policy in CIFAR10
    ]
    assert ours == theirs


def test_magnitudes_are_torchvisions():
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)._augmentation_space(10, (24, 40))
    for name, (magnitudes, signed) in theirs.items():
        assert signed == (name in SIGNED)
        expected = magnitudes.tolist() if magnitudes.ndim else [magnitudes.item()] * 10
        assert [magnitude_of(name, level, 24, 40) for level in range(10)] == pytest.approx(expected, rel=1e-6), name


def outcomes(image):
    """Each image that the policy can give, with its probability, by Pillow."""
    chances: Counter[bytes] = Counter()
    for sub_policy in CIFAR10:
        branches = [(Image.fromarray(image), 1 / len(CIFAR10))]
        for name, probability, level in sub_policy:
            magnitude = magnitude_of(name, level, SIDE, SIDE)
            signs = (1, -1) if name in SIGNED else (1,)
            applied = [
                (_apply_op(before, name, sign * magnitude, InterpolationMode.NEAREST, list(FILL)), chance / len(signs))
                for before, chance in branches
                for sign in signs
            ]
            branches = [(before, chance * (1 - probability)) for before, chance in branches] + [
                (after, chance * probability) for after, chance in applied
            ]
        for after, chance in branches:
            chances[after.tobytes()] += chance
    return chances


def test_every_outcome_of_the_policy_comes_up_as_often_as_it_should(picture):
    views = 40_000
    expected = outcomes(picture)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 100
    seen = Counter(view.tobytes() for view in finished(PadCrop(policy="cifar10"), picture, np.arange(views)))
    assert seen.keys() <= expected.keys()
    for outcome, chance in expected.items():
        deviation = math.sqrt(max(views * chance * (1 - chance), 1))
        # 5 standard deviations, for some 200 outcomes.
        assert abs(seen[outcome] - views * chance) < 5 * deviation


def test_recipes_name_the_same_filters():
    assert schema.Loader.model_fields["interpolation"].annotation == Interpolation
    assert schema.Evaluation.model_fields["interpolation"].annotation == Interpolation | None


def test_no_policy_and_no_cutout_leave_views_as_they_are_cut():
    assert open_policy(PadCrop(), square_frames(), MEAN, 0, 0) is None
    assert open_policy(RandomResizedCrop(), square_frames(), MEAN, 0, 0) is None
    assert open_policy(PadCrop(cutout_px=8), square_frames(), MEAN, 0, 0) is not None


# ---- cutout ----


@pytest.mark.parametrize("side", [1, 7, 16])
def test_cutout_fills_a_square_about_a_pixel_drawn_from_all_alike(side):
    views = 20_000
    cut = finished(PadCrop(cutout_px=side), np.zeros((SIDE, SIDE, 3), np.uint8), np.arange(views))
    filled = (cut == FILL).all(axis=-1)
    assert (filled | (cut == 0).all(axis=-1)).all()
    # A square of one row and column is side long, or less where the border cuts it: at least half, the centre's.
    heights = filled.any(axis=2).sum(axis=1)
    assert heights.max() == side
    assert heights.min() == (side + 1) // 2
    assert (filled.sum(axis=(1, 2)) == heights * filled.any(axis=1).sum(axis=1)).all()
    # Pixel r is covered by the squares about c with c - side // 2 <= r < c - side // 2 + side.
    centres = np.arange(SIDE)
    covered = [np.mean((centres - side // 2 <= r) & (r < centres - side // 2 + side)) for r in range(SIDE)]
    chance = np.outer(covered, covered)
    deviation = np.sqrt(np.maximum(views * chance * (1 - chance), 1))
    assert (np.abs(filled.sum(axis=0) - views * chance) < 5.5 * deviation).all()


def test_cutout_comes_after_the_policy(picture):
    """Inverted, brightened or moved, the square would not have the mean colour."""
    both = finished(PadCrop(policy="cifar10", cutout_px=16), picture, np.arange(2_000))
    square = finished(PadCrop(cutout_px=16), np.full_like(picture, 7), np.arange(2_000))
    assert (both[(square == FILL).all(axis=-1)] == FILL).all()


# ---- what a draw depends on ----


def test_draws_depend_on_sample_duplicate_epoch_and_seed_and_on_nothing_else(picture):
    augment = PadCrop(policy="cifar10", cutout_px=16)
    samples = np.arange(300)
    whole = finished(augment, picture, samples, duplicates=3).reshape(300, 3, -1)
    some = np.array([7, 299, 12, 150, 3])
    for threads in (1, 2, 5):
        part = finished(augment, picture, some, duplicates=3, threads=threads)
        np.testing.assert_array_equal(part.reshape(5, 3, -1), whole[some])
    np.testing.assert_array_equal(finished(augment, picture, samples).reshape(300, -1), whole[:, 0])
    others = [finished(augment, picture, samples, epoch=1), finished(augment, picture, samples, seed=4), whole[:, 1]]
    others += [whole[:, 2], np.roll(whole[:, 0], 1, axis=0)]
    for other in others:
        assert (other.reshape(300, -1) == whole[:, 0]).all(axis=1).mean() < 0.02


# ---- in the loader ----


def batches(data, augment, threads=1):
    """Steps of 4, 8 and 16 px with their images as the loader decoded them."""
    regime = Regime.from_sizes({16: 0.25, 8: 0.5, 4: 0.25}, Base(8, 64), "D+")
    loader = MixSizeLoader(
        data, regime, augment=augment, mean=MEAN, std=(1, 1, 1), seed=5, num_workers=threads, device="cpu"
    )
    for step, (images, _) in zip(loader.dataset.plan(), loader, strict=True):
        pixels = (images.permute(0, 2, 3, 1) + torch.tensor(MEAN)) * 255
        yield step, pixels.round().to(torch.uint8).numpy()


def cropped(beton, step, padding):
    """The views of a step, padded, cut and mirrored by numpy."""
    samples = step.samples
    heights, widths = beton.heights[samples], beton.widths[samples]
    windows = draw_windows(PadCrop(padding), heights, widths, samples, step.duplicates, step.size_px, 5, 0)
    for sample, window in zip(np.repeat(samples, step.duplicates), windows, strict=True):
        image = np.frombuffer(beton.stored(sample), np.uint8).reshape(8, 8, 3)
        top, left = window[[TOP, LEFT]] + padding
        view = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))[top : top + 8, left : left + 8]
        yield view[:, ::-1] if window[FLIP] else view


def test_the_loader_crops_then_changes_then_resizes(digits):
    """At the stored size its images are the changed crops themselves, else Pillow's resize of them."""
    augment = PadCrop(1, True, "cifar10", 4)
    beton = Beton.open(digits / "train.beton")
    sizes = Counter()
    for step, images in batches(beton, augment):
        sizes[step.size_px] += 1
        views = zip(cropped(beton, step, 1), np.repeat(step.samples, step.duplicates), strict=True)
        for image, (number, (view, sample)) in zip(images, enumerate(views), strict=True):
            changed = finished(augment, view, np.array([sample]), duplicates=step.duplicates, seed=5)
            view = changed[number % step.duplicates]
            if step.size_px == 8:
                np.testing.assert_array_equal(image, view)
            else:
                sides = (step.size_px, step.size_px)
                resized = np.asarray(Image.fromarray(view).resize(sides, Image.Resampling.BILINEAR))
                assert np.abs(image.astype(int) - resized).max() <= 1
    assert set(sizes) == {16, 8, 4}


def test_the_number_of_threads_changes_no_batch(digits):
    augment = PadCrop(1, True, "cifar10", 4)
    one, three = ([images for _, images in batches(digits / "train.beton", augment, n)] for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what is refused ----


@pytest.mark.parametrize("augment", [PadCrop(policy="cifar10"), PadCrop(cutout_px=16)])
def test_images_of_several_sizes_are_refused_before_any_is_decoded(photos, augment):
    loader = MixSizeLoader(photos, Regime.fixed(Base(32, 4)), augment=augment, device="cpu")
    with pytest.raises(ValueError, match=r"photos\.beton: policy .* need images of one stored size; these are \d+ to"):
        next(iter(loader))


def test_a_cutout_larger_than_the_images_is_refused():
    with pytest.raises(ValueError, match="cutout_px is 33; it must be at most the images' shorter side, 32 px"):
        open_policy(PadCrop(cutout_px=33), square_frames(), MEAN, 0, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: PadCrop(policy="cifar"),
            "policy is 'cifar'; it must be none; rand with .*; or, with pad_crop, cifar10",
        ),
        (lambda: PadCrop(cutout_px=-1), "cutout_px is -1; it must be at least 0 px"),
    ],
)
def test_unknown_policies_and_negative_sides_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
