"""The regime's arithmetic against the paper's tables and values worked out by hand."""

from __future__ import annotations

import math

import pytest

from mixsize.algorithms.regime.checks import check_stride
from mixsize.algorithms.regime.regime import SIZE_DISTRIBUTIONS, Base, Choice, Regime

CIFAR = Base(32, 64)
IMAGENET = Base(224, 256)


def shapes(regime: Regime) -> dict[int, tuple[int, int]]:
    return {c.size_px: (c.batch_size, c.duplicates) for c in regime.choices}


# (sizes, base, images, epochs, the paper's thousands of steps in Table 1)
TABLE_1_B_PLUS = [
    ("s28", CIFAR, 50_000, 200, 109_400),
    ("s144", IMAGENET, 1_281_167, 90, 169_000),
    ("s144", IMAGENET, 1_281_167, 200, 376_000),
]


@pytest.mark.parametrize(("sizes", "base", "images", "epochs", "steps"), TABLE_1_B_PLUS)
def test_steps_of_table_1_come_out_of_shares_of_samples_and_powers_of_two(sizes, base, images, epochs, steps):
    regime = Regime.from_sizes(sizes, base, "B+", rounding="pow2", share_of="samples")
    assert regime.steps_per_epoch(images) * epochs == pytest.approx(steps, rel=0.005)


def test_steps_of_table_1_are_missed_by_shares_of_steps():
    regime = Regime.from_sizes("s144", IMAGENET, "B+", share_of="steps")
    assert regime.steps_per_epoch(1_281_167) * 90 == pytest.approx(145_200, rel=0.005)


@pytest.mark.parametrize(("sizes", "mean"), [("s28", 28), ("s144", 144), ("s208", 208), ("s224", 224)])
def test_distributions_have_the_mean_that_names_them(sizes, mean):
    regime = Regime.from_sizes(sizes, Base(224, 256, 2), "D+")
    assert regime.mean_size_px == pytest.approx(mean)


def test_b_plus_nearest_scales_the_batch_with_the_area():
    # 64 * (32/40)^2 = 40.96, 64 * (32/24)^2 = 113.8, 64 * 4 = 256
    assert shapes(Regime.from_sizes("s28", CIFAR, "B+")) == {40: (41, 1), 32: (64, 1), 24: (114, 1), 16: (256, 1)}


def test_b_plus_pow2_rounds_the_multiplier_up_to_a_power_of_two_and_never_below_one():
    # (224/128)^2 = 3.06 -> 4; (224/96)^2 = 5.44 -> 8; (224/256)^2 = 0.77 -> 1
    regime = Regime.from_sizes("s144", IMAGENET, "B+", rounding="pow2")
    assert shapes(regime) == {256: (256, 1), 224: (256, 1), 128: (1024, 1), 96: (2048, 1)}
    costs = [round(c.pixels / IMAGENET.pixels, 2) for c in regime.choices]
    assert costs == [1.31, 1.00, 1.31, 1.47]


def test_an_epoch_of_s144_b_plus_costs_0_463_of_the_pixels_whatever_the_rounding():
    for rounding in ("nearest", "pow2"):
        regime = Regime.from_sizes("s144", IMAGENET, "B+", rounding=rounding)
        assert regime.pixels_per_epoch_ratio == pytest.approx(0.463, abs=0.0005)


def test_d_plus_scales_the_duplicates_and_keeps_the_batch():
    regime = Regime.from_sizes("s144", IMAGENET, "D+")
    assert shapes(regime) == {256: (256, 1), 224: (256, 1), 128: (256, 3), 96: (256, 5)}
    assert regime.mean_duplicates == pytest.approx(3.0)
    assert regime.lr_scale == pytest.approx(1.0)


def test_d_plus_shrinks_the_batch_where_not_half_a_duplicate_fits():
    # (224/320)^2 = 0.49: below one half, so B = round(256 * 0.49) = 125
    assert shapes(Regime.from_sizes("s208", IMAGENET, "D+"))[320] == (125, 1)
    # from two duplicates, 2 * 0.49 = 0.98 rounds to one and the batch stays
    assert shapes(Regime.from_sizes("s224", Base(224, 256, 2), "D+"))[320] == (256, 1)


