"""Plans against timm's scheduled sizes, where both promise the same."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from timm.data.naflex_dataset import calculate_naflex_batch_size
from timm.data.scheduled_sampler import ScheduledBatchSampler

from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.regime import Base, Regime

IMAGES = 20_000


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_has_timms_number_of_batches_of_each_size_and_no_image_twice(ranks):
    """timm draws its batches one by one; ours are the expected number of each size."""
    regime = Regime.from_sizes("s28", Base(32, 64), "B+", share_of="steps", batch_multiple=ranks)
    batches = [choice.batch_size for choice in regime.choices]
    steps: list[Counter[int]] = []
    for rank in range(ranks):
        images = np.array_split(np.arange(IMAGES), ranks)[rank].tolist()
        sampler = ScheduledBatchSampler(images, [batch // ranks for batch in batches], regime.step_shares, seed=1)
        plan = plan_epoch(regime, IMAGES, seed=1, epoch=3, rank=rank, world_size=ranks)
        theirs, ours = list(sampler), list(plan)
        for drawn in ([image for batch in theirs for image, _ in batch], np.concatenate([s.samples for s in ours])):
            assert len(set(drawn)) == len(drawn) > IMAGES // ranks - max(batches) // ranks
        steps.append(Counter(step.size_px for step in ours))
        assert steps[rank] == steps[0]
        # Five standard deviations of timm's draws.
        for index, choice in enumerate(regime.choices):
            expected = len(ours) * regime.step_shares[index]
            drawn = sum(batch[0][1] == index for batch in theirs)
            assert abs(steps[rank][choice.size_px] - expected) <= 1
            assert abs(drawn - steps[rank][choice.size_px]) <= 5 * math.sqrt(expected) + 1
        spread = np.std(np.repeat(batches, (1000 * np.array(regime.step_shares)).round().astype(int)))
        assert abs(len(theirs) - len(ours)) <= 5 * math.sqrt(len(ours)) * spread / np.mean(batches) + 1


@pytest.mark.parametrize(("rounding", "multiple", "theirs"), [("budget", 8, "floor"), ("nearest", 6, "round")])
@pytest.mark.parametrize("base", [Base(224, 256), Base(224, 1000), Base(32, 64)])
def test_a_batch_within_a_budget_is_timms(base, rounding, multiple, theirs):
    for size_px in range(base.size_px // 4, 2 * base.size_px):
        ours = Regime.from_sizes(
            {size_px: 1.0}, base, "B+", rounding=rounding, batch_multiple=multiple if rounding == "nearest" else 1
        )
        expected = calculate_naflex_batch_size(
            base.size_px**2 * base.batch_size, size_px**2, divisor=multiple, rounding=theirs
        )
        assert ours.choices[0].batch_size == expected
