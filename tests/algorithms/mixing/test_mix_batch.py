"""Mixup and CutMix of a batch against hand values and timm's."""

from __future__ import annotations

import numpy as np
import pytest
import timm.data.mixup as timm_mixup
import torch

from mixsize.algorithms import cutmix, mix_batch, mixup
from mixsize.algorithms.mixing.mix_batch import draw_box, partners


def of_one_value_each(num_images, duplicates, size_px=8):
    """Images whose pixels are the number of the image, and the number of the image as label."""
    labels = torch.arange(num_images).repeat_interleave(duplicates)
    return labels[:, None, None, None].float().expand(-1, 3, size_px, size_px).contiguous(), labels


@pytest.mark.parametrize("num_images", range(2, 9))
@pytest.mark.parametrize("duplicates", range(1, 7))
def test_a_view_is_never_mixed_with_its_own_image_and_every_view_is_a_partner_once(num_images, duplicates):
    other = partners(num_images * duplicates, duplicates)
    assert sorted(other.tolist()) == list(range(num_images * duplicates))
    image = torch.arange(num_images * duplicates) // duplicates
    assert (image[other] != image).all()
    # The views of an image meet as many other images as there are.
    for group in (other // duplicates).view(num_images, duplicates):
        assert len(group.unique()) == min(duplicates, num_images - 1)


@pytest.mark.parametrize("seed", range(40))
def test_no_draw_mixes_two_views_of_one_image(seed):
    rng = np.random.default_rng(seed)
    num_images, duplicates = int(rng.integers(2, 10)), int(rng.integers(2, 6))
    images, labels = of_one_value_each(num_images, duplicates, 32)
    alphas = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}
    mixed, soft = mix_batch(images, labels, rng, num_images, duplicates, **alphas)
    share = soft.gather(1, labels[:, None]).flatten()
    assert len(share.unique()) == 1
    # A view mixed with another of its own image would keep the whole weight.
    assert ((soft > 0).sum(1) == (1 if share[0] == 1 else 2)).all()
    assert not torch.equal(mixed, images) or share[0] == 1


