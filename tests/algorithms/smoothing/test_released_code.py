"""Gradient smoothing against the paper's released code over 200 steps, recorded as numbers.

Source: ``GradSmooth`` of ``regularization.py``, github.com/eladhoffer/utils.pytorch at 4528ec8, in float64.
"""

from __future__ import annotations

import math

import pytest
import torch

from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother

#: Step -> (average of the norm after it, factor of its gradients).
RELEASED = {
    0: (1.6487212707001282, 1.0),
    1: (1.6059858345024949, 1.3149075090572708),
    2: (1.5775420879112045, 1.1937065125268977),
    20: (1.4913804846673424, 0.37661080224688226),
    57: (6.072679648641513, 0.13286856123681262),
    58: (5.567571209481437, 5.44987432276718),
    100: (1.1120480139541105, 2.0474318177692328),
    150: (1.10752649084962, 3.616680862688448),
    199: (1.2746949978854507, 2.7194991580807324),
}
SUM_OF_FACTORS = 403.6983299660818


def test_200_steps_follow_the_released_code():
    smoother, factors = GradientSmoother(), []
    for step in range(200):
        norm = math.exp(math.sin(0.37 * step) + 0.5 * math.cos(1.9 * step)) * (20 if step == 57 else 1)
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([0.6, 0.8]) * norm
        smoothed = smoother.smooth([parameter])
        factors.append(float(parameter.grad.norm()) / norm)
        if step in RELEASED:
            assert (float(smoothed.average), factors[-1]) == pytest.approx(RELEASED[step], rel=1e-6)
    assert sum(factors) == pytest.approx(SUM_OF_FACTORS, rel=1e-6)
