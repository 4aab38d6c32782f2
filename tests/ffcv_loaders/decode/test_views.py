"""What changes views at their side, against timm and torchvision: pixels, how often, how much, and what is refused."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from timm.data import auto_augment as timms
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import ColorJitter, InterpolationMode, TrivialAugmentWide
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders.decode import views
from mixsize.ffcv_loaders.decode.augment import CenterCrop, PadCrop, RandomResizedCrop, Resize, augment_at, check_crops
from mixsize.ffcv_loaders.decode.view_policies import (
    AutoAugment,
    RandAugment,
    TrivialAugment,
    parse_policy,
)
from mixsize.ffcv_loaders.decode.views import ViewChanges, open_changes
from mixsize.ffcv_loaders.engine import native

SIDE = 16
MEAN = (0.491, 0.482, 0.447)
FILL = (125, 123, 114)  # 255 times the mean: 125.2, 122.9, 113.99
HPARAMS = {"img_mean": FILL, "interpolation": Image.Resampling.NEAREST, "translate_const": 0}
# torchvision turns hues by an argument of Pillow that will go.
HUES_OF_PILLOW = pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
NO_JITTER = (0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def picture():
    """A gradient with noise: every operation changes it, each in its own way."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(30, 190, SIDE)
    noise = rng.integers(0, 40, (SIDE, SIDE, 3))
    return (ramp[:, None, None] + noise * [1.0, 0.7, 0.4]).astype(np.uint8)


def changed(augment, image, samples, *, duplicate=0, seed=3, epoch=0):
    """Views that all show one image, as the engine changes them."""
    changes = open_changes(augment, MEAN, seed, epoch)
    assert changes is not None
    return changed_by(changes.at(len(image)), image, samples, duplicate)


def changed_by(changes, image, samples, duplicate=0):
    out = np.repeat(image[None], len(samples), axis=0)
    for view, sample in zip(out, samples, strict=True):
        native.change_view(view, changes, int(sample), duplicate)
    return out


# ---- pixels of the operations ----


def by_timm(name, image, magnitude, negative, monkeypatch):
    """timm's operation, whose sign is drawn, at this magnitude and sign."""
    with monkeypatch.context() as patch:
        patch.setattr(random, "random", lambda: 0.9 if negative else 0.1)
        operation = timms.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams={**HPARAMS, "magnitude_max": 20})
        return np.asarray(operation(Image.fromarray(image)))


def test_every_operation_of_timms_policies_has_a_law():
    named = {*timms._RAND_TRANSFORMS, *timms._RAND_INCREASING_TRANSFORMS, *timms._RAND_WEIGHTED_0, "PosterizeOriginal"}
    assert views._LAWS.keys() == named


@pytest.mark.parametrize("name", views._LAWS)
def test_an_operation_is_timms_on_pillow_bit_for_bit(name, monkeypatch):
    rng = np.random.default_rng(1)
    for side in (1, 2, 7, 24, 40):
        image = rng.integers(rng.integers(0, 100), rng.integers(120, 257), (side, side, 3), dtype=np.uint8)
        for magnitude in (0, 1, 2.5, 5, 7.5, 9, 10, 13.7, 20, *rng.uniform(0, 10, 6)):
            table = np.array([[views._row(name, 1.0, magnitude, side)]])
            changes = native.ViewChanges(table, None, 1, 0.0, 20.0, NO_JITTER, 0.0, np.array(FILL), 0, 0)
            ours = {view.tobytes() for view in changed_by(changes, image, range(12))}
            theirs = {by_timm(name, image, magnitude, sign, monkeypatch).tobytes() for sign in (False, True)}
            assert ours == theirs, (side, magnitude)


@HUES_OF_PILLOW
def test_hues_are_turned_as_torchvision_turns_them_in_pillow():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image[:16] = image[:16, :, :1]  # Greys, black and white.
    image[0, :2] = [[0, 0, 0], [255, 255, 255]]
    for turn in (-0.5, -0.13, 0.0, 0.004, 0.25, 0.5):
        ours = image.copy()
        native.operate(ours, native.HUE, [turn, 0, 0, 0, 0, 0], np.array(FILL, np.uint8))
        np.testing.assert_array_equal(ours, np.asarray(F.adjust_hue(Image.fromarray(image), turn)))


# ---- how often each outcome of a policy comes up ----


@dataclass(frozen=True)
class Step:
    """An operation of a policy: its probability, and its outcomes, which are alike."""

    probability: float
    outcomes: tuple


