"""Learning rates of an optimiser; EpochSchedule in a Trainer is tested with MixSizeSampling."""

from __future__ import annotations

import pytest
import torch

from mixsize.algorithms.training.epoch_schedule import set_learning_rate


def test_groups_keep_the_proportion_they_were_made_with():
    optimizer = torch.optim.SGD(
        [{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 0.2}], lr=1.0
    )
    for factor in (0.5, 0.1, 1.0):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.2 * factor])
