"""The losses of a recipe against hand values and timm's, for class indices and for soft labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from mixsize.algorithms import mixup
from mixsize.recipes.build.losses import build_loss
from mixsize.recipes.config.compose import compose


def loss_of(setting):
    return build_loss(compose(["cifar10/resnet20", f"loss={setting}"]).loss)


def softplus(x):
    return math.log1p(math.exp(x))


def test_binary_cross_entropy_by_hand():
    outputs, labels = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([1])
    # log(1 + e^x) - x * target of each class, of targets 0, 1, 0
    terms = [softplus(2.0), softplus(-1.0) + 1.0, softplus(0.0)]
    assert loss_of("{name: bce}")(outputs, labels).item() == pytest.approx(sum(terms) / 3)
    assert loss_of("{name: bce, sum_classes: true}")(outputs, labels).item() == pytest.approx(sum(terms))
    # targets 0.1, 0.8, 0.1
    smoothed = [softplus(2.0) - 0.2, softplus(-1.0) + 0.8, softplus(0.0)]
    loss = loss_of("{name: bce}")
    loss.label_smoothing = 0.3
    assert loss(outputs, labels).item() == pytest.approx(sum(smoothed) / 3)
    # 0.4 and 0.35 count as 1.
    soft = torch.tensor([[0.4, 0.35, 0.25]])
    thresholded = [softplus(2.0) - 2.0, softplus(-1.0) + 1.0, softplus(0.0)]
    found = loss_of("{name: bce, target_threshold: 0.3}")(outputs, soft)
    assert found.item() == pytest.approx(sum(thresholded) / 3)


def test_cross_entropy_by_hand():
    outputs = torch.tensor([[2.0, 0.0]])
    whole, none = softplus(-2.0), softplus(2.0)
    assert loss_of("{}")(outputs, torch.tensor([0])).item() == pytest.approx(whole)
    loss = loss_of("{label_smoothing: 0.2}")
    assert loss(outputs, torch.tensor([0])).item() == pytest.approx(0.9 * whole + 0.1 * none)
    soft = torch.tensor([[0.25, 0.75]])
    assert loss(outputs, soft).item() == pytest.approx(0.3 * whole + 0.7 * none)
    loss.label_smoothing = 0.0
    assert loss(outputs, soft).item() == pytest.approx(0.25 * whole + 0.75 * none)


@pytest.mark.parametrize(
    ("setting", "theirs"),
    [("{label_smoothing: 0.1}", SoftTargetCrossEntropy()), ("{name: bce, label_smoothing: 0.1}", BinaryCrossEntropy())],
)
def test_smoothing_mixed_labels_is_mixing_smoothed_ones_as_timm_does(setting, theirs):
    torch.manual_seed(0)
    images, labels, outputs = torch.rand(2, 3, 8, 8), torch.tensor([4, 1]), torch.randn(2, 5)
    mixing = Mixup(label_smoothing=0.1, num_classes=5)
    mixing._params_per_batch = lambda: (0.3, False)
    expected = theirs(outputs, mixing(images.clone(), labels)[1])
    torch.testing.assert_close(loss_of(setting)(outputs, mixup(images, labels, 0.3, 5)[1]), expected)
    if "bce" in setting:
        torch.testing.assert_close(loss_of(setting)(outputs, labels), theirs(outputs, labels))
    else:
        expected = F.cross_entropy(outputs, labels, label_smoothing=0.1)
        assert torch.equal(loss_of(setting)(outputs, labels), expected)


def test_sections_keep_the_smoothing_when_the_loss_is_named():
    recipe = compose(["cifar10/resnet20", "loss.label_smoothing=0.1", "loss.name=bce"])
    assert (recipe.loss.name, recipe.loss.label_smoothing) == ("bce", 0.1)
    assert compose(["cifar10/resnet20", "loss={name: cross_entropy}"]).loss == compose(["cifar10/resnet20"]).loss
    with pytest.raises(ValueError, match=r"loss.sum_classes: has no effect with name: cross_entropy, only with bce"):
        compose(["cifar10/resnet20", "loss.sum_classes=true"])
    with pytest.raises(ValueError, match=r"loss.target_threshold: must be in \(0, 1\), got 1.5"):
        compose(["cifar10/resnet20", "loss={name: bce, target_threshold: 1.5}"])
    with pytest.raises(ValueError, match="mixing: has no effect"):
        compose(["cifar10/resnet20", "mixing={mixup: 0.0, cutmix: 0.0}"])