def timm_step(name, probability, magnitude, monkeypatch):
    def outcome(negative):
        return lambda image: by_timm(name, image, magnitude, negative, monkeypatch)

    return Step(probability, (outcome(False), outcome(True)))


def spread(image, chains):
    """Each image that chains of steps can give, with its probability; chains: probability -> steps."""
    chances = Counter()
    for chance, steps in chains:
        branches = Counter({image.tobytes(): chance})
        for step in steps:
            after = Counter()
            for pixels, p in branches.items():
                before = np.frombuffer(pixels, np.uint8).reshape(image.shape)
                after[pixels] += p * (1 - step.probability)
                for outcome in step.outcomes:
                    after[outcome(before).tobytes()] += p * step.probability / len(step.outcomes)
            branches = after
        chances += branches
    return chances


def assert_as_often(seen, expected, number):
    assert sum(expected.values()) == pytest.approx(1)
    assert seen.keys() <= {pixels for pixels, chance in expected.items() if chance > 0}
    common = {pixels for pixels, chance in expected.items() if chance * number >= 8}
    found = [seen[pixels] for pixels in common]
    wanted = [expected[pixels] * number for pixels in common]
    found.append(number - sum(found))
    wanted.append(number - sum(wanted))
    if wanted[-1] < 8:
        assert found[-1] < 30
        scale = sum(found[:-1]) / sum(wanted[:-1])
        found, wanted = found[:-1], [value * scale for value in wanted[:-1]]
    assert chisquare(found, np.array(wanted) * sum(found) / sum(wanted)).pvalue > 1e-4


@pytest.mark.parametrize("name", ["original", "originalr", "v0", "v0r"])
def test_every_outcome_of_autoaugment_comes_up_as_often_as_in_timm(name, picture, monkeypatch):
    pairs = timms.auto_augment_policy(name, HPARAMS)
    chains = [
        (1 / len(pairs), [timm_step(op.name, op.prob, op.magnitude, monkeypatch) for op in pair]) for pair in pairs
    ]
    expected = spread(picture, chains)
    seen = Counter(view.tobytes() for view in changed(RandomResizedCrop(policy=name), picture, range(20_000)))
    assert_as_often(seen, expected, 20_000)


@pytest.mark.parametrize("text", ["rand-m7", "rand-m9-inc1-n1-p0.8", "rand-m4-inc1", "rand-m5-tweights-p1"])
def test_every_outcome_of_randaugment_comes_up_as_often_as_in_timm(text, picture, monkeypatch):
    theirs = timms.rand_augment_transform(text, dict(HPARAMS))
    steps = [timm_step(op.name, op.prob, op.magnitude, monkeypatch) for op in theirs.ops]
    weights = theirs.choice_weights
    shares = np.full(len(steps), 1 / len(steps)) if weights is None else weights
    chains = [(1.0, ())]
    for _ in range(theirs.num_layers):
        grown = []
        for chance, chosen in chains:
            # By weight, none is drawn twice.
            left = 1.0 if weights is None else 1 - sum(shares[k] for k in chosen)
            free = [k for k in range(len(steps)) if weights is None or k not in chosen]
            grown += [(chance * shares[k] / left, (*chosen, k)) for k in free]
        chains = grown
    expected = spread(picture, [(chance, [steps[k] for k in chosen]) for chance, chosen in chains])
    seen = Counter(view.tobytes() for view in changed(Resize(policy=text), picture, range(20_000)))
    assert_as_often(seen, expected, 20_000)


def test_every_outcome_of_trivialaugment_comes_up_as_often_as_in_torchvision(picture):
    image = np.asarray(Image.fromarray(picture).resize((40, 40)))  # Not all moved out by 32 px.
    space = TrivialAugmentWide()._augmentation_space(31)
    steps = []
    for name, (magnitudes, signed) in space.items():
        # Rounded: torch's linspace makes 15.999999 of 16 px, of which an image is moved by 15.
        for magnitude in magnitudes.double().numpy().round(5).astype(np.float32).tolist() if magnitudes.ndim else [0.0]:
            signs = (1, -1) if signed else (1,)
            outcomes = tuple(
                lambda before, name=name, value=sign * magnitude: np.asarray(
                    _apply_op(Image.fromarray(before), name, value, InterpolationMode.NEAREST, list(FILL))
                )
                for sign in signs
            )
            count = len(magnitudes) if magnitudes.ndim else 1
            steps.append((1 / len(space) / count, [Step(1.0, outcomes)]))
    expected = spread(image, steps)
    seen = Counter(view.tobytes() for view in changed(RandomResizedCrop(policy="trivial"), image, range(40_000)))
    assert_as_often(seen, expected, 40_000)


