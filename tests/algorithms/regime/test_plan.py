"""Invariants of what is drawn, over regimes, ranks and epochs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsize.algorithms.regime.plan import plan_epoch, plan_evaluation, plan_length, plan_sizes
from mixsize.algorithms.regime.regime import Base, Regime

S28 = Regime.from_sizes("s28", Base(32, 64), "B+", batch_multiple=4)
regimes = st.builds(
    lambda sizes, batch, mode, share_of, draw: Regime.from_sizes(
        {size: 1 / len(sizes) for size in sizes},
        Base(32, 4 * batch),
        mode,
        share_of=share_of,
        draw=draw,
        batch_multiple=4,
    ),
    st.lists(st.sampled_from([16, 24, 32, 40]), min_size=1, max_size=4, unique=True),
    st.integers(2, 8),
    st.sampled_from(["B+", "D+"]),
    st.sampled_from(["samples", "steps"]),
    st.sampled_from(["step", "epoch"]),
)


@settings(max_examples=60, deadline=None)
@given(regime=regimes, num_samples=st.integers(700, 2000), seed=st.integers(0, 2**31), epoch=st.integers(0, 300))
def test_ranks_share_shapes_and_no_image_comes_twice(regime, num_samples, seed, epoch):
    whole = plan_epoch(regime, num_samples, seed, epoch)
    assert len(whole) == plan_length(regime, num_samples, seed, epoch)
    assert len(np.unique(whole.samples)) == len(whole.samples)
    assert whole.samples.max() < num_samples
    left_out = num_samples - len(whole.samples)
    assert left_out < sum(choice.batch_size for choice in regime.choices) + len(regime.choices)
    for world_size in (2, 4):
        parts = [plan_epoch(regime, num_samples, seed, epoch, rank, world_size) for rank in range(world_size)]
        for step in range(len(whole)):
            of_ranks = [part[step] for part in parts]
            assert {(s.size_px, s.batch_size, s.duplicates) for s in of_ranks} == {
                (whole[step].size_px, whole[step].batch_size // world_size, whole[step].duplicates)
            }
            joined = np.concatenate([s.samples for s in of_ranks])
            np.testing.assert_array_equal(joined, whole[step].samples)


def test_steps_follow_the_regime_and_number_the_same_in_every_epoch():
    for epoch in range(4):
        plan = plan_epoch(S28, 5_000, 17, epoch)
        drawn = {int(size): int((plan.size_px == size).sum()) for size in np.unique(plan.size_px)}
        # 40 px: 1,000 images in batches of 40; 32: 1,500 / 64; 24: 1,500 / 112; 16: 1,000 / 256 = 3.9, rounded up
        assert drawn == {40: 25, 32: 23, 24: 13, 16: 4}


def test_epochs_differ_in_order_and_in_shapes():
    first, second = plan_epoch(S28, 5_000, 17, 0), plan_epoch(S28, 5_000, 17, 1)
    assert not np.array_equal(first.size_px, second.size_px)
    assert not np.array_equal(first.samples, second.samples)


@pytest.mark.parametrize("draw", ["step", "epoch"])
def test_an_image_left_out_of_an_epoch_is_in_the_next(draw):
    regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(32, 64), "B+", draw=draw)
    before = set()
    for epoch in range(40):
        plan = plan_epoch(regime, 1437, 5, epoch)
        left_out = set(range(1437)) - set(plan.samples.tolist())
        assert len(left_out) == 1437 - len(plan.samples) > 0
        assert not before & left_out
        before = left_out


def test_images_take_turns_at_being_left_out():
    regime = Regime.fixed(Base(32, 64))
    times = np.zeros(1000, dtype=int)
    # 40 of 1,000 images an epoch: every image once in 25 epochs, but for the two halves of an odd number of epochs.
    for epoch in range(50):
        plan = plan_epoch(regime, 1000, 5, epoch)
        times[np.setdiff1d(np.arange(1000), plan.samples)] += 1
    assert set(times.tolist()) == {2}
    other = np.setdiff1d(np.arange(1000), plan_epoch(regime, 1000, 6, 0).samples)
    assert set(other) != set(np.setdiff1d(np.arange(1000), plan_epoch(regime, 1000, 5, 0).samples))


def test_shapes_are_spread_over_the_epoch():
    plan = plan_epoch(S28, 50_000, 17, 0)
    at_32 = np.flatnonzero(plan.size_px == 32)
    assert np.mean(at_32) == pytest.approx(len(plan) / 2, rel=0.1)


def test_a_plan_is_the_same_in_another_process():
    code = (
        "from mixsize.algorithms.regime.regime import Base, Regime\n"
        "from mixsize.algorithms.regime.plan import plan_epoch\n"
        "import zlib\n"
        "plan = plan_epoch(Regime.from_sizes('s28', Base(32, 64), 'B+', batch_multiple=4), 5_000, 17, 3)\n"
        "print(zlib.crc32(plan.samples.tobytes() + plan.size_px.tobytes()))\n"
        "import sys\n"
        "print('torch' in sys.modules, 'ffcv' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    import zlib

    plan = plan_epoch(S28, 5_000, 17, 3)
    assert int(out[0]) == zlib.crc32(plan.samples.tobytes() + plan.size_px.tobytes())
    assert out[1:] == ["False", "False"]


def sizes_of_epochs(regime, epochs, seed):
    sizes = []
    for epoch in range(epochs):
        plan = plan_epoch(regime, 640, seed, epoch)
        assert len(set(plan.size_px.tolist())) == 1
        assert len(plan) == 640 // plan.batch_size[0] == plan_length(regime, 640, seed, epoch)
        sizes.append(int(plan.size_px[0]))
    return sizes


def test_whole_epochs_at_one_size_take_exactly_their_shares():
    # The paper's appendix E: 30 epochs of S(28) are 6, 9, 9 and 6.
    regime = Regime.from_sizes("s28", Base(32, 64), "B+", draw="epoch")
    sizes = sizes_of_epochs(regime, 30, seed=5)
    assert {size: sizes.count(size) for size in (40, 32, 24, 16)} == {40: 6, 32: 9, 24: 9, 16: 6}
    # A longer run begins in the same way; another seed is another order.
    assert sizes_of_epochs(regime, 200, seed=5)[:30] == sizes
    assert sizes_of_epochs(regime, 30, seed=6) != sizes


def test_shares_that_ten_epochs_do_not_hold_are_carried_on():
    # 8 * .8/6 and .2 of 90 epochs: 12 each, 18
    regime = Regime.from_sizes("s224", Base(224, 4), "D+", draw="epoch")
    sizes = sizes_of_epochs(regime, 90, seed=5)
    counts = {size: sizes.count(size) for size in sorted(set(sizes))}
    assert counts == {128: 12, 160: 12, 192: 12, 224: 18, 256: 12, 288: 12, 320: 12}


def test_epochs_drawn_whole_divide_the_steps_or_the_samples():
    # Batches of 64 and 256. Half of the steps are .5 * 64 / (.5 * 64 + .5 * 256) = a fifth of the images.
    shares = {"samples": 50, "steps": 20}
    for share_of, at_32 in shares.items():
        regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(32, 64), "B+", draw="epoch", share_of=share_of)
        assert sizes_of_epochs(regime, 100, seed=5).count(32) == at_32


@pytest.mark.parametrize("share_of", ["samples", "steps"])
def test_sizes_for_a_loaders_equal_batches_take_their_shares_whatever_the_regimes_batches(share_of):
    # The batch at 16 px would be 4 times that at 32 px.
    regime = Regime.from_sizes({32: 0.7, 16: 0.3}, Base(32, 64), "B+", share_of=share_of)
    sizes = plan_sizes(regime, 10, seed=5, epoch=0)
    assert sorted(sizes) == [16] * 3 + [32] * 7
    by_epoch = Regime.from_sizes({32: 0.7, 16: 0.3}, Base(32, 64), "B+", share_of=share_of, draw="epoch")
    epochs = [plan_sizes(by_epoch, 4, seed=5, epoch=epoch) for epoch in range(10)]
    assert sorted(int(sizes[0]) for sizes in epochs) == [16] * 3 + [32] * 7
    assert all(len(set(sizes.tolist())) == 1 for sizes in epochs)


def test_resume_position_is_found_from_the_samples_counted_over_all_ranks():
    plan = plan_epoch(S28, 5_000, 17, 0, rank=1, world_size=4)
    for step in range(len(plan) + 1):
        assert plan.step_at(int(4 * plan.batch_size[:step].sum())) == step
    with pytest.raises(ValueError, match="not the start of a step"):
        plan.step_at(1)
    with pytest.raises(ValueError, match="not the start of a step"):
        plan.step_at(10**9)


def test_ten_million_images_keep_within_memory():
    # Measured in a process of its own: peak memory of this one is long since spent.
    code = (
        "from mixsize.algorithms.regime.regime import Base, Regime\n"
        "from mixsize.algorithms.regime.plan import plan_epoch\n"
        "plan = plan_epoch(Regime.from_sizes('s144', Base(224, 256), 'B+', batch_multiple=8), 10_000_000, 0, 0, 3, 8)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) / 1024 < 500


@settings(max_examples=80, deadline=None)
@given(num_samples=st.integers(1, 300), batch_size=st.integers(1, 80), world_size=st.integers(1, 7))
def test_evaluation_counts_each_image_once_in_as_many_batches_on_every_rank(num_samples, batch_size, world_size):
    if world_size > num_samples:
        with pytest.raises(ValueError, match="cannot share"):
            plan_evaluation(num_samples, 32, batch_size, 0, world_size)
        return
    plans = [plan_evaluation(num_samples, 32, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    np.testing.assert_array_equal(np.concatenate([plan.samples for plan in plans]), np.arange(num_samples))
    alone = batch_size == 1 and num_samples % world_size > 0
    for plan in plans:
        assert plan.batch_size.min() >= 1
        assert plan.batch_size.max() <= (2 if alone else batch_size)
        assert (plan.batch_size > batch_size).sum() <= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plan_epoch(S28, 0, 0, 0), "holds 0 images"),
        (lambda: plan_epoch(S28, 5_000, 0, 0, 2, 2), "rank is 2"),
        (lambda: plan_epoch(S28, 3, 0, 0, 0, 4), "4 ranks cannot share 3 images"),
        (lambda: plan_epoch(S28, 5_000, 0, 0, 0, 3), "40 images at 40 px does not divide into 3 ranks"),
        (lambda: plan_evaluation(10, 0, 4), "size_px is 0"),
        (lambda: plan_evaluation(10, 32, 0), "batch_size is 0"),
        (lambda: plan_epoch(S28, 5_000, 0, 0)[10_000], "step 10000 is outside"),
        (lambda: plan_epoch(S28, 5_000, 0, 10**6), "epoch is 1000000; it must be a whole number from 0 to 999999"),
    ],
)
def test_impossible_plans_are_refused(call, words):
    with pytest.raises((ValueError, IndexError), match=words):
        call()


def test_plans_of_fourteen_million_images_agree_on_a_thousand_ranks():
    """Spot checks at full size: runs of the same global order, shapes that are the same everywhere."""
    regime = Regime.from_sizes("s144", Base(224, 8192), "B+", batch_multiple=1024)
    images, ranks = 14_197_122, 1024
    whole = plan_epoch(regime, images, 17, 3)
    for rank in (0, 513, 1023):
        plan = plan_epoch(regime, images, 17, 3, rank, ranks)
        assert np.array_equal(plan.size_px, whole.size_px)
        assert np.array_equal(plan.batch_size * ranks, whole.batch_size)
        for step in (0, 1, len(plan) // 2, len(plan) - 1):
            mine = whole[step].samples.reshape(ranks, -1)[rank]
            assert np.array_equal(plan[step].samples, mine)
        # What a rank keeps: 4 bytes for each of its own images, 20 for each step.
        assert plan.samples.nbytes == 4 * len(whole.samples) // ranks
    assert len(np.unique(whole.samples)) == len(whole.samples)
