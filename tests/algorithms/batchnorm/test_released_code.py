"""Calibration against the paper's released code, recorded as numbers.

Source: ``Trainer.calibrate_bn(num_steps=4)``, github.com/eladhoffer/convNet.pytorch at ebec93d. It takes five batches,
and the mean of their unbiased variances; ours are pooled, so that the spread between the batches' means counts.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm

MEAN = [0.9921547174453735, 0.9999257326126099]
MEAN_OF_VARIANCES = [1.485877275466919, 1.5838655233383179]


def batch(number: int) -> torch.Tensor:
    """Three images of two channels and 4 x 4 px."""
    index = torch.arange(3 * 2 * 4 * 4, dtype=torch.float64).reshape(3, 2, 4, 4)
    return (torch.sin(0.7 * index + number) + 0.5 * number * (index % 3)).float()


def test_the_mean_is_the_released_codes_and_the_variance_more_by_the_spread_between_batches():
    batches = [batch(number) for number in range(5)]
    layer = nn.BatchNorm2d(2)
    calibrate_batch_norm(layer, batches, max_batches=5)
    assert layer.running_mean.tolist() == pytest.approx(MEAN, rel=1e-5)
    means = torch.stack([images.double().mean((0, 2, 3)) for images in batches])
    count = 3 * 4 * 4
    within = torch.tensor(MEAN_OF_VARIANCES, dtype=torch.float64) * 5 * (count - 1)
    between = count * (means - means.mean(0)).square().sum(0)
    assert layer.running_var.tolist() == pytest.approx(((within + between) / (5 * count - 1)).tolist(), rel=1e-5)