# ---- how much ----


@pytest.mark.parametrize(("magnitude", "std"), [(9, 0.5), (9.5, 2.0), (1, 1.0), (8, math.inf), (14, 3.0)])
def test_magnitudes_are_spread_about_their_mean_as_in_timm(magnitude, std):
    most = 20.0 if magnitude > 10 else 10.0
    row = views._Law(native.SOLARIZE_ADD, scale=100, whole=True).row(1.0, magnitude)  # Adds ten times the magnitude.
    changes = native.ViewChanges(np.array([[row]]), None, 1, std, most, NO_JITTER, 0.0, np.array(FILL), 5, 0)
    ours = changed_by(changes, np.zeros((1, 1, 3), np.uint8), range(20_000))[:, 0, 0, 0]
    theirs = []
    operation = timms.AugmentOp(
        "SolarizeAdd", prob=1.0, magnitude=magnitude, hparams={**HPARAMS, "magnitude_std": std, "magnitude_max": most}
    )
    operation.level_fn = lambda level, _: (int(level * 10),)
    operation.aug_fn = lambda _, value, **__: theirs.append(value)
    random.seed(0)
    for _ in range(20_000):
        operation(None)
    assert ks_2samp(ours, theirs).pvalue > 1e-3


def test_a_magnitude_by_size_is_interpolated_and_constant_outside():
    changes = open_changes(RandomResizedCrop(policy="rand-m9-inc1", magnitude={128: 5, 224: 9, 96: 4}), MEAN, 0, 0)
    found = {size: changes.at(size)._held[0][:, 0, 2] for size in (32, 96, 112, 128, 176, 224, 384)}
    assert {size: set(values.tolist()) for size, values in found.items()} == {
        32: {4.0}, 96: {4.0}, 112: {4.5}, 128: {5.0}, 176: {7.0}, 224: {9.0}, 384: {9.0},
    }  # fmt: skip


def test_a_magnitude_takes_the_place_of_the_strings(picture):
    for augment in (Resize(policy="rand-m2-inc1", magnitude=9.5), PadCrop(policy="rand-m2-inc1", magnitude={16: 9.5})):
        expected = changed_by(
            ViewChanges(RandAugment(9.5, increasing=True), None, NO_JITTER, 0.0, np.array(FILL), 3, 0).at(SIDE),
            picture,
            range(100),
        )
        np.testing.assert_array_equal(changed(augment, picture, range(100)), expected)


class Phased:
    """A regime whose phases say the magnitude."""

    starts = (0, 2)

    def crop_scale_at(self, epoch):
        return None

    def strength_at(self, name, epoch):
        return {"magnitude": 5.0 if epoch < 2 else 7.5}.get(name)


def test_a_phase_may_set_the_magnitude():
    augment = RandomResizedCrop(policy="rand-m9", magnitude={32: 1})
    assert [augment_at(augment, Phased(), epoch).magnitude for epoch in (0, 1, 2)] == [5.0, 5.0, 7.5]
    for other in (RandomResizedCrop(), PadCrop(policy="cifar10"), Resize(policy="trivial"), CenterCrop()):
        with pytest.raises(ValueError, match="a phase sets magnitude 5, which applies to a policy rand-"):
            check_crops(other, Phased())


# ---- colour jitter ----


def key_of(*parts):
    """The hash of windows.c, in Python."""
    key = 0
    for part in parts:
        key = mixed(((key ^ part) + 0x9E3779B97F4A7C15) % 2**64)
    return key


