"""Rank correlation and variance of gradients, against scipy, numpy and hand-made gradients; the network left alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from mixsize.algorithms import compare_gradients, gradient_vector, spearman


class Linear(nn.Module):
    """Its gradient by the mean output is the mean image: gradients can be written down."""

    def __init__(self, length):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length))

    def forward(self, images):
        return images.flatten(1) @ self.weight


def mean_output(outputs, labels):
    return outputs.mean()


def written(rows):
    """Batches of one image whose gradients in `Linear` are the rows: size -> row."""
    return [
        {size: (torch.tensor(row, dtype=torch.float32)[None], torch.tensor([0])) for size, row in at.items()}
        for at in rows
    ]


def network(**kwargs):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **kwargs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(8, 6),
    )  # fmt: skip


def batches(count=3, sizes=(12, 8)):
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        images = torch.randn(16, 3, 16, 16, generator=generator)
        labels = torch.randint(0, 6, (16,), generator=generator)
        found.append({size: (F.interpolate(images, size=(size, size), mode="bilinear"), labels) for size in sizes})
    return found


def state(module):
    tensors = {key: value.clone() for key, value in module.state_dict().items()}
    flags = [part.training for part in module.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    return tensors, flags, grads


@pytest.mark.parametrize("length", [2, 3, 50, 10_001])
@pytest.mark.parametrize("levels", [2, 7, 10**9])
def test_rank_correlation_is_scipys_with_and_without_ties(length, levels):
    rng = np.random.default_rng(length + levels)
    first, second = rng.integers(0, levels, (2, length)).astype(np.float64)
    second[: length // 2] += first[: length // 2]
    first[:2], second[:2] = (0, 1), (1, 0)  # Never all equal.
    expected = spearmanr(first, second).statistic
    for dtype in (torch.float32, torch.float64):
        found = spearman(torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype))
        if dtype == torch.float64 or levels < 10**9:  # float32 makes ties of large neighbours.
            assert found == pytest.approx(expected, abs=1e-12)


def test_zeros_of_either_sign_are_one_tie_and_magnitude_does_not_count():
    first = torch.tensor([-0.0, 0.0, 1e-30, 3e30, -2.0])
    second = torch.tensor([0.5, 0.1, 0.5, -4.0, 7.0])
    assert spearman(first, second) == pytest.approx(spearmanr(first.numpy(), second.numpy()).statistic, abs=1e-12)
    assert spearman(first, first.pow(3)) == pytest.approx(spearmanr(first.numpy(), first.pow(3).numpy()).statistic)


def test_equal_values_have_no_rank_correlation():
    assert math.isnan(spearman(torch.ones(4), torch.arange(4.0)))


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 2), (2, 2))])
def test_vectors_that_cannot_be_ranked_together_are_refused(shapes):
    with pytest.raises(ValueError, match=r"both must be \(P,\)"):
        spearman(*(torch.zeros(shape) for shape in shapes))


def test_written_gradients_give_the_correlations_and_variances_counted_by_hand():
    rows = [
        {4: [1, 2, 3], 2: [1, 3, 2]},  # ranks 1 2 3 and 1 3 2: correlation 1 - 6 * 2 / 24 = 0.5
        {4: [3, 2, 1], 2: [1, 2, 3]},  # -1
        {4: [2, 2, 8], 2: [0, 0, 6]},  # 1
    ]
    found = compare_gradients(Linear(3), written(rows), [2, 4], mean_output)
    assert (found.parameters, found.batches) == (3, 3)
    assert found.between_sizes.keys() == {(4, 2)}
    same = found.between_sizes[4, 2]
    assert same.mean == pytest.approx(0.5 / 3)
    assert same.std == pytest.approx(np.std([0.5, -1, 1], ddof=1))
    assert same.pairs == 3
    # At 4: [1 2 3] with [3 2 1]: -1; [3 2 1] with ranks 1.5 1.5 3: -1.5 / sqrt(2 * 1.5)
    assert found.between_images[4].mean == pytest.approx((-1 - 1.5 / math.sqrt(3)) / 2)
    assert found.between_images[4].pairs == 2
    # Components at 4: 1 3 2, 2 2 2 and 3 1 8, whose variances are 1, 0 and 13.
    assert found.variance[4] == pytest.approx(14 / 3)
    assert found.variance[2] == pytest.approx(np.var([list(at[2]) for at in rows], axis=0, ddof=1).mean())


def test_a_variance_far_below_the_mean_is_not_lost():
    """numpy in float64 on the same float32 gradients."""
    rng = np.random.default_rng(0)
    rows = [{2: (1000 + 1e-3 * rng.standard_normal(50)).astype(np.float32).tolist()} for _ in range(6)]
    found = compare_gradients(Linear(50), written(rows), [2], mean_output)
    expected = np.var([np.float32(at[2]).astype(np.float64) for at in rows], axis=0, ddof=1).mean()
    assert found.variance[2] == pytest.approx(expected, rel=1e-9)


def test_a_networks_gradients_are_those_that_a_training_step_of_its_batch_norm_leaves():
    """``backward()`` of a copy in training mode, its dropout off, ranked by scipy."""
    model = network()
    given = batches()
    gradients = {size: [] for size in (12, 8)}
    for batch in given:
        for size, (images, labels) in batch.items():
            step = copy.deepcopy(model).train()
            step[5].eval()
            F.cross_entropy(step(images), labels).backward()
            gradients[size].append(torch.cat([p.grad.flatten() for p in step.parameters()]).numpy())
    found = compare_gradients(model, given, [12, 8])
    assert found.parameters == 8 * 27 + 8 + 16 + 8 * 6 + 6
    same = [spearmanr(a, b).statistic for a, b in zip(*gradients.values(), strict=True)]
    assert found.between_sizes[12, 8].mean == pytest.approx(np.mean(same), abs=1e-4)
    for size in (12, 8):
        pairs = zip(gradients[size], gradients[size][1:], strict=False)
        expected = np.mean([spearmanr(a, b).statistic for a, b in pairs])
        assert found.between_images[size].mean == pytest.approx(expected, abs=1e-4)
        assert found.variance[size] == pytest.approx(np.var(gradients[size], axis=0, ddof=1).mean(), rel=1e-4)


def test_the_network_is_left_bit_for_bit():
    model = network(momentum=None)
    F.cross_entropy(model(torch.randn(4, 3, 12, 12)), torch.zeros(4, dtype=torch.int64)).backward()
    model[1].eval()  # Partly in training mode, gradients left over, statistics moved.
    before, random = state(model), torch.get_rng_state()
    compare_gradients(model, batches(), [12, 8])
    after = state(model)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1] == after[1]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_the_network_is_left_alone_by_a_batch_that_fails():
    model = network()
    before = state(model)
    spoilt = batches()
    spoilt[1][8][0][0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="gradient of batch 2 at 8 px is not finite"):
        compare_gradients(model, spoilt, [12, 8])
    after = state(model)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1] == after[1]


def test_frozen_parameters_are_left_out_and_unused_ones_are_zeros():
    model = Linear(2)
    model.unused = nn.Parameter(torch.ones(3))
    model.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    found = gradient_vector(model, torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0, 0]), mean_output)
    assert found.tolist() == [2, 4, 0, 0, 0]
    with pytest.raises(ValueError, match="no parameter of the network takes a gradient"):
        gradient_vector(model.requires_grad_(False), torch.zeros(1, 2), torch.zeros(1), mean_output)


def test_gradients_are_taken_where_the_caller_switched_them_off():
    with torch.no_grad():
        assert compare_gradients(network(), batches(), [12]).variance[12] > 0


@pytest.mark.parametrize(
    ("given", "sizes", "words"),
    [
        (1, [12], "there were 1 batches"),
        (0, [12], "there were 0 batches"),
        (2, [], "at least one size"),
        (2, [8, 8], "each once"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, sizes, words):
    with pytest.raises(ValueError, match=words):
        compare_gradients(network(), batches(given), sizes)