@pytest.mark.parametrize("mode", ["B+", "D+"])
@pytest.mark.parametrize("sizes", sorted(SIZE_DISTRIBUTIONS))
@pytest.mark.parametrize("base", [Base(224, 256), Base(224, 100, 2), Base(32, 64, 3)])
def test_budget_rounding_never_exceeds_the_base_and_keeps_multiples_of_eight(mode, sizes, base):
    if base.size_px == 32 and sizes != "s28":
        with pytest.raises(ValueError, match="rounds to 0"):  # 64 * 3 images of 32 px do not fill 8 of 256 px
            Regime.from_sizes(sizes, base, mode, rounding="budget")
        return
    regime = Regime.from_sizes(sizes, base, mode, rounding="budget")
    for choice in regime.choices:
        assert choice.pixels <= base.pixels
        assert choice.batch_size % 8 == 0


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_every_batch_is_a_multiple_of_the_one_asked_for(ranks):
    base = Base(32, 24 * ranks)
    for rounding in ("nearest", "budget"):
        regime = Regime.from_sizes("s28", base, "B+", rounding=rounding, batch_multiple=ranks)
        assert all(c.batch_size % ranks == 0 for c in regime.choices)


def test_mean_batch_is_images_over_steps():
    regime = Regime.from_sizes("s28", CIFAR, "B+", rounding="pow2")
    # shares of samples: 1 / (0.5/64 + 0.3/128 + 0.2/256) images a step
    assert regime.mean_batch_size == pytest.approx(1 / (0.5 / 64 + 0.3 / 128 + 0.2 / 256))
    assert regime.mean_batch_size == pytest.approx(50_000 / regime.steps_per_epoch(50_000), rel=0.005)
    by_steps = Regime.from_sizes("s28", CIFAR, "B+", rounding="pow2", share_of="steps")
    assert by_steps.mean_batch_size == pytest.approx(0.5 * 64 + 0.3 * 128 + 0.2 * 256)
    assert by_steps.lr_scale == pytest.approx(121.6 / 64)


def test_the_linear_rule_may_go_by_the_mean_step_or_by_the_mean_image():
    regime = Regime.from_sizes("s144", Base(224, 256), "B+", rounding="pow2")
    # Batches of 256, 256, 1,024, 2,048 for .1, .1, .6, .2 of the images
    assert regime.lr_scale == pytest.approx(1 / (0.1 + 0.1 + 0.6 / 4 + 0.2 / 8))
    assert regime.lr_scale_by_sample == pytest.approx(0.1 + 0.1 + 0.6 * 4 + 0.2 * 8)


def test_step_shares_and_sample_shares_are_two_views_of_one_thing():
    regime = Regime.from_sizes("s28", CIFAR, "B+", rounding="pow2", share_of="samples")
    counts = regime.step_counts(50_000)
    assert regime.step_shares == pytest.approx([c / sum(counts) for c in counts], abs=0.002)
    assert regime.sample_shares == (0.2, 0.3, 0.3, 0.2)
    by_steps = Regime.from_sizes("s28", CIFAR, "B+", share_of="steps")
    assert by_steps.step_shares == (0.2, 0.3, 0.3, 0.2)
    assert math.fsum(by_steps.sample_shares) == pytest.approx(1)


def test_step_counts_are_whole_batches_by_hand():
    regime = Regime.from_sizes("s28", CIFAR, "B+", rounding="pow2")
    # 10,000 / 64 = 156.25, 15,000 / 64 = 234.375, 15,000 / 128 = 117.19, 10,000 / 256 = 39.06
    assert regime.step_counts(50_000) == (156, 234, 117, 39)


def test_few_images_are_left_out():
    sizes = {20: 0.2, 16: 0.3, 12: 0.3, 8: 0.2}
    regime = Regime.from_sizes(sizes, Base(16, 64), "B+")
    # Batches of 41, 64, 114, 256; 287.4 / 41 = 7.01, 431.1 / 64 = 6.74, 431.1 / 114 = 3.78, 287.4 / 256 = 1.12. Of the
    # 168 images that whole batches leave, 114 fill one more; 54 are left then, too few for the other that rounds up.
    assert [choice.batch_size for choice in regime.choices] == [41, 64, 114, 256]
    assert regime.step_counts(1437) == (7, 6, 4, 1)


def test_no_size_gets_more_than_its_share_rounded():
    regime = Regime.from_choices(Base(8, 10), [Choice(8, 1000, 1, 0.5), Choice(4, 8, 1, 0.5)])
    # 1.495 batches of 1,000 and 186.875 of 8 leave 502 images, of which 8 more are taken.
    assert regime.step_counts(2990) == (1, 187)
    assert Regime.from_choices(Base(8, 10), [Choice(8, 10, 1, 0.5), Choice(4, 25, 1, 0.5)]).step_counts(100) == (5, 2)


