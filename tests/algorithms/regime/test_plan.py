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
        # 40 px: 1,000 images in batches of 40; 32: 1,500 / 64; 24: 1,500 / 112; 16: 1,000 / 256
        assert drawn == {40: 25, 32: 23, 24: 13, 16: 3}


def test_epochs_differ_in_order_in_shapes_and_in_what_they_leave_out():
    first, second = plan_epoch(S28, 5_000, 17, 0), plan_epoch(S28, 5_000, 17, 1)
    assert not np.array_equal(first.size_px, second.size_px)
    assert not np.array_equal(first.samples, second.samples)
    everything = set(range(5_000))
    assert everything - set(first.samples.tolist()) != everything - set(second.samples.tolist())


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


def test_whole_epochs_at_one_size_come_up_in_their_shares():
    regime = Regime.from_sizes({32: 0.7, 16: 0.3}, Base(32, 64), "B+", draw="epoch")
    sizes = []
    for epoch in range(400):
        plan = plan_epoch(regime, 640, 5, epoch)
        assert len(set(plan.size_px.tolist())) == 1
        assert len(plan) == (10 if plan.size_px[0] == 32 else 2)
        sizes.append(int(plan.size_px[0]))
    # Binomial(400, 0.7): standard deviation 0.023
    assert np.mean(np.array(sizes) == 32) == pytest.approx(0.7, abs=0.07)


@pytest.mark.parametrize("share_of", ["samples", "steps"])
def test_sizes_for_a_loaders_equal_batches_take_their_shares_whatever_the_regimes_batches(share_of):
    # The batch at 16 px would be 4 times that at 32 px.
    regime = Regime.from_sizes({32: 0.7, 16: 0.3}, Base(32, 64), "B+", share_of=share_of)
    sizes = plan_sizes(regime, 10, seed=5, epoch=0)
    assert sorted(sizes) == [16] * 3 + [32] * 7


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