def mixed(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def uniform(key, draw):
    return (mixed((key + (draw + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53


def order_of(key):
    order = [0, 1, 2, 3]
    for draw, last in ((72, 3), (73, 2), (74, 1)):
        other = int(uniform(key, draw) * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


@HUES_OF_PILLOW
@pytest.mark.parametrize("jitter", [0.4, (0.4, 0.2, 0.9), (0.3, 0.0, 1.7, 0.1)])
def test_jitter_is_torchvisions_operations_in_the_order_and_by_the_factors_drawn(jitter, picture):
    parts = jitter if isinstance(jitter, tuple) else (jitter,) * 3
    limits = [*((max(0.0, 1 - part), 1 + part) for part in parts[:3]), (-parts[3], parts[3]) if parts[3:] else (0, 0)]
    adjust = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    ours = changed(RandomResizedCrop(color_jitter=jitter), picture, range(300), duplicate=2)
    orders = Counter()
    for sample, view in enumerate(ours):
        key, expected = key_of(3, 0, sample, 2), Image.fromarray(picture)
        orders[tuple(order_of(key))] += 1
        for which in order_of(key):
            low, high = limits[which]
            if low < high:
                expected = adjust[which](expected, low + (high - low) * uniform(key, 75 + which))
        np.testing.assert_array_equal(view, np.asarray(expected))
    assert orders.keys() == set(permutations(range(4)))


def test_orders_and_factors_of_jitter_are_spread_as_torchvisions():
    keys = [key_of(11, 4, sample, 0) for sample in range(20_000)]
    orders = Counter(tuple(order_of(key)) for key in keys)
    assert chisquare([orders[order] for order in permutations(range(4))]).pvalue > 1e-3
    # Brightness alone: 100 times its factor, without the fraction.
    grey = np.full((1, 1, 3), 100, np.uint8)
    ours = changed(Resize(color_jitter=(0.4, 0.0, 0.0)), grey, range(20_000))[:, 0, 0, 0]
    torch.manual_seed(0)
    theirs = [int(100 * ColorJitter.get_params((0.6, 1.4), None, None, None)[1]) for _ in range(20_000)]
    assert ks_2samp(ours, theirs).pvalue > 1e-3


# ---- random erasing ----


def boxes_of(erased):
    """Top, left, height and width of each erased rectangle; it must be one."""
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            assert mask.sum() == box[2] * box[3]
            yield box


def test_rectangles_are_erased_as_often_and_as_large_as_in_timm():
    side, number = 48, 8_000
    black = np.zeros((side, side, 3), np.uint8)
    ours = changed(RandomResizedCrop(erasing=0.25), black, range(number))
    assert (((ours == FILL) | (ours == 0)).all(axis=-1)).all()
    mine = np.array(list(boxes_of((ours == FILL).all(axis=-1))))
    random.seed(0)
    eraser = RandomErasing(0.25, device="cpu")
    images = torch.ones(number, 1, side, side)
    theirs = np.array(list(boxes_of((eraser(images)[:, 0] == 0).numpy())))
    deviation = math.sqrt(number * 0.25 * 0.75)
    assert abs(len(mine) - number / 4) < 4 * deviation
    for measure in (
        lambda box: box[:, 2] * box[:, 3] / side**2,
        lambda box: np.log(box[:, 2] / box[:, 3]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_2samp(measure(mine), measure(theirs)).pvalue > 1e-3


def test_erasing_comes_last(picture):
    """Jittered or moved afterwards, the rectangle would not have the mean colour."""
    alone = changed(RandomResizedCrop(erasing=1.0), picture, range(300))
    erased = (changed(RandomResizedCrop(erasing=1.0), np.zeros_like(picture), range(300)) == FILL).all(axis=-1)
    everything = RandomResizedCrop(policy="rand-m9-mstd0.5-inc1", color_jitter=0.8, erasing=1.0)
    both = changed(everything, picture, range(300))
    assert erased.any(axis=(1, 2)).all()
    assert (alone[erased] == FILL).all()
    assert (both[erased] == FILL).all()


def test_jitter_follows_the_policy(picture):
    augment = RandomResizedCrop(policy="rand-m9-inc1", color_jitter=0.5)
    policy = changed(RandomResizedCrop(policy="rand-m9-inc1"), picture, range(50))
    both = changed(augment, picture, range(50))
    for sample in range(50):
        alone = changed(RandomResizedCrop(color_jitter=0.5), policy[sample], [sample])
        np.testing.assert_array_equal(both[sample], alone[0])


# ---- what a draw depends on ----


def test_draws_depend_on_sample_duplicate_epoch_and_seed(picture):
    augment = RandomResizedCrop(policy="trivial", color_jitter=0.4, erasing=1.0)
    first = changed(augment, picture, range(200))
    np.testing.assert_array_equal(changed(augment, picture, [7, 150, 3]), first[[7, 150, 3]])
    others = [{"duplicate": 1}, {"seed": 4}, {"epoch": 1}]
    for other in [changed(augment, picture, range(200), **one) for one in others] + [np.roll(first, 1, axis=0)]:
        assert (other == first).all(axis=(1, 2, 3)).mean() < 0.02


def test_nothing_changes_views_by_default():
    for augment in (RandomResizedCrop(), PadCrop(policy="cifar10", cutout_px=4), Resize(), CenterCrop()):
        assert open_changes(augment, MEAN, 0, 0) is None
    for one in ({"policy": "trivial"}, {"color_jitter": 0.1}, {"erasing": 0.1}):
        assert open_changes(Resize(**one), MEAN, 0, 0) is not None


# ---- strings ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("trivial", TrivialAugment()),
        ("rand", RandAugment()),
        ("rand-m9-mstd0.5-inc1", RandAugment(9, magnitude_std=0.5, increasing=True)),
        ("rand-m9-n2-mstd0.5", RandAugment(9, 2, magnitude_std=0.5)),
        ("rand-m15-n3-p0.7-mmax15", RandAugment(15, 3, 0.7, magnitude_max=15)),
        ("rand-mstd101-inc0", RandAugment(magnitude_std=math.inf)),
        ("rand-mstd1-tweights", RandAugment(magnitude_std=1, weighted=True)),
        ("original", AutoAugment("original")),
        ("v0r-mstd0.5", AutoAugment("v0r", 0.5)),
    ],
)
def test_strings_are_read_as_timm_reads_them(text, expected):
    assert parse_policy(text) == expected
    if isinstance(expected, RandAugment):
        theirs = timms.rand_augment_transform(text, dict(HPARAMS))
        first = theirs.ops[0]
        assert (first.magnitude, first.prob, theirs.num_layers) == (
            expected.magnitude, expected.probability, expected.num_layers,
        )  # fmt: skip
        assert (first.magnitude_std, first.magnitude_max or 10) == (expected.magnitude_std, expected.magnitude_max)
        assert tuple(op.name for op in theirs.ops) == expected.operations()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rand-m9-x3", "of which 'x3' is not known; parts are m, n, p, mstd, mmax, inc, tweights"),
        ("rand-m9-", "of which '' is not known"),
        ("rand-mstd", "of which 'mstd' is not known"),
        ("rand-t3a", "of which 't3a' is not known"),
        ("rand-w0", "of which 'w0' is not known"),
        ("rand-m-1", "of which 'm' is not known"),
        ("rand-m9-m5", "of which 'm5' is the second of its kind"),
        ("rand-n0", r"of which 'n0' is out of range: n must be a whole number in \[1, 16\]"),
        ("rand-n2.5", "of which 'n2.5' is out of range: n must be a whole number"),
        ("rand-p1.5", r"of which 'p1.5' is out of range: p must be a number in \[0, 1\]"),
        ("rand-inc2", "of which 'inc2' is out of range"),
        ("original-m5", "of which 'm5' is not known; parts are mstd"),
        ("trivial-n2", "policy is 'trivial-n2'; it must be none; rand"),
        ("augmix-m3", "augmix is not among ours"),
        ("3a", "3a is not among ours"),
        ("random", "policy is 'random'; it must be none; rand"),
        ("", "policy is ''; it must be"),
    ],
)
def test_a_string_with_a_faulty_part_is_refused_by_its_name(text, words):
    with pytest.raises(ValueError, match=words):
        RandomResizedCrop(policy=text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: RandomResizedCrop(policy="cifar10"),
            "policy is 'cifar10'; .*or, with pad_crop, cifar10",
        ),
        (lambda: Resize(magnitude=3), "magnitude is 3, which applies to a policy rand-..., not to none"),
        (lambda: PadCrop(policy="cifar10", magnitude=3), "applies to a policy rand-..., not to cifar10"),
        (lambda: Resize(policy="trivial", magnitude=3), "applies to a policy rand-..., not to trivial"),
        (
            lambda: Resize(policy="rand-m9", magnitude=12),
            r"magnitude is 12; with policy rand-m9 it must be in",
        ),
        (lambda: Resize(policy="rand", magnitude={128: -1}), "magnitude is -1; with policy rand it must be"),
        (lambda: Resize(policy="rand", magnitude={}), "it must give a magnitude for at least one side"),
        (lambda: Resize(policy="rand", magnitude={0.5: 3}), "a side of magnitude is 0.5"),
        (lambda: Resize(color_jitter=-0.1), "color_jitter is -0.1; it must be a number of at least 0"),
        (lambda: Resize(color_jitter=(0.1, 0.1)), "color_jitter is"),
        (lambda: Resize(color_jitter=(0.1, 0.1, 0.1, 0.6)), r"the last for hue in \[0, 0.5\]"),
        (lambda: Resize(erasing=1.5), r"erasing is 1.5; it must be a probability in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_greater_bound_allows_a_greater_magnitude():
    assert Resize(policy="rand-m9-mmax15", magnitude={128: 5, 300: 15}).magnitude == {128: 5, 300: 15}
    assert Regime.fixed(Base(8, 4)).strength_at("magnitude", 0) is None