def test_steps_of_an_epoch_drawn_whole_are_the_mean_over_epochs():
    regime = Regime.from_sizes({32: 0.5, 16: 0.5}, CIFAR, "B+", draw="epoch")
    assert regime.steps_per_epoch(6_400) == pytest.approx(0.5 * 100 + 0.5 * 25)


def test_fixed_is_the_base_at_every_step():
    regime = Regime.fixed(CIFAR)
    assert regime.choices == (Choice(32, 64, 1, 1.0),)
    assert (regime.lr_scale, regime.pixels_per_epoch_ratio, regime.pixels_per_step_ratio) == (1, 1, 1)
    assert regime.step_counts(50_000) == (781,)


def test_digest_follows_what_is_drawn_and_nothing_else():
    regime = Regime.from_sizes("s28", CIFAR, "B+")
    assert regime.digest() == Regime.from_sizes(dict(SIZE_DISTRIBUTIONS["s28"]), CIFAR, "B+", stride_px=4).digest()
    assert regime.digest() != Regime.from_sizes("s28", CIFAR, "B+", share_of="steps").digest()
    assert regime.digest() != Regime.from_sizes("s28", Base(32, 65), "B+").digest()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Regime.from_sizes({32: 0.5, 16: 0.4}, CIFAR, "B+"), "sum to 0.9"),
        (lambda: Regime.from_sizes({0: 1.0}, CIFAR, "B+"), "size in px is 0"),
        (lambda: Regime.from_sizes({-8: 1.0}, CIFAR, "B+"), "-8"),
        (lambda: Regime.from_sizes({32: 1.5, 16: -0.5}, CIFAR, "B+"), "1.5"),
        (lambda: Regime.from_sizes({}, CIFAR, "B+"), "no choices"),
        (lambda: Regime.from_sizes("s29", CIFAR, "B+"), "'s29'.*s28"),
        (lambda: Regime.from_sizes("s28", CIFAR, "C+"), "'C\\+'.*B\\+"),
        (lambda: Regime.from_sizes("s28", CIFAR, "B+", rounding="up"), "'up'.*nearest"),
        (lambda: Regime.from_sizes("s28", CIFAR, "B+", share_of="epochs"), "'epochs'.*samples"),
        (lambda: Regime.from_sizes("s28", CIFAR, "B+", draw="never"), "'never'.*step"),
        (lambda: Regime.from_sizes({320: 1.0}, Base(32, 4), "B+"), "320 px rounds to 0"),
        (lambda: Regime.from_sizes({40: 1.0}, Base(32, 4), "B+", batch_multiple=8), "multiple of 8"),
        (lambda: Regime.from_sizes({30: 1.0}, CIFAR, "B+", stride_px=4), "30 px .*28 and 32"),
        (lambda: Regime.fixed(Base(224, 0)), "batch_size is 0"),
        (lambda: Regime.fixed(Base(22.5, 1)), "size_px is 22.5"),
        (lambda: Regime.fixed(Base(224, True)), "True"),
        (
            lambda: Regime.from_choices(CIFAR, [Choice(32, 64, 1, 0.5), Choice(32, 8, 8, 0.5)]),
            "32 px is listed 2 times",
        ),
        (lambda: Regime.from_choices(CIFAR, [Choice(32, 64, 0, 1.0)]), r"choices\[0\].duplicates is 0"),
        (lambda: Regime.from_sizes("s28", CIFAR, "B+").step_counts(500), "500 images are too few.*256 images at 16 px"),
        (lambda: Regime.fixed(CIFAR).step_counts(63), "63 images"),
        (
            lambda: Regime.from_sizes({32: 1.0}, CIFAR, "B+", draw="epoch").steps_per_epoch(63),
            "63 images are fewer than one batch of 64",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_value(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_stride_names_the_network_and_the_way_out():
    check_stride([32, 64], 32)
    with pytest.raises(ValueError, match=r"40 px .* 32 of resnet50 \(nearest: 32 and 64 px\).*regime.stride"):
        check_stride([32, 40], 32, "resnet50")


def test_shares_of_steps_take_as_many_steps_as_the_images_fill():
    regime = Regime.from_choices(Base(8, 10), [Choice(8, 10, 1, 0.5), Choice(4, 1, 1, 0.5)], share_of="steps")
    # A third step would be one of 10 images: 2 * 10 + 1 = 21 of 17. Two steps take 11 images.
    assert regime.step_counts(17) == (1, 1)
    assert regime.step_counts(21) == (2, 1)