def test_mixup_by_hand():
    images, labels = of_one_value_each(3, 2)
    mixed, soft = mixup(images, labels, 0.75, num_classes=4, duplicates=2)
    # View 0 of image i meets image i + 1, view 1 meets image i + 2.
    expected = [0.75 * i + 0.25 * j for i, j in [(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]]
    torch.testing.assert_close(mixed[:, 2, 7, 0], torch.tensor(expected))
    torch.testing.assert_close(soft[1], torch.tensor([0.75, 0.0, 0.25, 0.0]))
    assert (mixed.amax((1, 2, 3)) == mixed.amin((1, 2, 3))).all()
    assert torch.equal(images, of_one_value_each(3, 2)[0])  # A copy is mixed.


@pytest.mark.parametrize("box", [(0, 3, 2, 8), (5, 8, 0, 1), (4, 4, 1, 6), (0, 8, 0, 8)])
def test_the_weight_of_a_class_is_its_share_of_the_pixels(box):
    images, labels = of_one_value_each(4, 3)
    mixed, soft = cutmix(images, labels, box, num_classes=4, duplicates=3)
    shares = torch.stack([(mixed == label).float().mean((1, 2, 3)) for label in range(4)], 1)
    torch.testing.assert_close(soft, shares)
    top, bottom, left, right = box
    pasted = torch.zeros(8, 8, dtype=torch.bool)
    pasted[top:bottom, left:right] = True
    assert torch.equal(mixed[0, 0] != images[0, 0], pasted)


@pytest.mark.parametrize("cut", [False, True], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("lam", [0.1, 0.43, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_two_images_are_mixed_as_by_timm(monkeypatch, cut, lam, seed):
    # timm pairs by mirrored position, which with two images is the same permutation.
    torch.manual_seed(seed)
    images, labels = torch.rand(2, 3, 24, 17), torch.tensor([2, 0])
    theirs = timm_mixup.Mixup(label_smoothing=0.0, num_classes=3)
    theirs._params_per_batch = lambda: (lam, cut)
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: rng.integers(low, high))
    expected = theirs(images.clone(), labels)
    if cut:
        found = cutmix(images, labels, draw_box(24, 17, lam, np.random.default_rng(seed)), 3)
    else:
        found = mixup(images, labels, lam, 3)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def drawn(count, mixup_alpha=0.0, cutmix_alpha=0.0, **options):
    """How many of many batches were mixed, how many of them by CutMix, and the shares of Mixup."""
    images, labels = of_one_value_each(2, 1, 32)
    rng = np.random.default_rng(5)
    cut, shares = 0, []
    for _ in range(count):
        mixed, soft = mix_batch(images, labels, rng, 2, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, **options)
        if mixed is images:
            assert torch.equal(soft, torch.eye(2))
        elif len(mixed[1].unique()) == 2 or bool((mixed[1] == mixed[1].round()).all()):
            cut += 1  # Boxes leave the two values.
        else:
            shares.append(soft[0, 0].item())
    return cut, np.array(shares)


def test_batches_are_mixed_and_switched_with_their_probabilities():
    cut, shares = drawn(2000, mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.6, switch_prob=0.25)
    # Binomial: 2000 * 0.6 = 1200, and a quarter of them; four standard deviations.
    assert abs(cut + len(shares) - 1200) < 4 * np.sqrt(2000 * 0.6 * 0.4)
    assert abs(cut - 300) < 4 * np.sqrt(2000 * 0.15 * 0.85)
    assert drawn(20, mixup_alpha=1.0)[0] == 0
    assert len(drawn(20, cutmix_alpha=1.0)[1]) == 0
    assert [len(part) if isinstance(part, np.ndarray) else part for part in drawn(20)] == [0, 0]
    assert drawn(20, mixup_alpha=1.0, prob=0.0)[1].size == 0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_mean_and_variance_of_their_beta_distribution(alpha):
    _, shares = drawn(2000, mixup_alpha=alpha)
    # A share that float32 rounds to 0 or 1 leaves whole values and looks like a box.
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / len(shares))
    assert shares.var() == pytest.approx(variance, rel=0.12)


def test_boxes_cover_the_drawn_area_and_lie_inside():
    rng = np.random.default_rng(0)
    boxes = [draw_box(20, 40, 0.75, rng) for _ in range(2000)]
    for top, bottom, left, right in boxes:
        assert 0 <= top <= bottom <= 20
        assert 0 <= left <= right <= 40
    # Half of either side, wherever the centre is not within a quarter of the border.
    whole = [(top, left) for top, bottom, left, right in boxes if (bottom - top, right - left) == (10, 20)]
    assert {top for top, _ in whole} == set(range(11))
    assert {left for _, left in whole} == set(range(21))
    # Centres 5..15 of 20 rows and 10..30 of 40 columns.
    assert len(whole) / 2000 == pytest.approx(11 / 20 * 21 / 40, abs=0.05)


def test_a_batch_of_one_image_gets_soft_labels_and_stays():
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([1, 1, 1])
    mixed, soft = mix_batch(images, labels, np.random.default_rng(0), 2, 3, mixup_alpha=1.0, cutmix_alpha=1.0)
    assert mixed is images
    assert soft.tolist() == [[0.0, 1.0]] * 3


def test_views_that_are_no_whole_images_are_refused():
    with pytest.raises(ValueError, match="5 views with 2 of each image"):
        partners(5, 2)
    with pytest.raises(ValueError, match="2 views with 2 of each image"):
        mixup(torch.rand(2, 3, 4, 4), torch.tensor([0, 0]), 0.5, 2, duplicates=2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_is_kept(layout):
    images, labels = torch.rand(4, 3, 8, 8).to(memory_format=layout), torch.arange(4)
    for mixed, _ in (mixup(images, labels, 0.3, 4), cutmix(images, labels, (0, 2, 0, 3), 4)):
        assert mixed.stride() == images.stride()
