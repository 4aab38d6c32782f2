"""Multiply-accumulates against hand counts and published figures."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mixsize.recipes.models.flops import count_macs


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.depthwise(self.norm(self.conv(x)).relu()).mean((2, 3)))


@pytest.mark.parametrize(("size_px", "places", "halved"), [(10, 100, 25), (7, 49, 16)])
def test_a_small_network_by_hand(size_px, places, halved):
    # each place of each of 8 maps: 3 channels x 9; then, at half the places, 9; the last layer 8 x 5
    assert count_macs(Tiny(), size_px) == 8 * 27 * places + 8 * 9 * halved + 40


@pytest.mark.parametrize(
    ("name", "giga"),
    # He et al. 2016 state 3.8 for ResNet-50 with the stride in its 1 x 1 convolutions; 4.09 is torchvision's figure for
    # the form in use today, as are 3.36 and 0.386 for the other two (Huang et al. 2017; Tan and Le 2019: 0.39).
    [("resnet50", 4.089), ("densenet169", 3.36), ("efficientnet_b0", 0.386)],
)
def test_known_networks_have_their_published_figure(name, giga):
    with torch.device("meta"):
        network = timm.create_model(name)
    assert count_macs(network, 224) / 1e9 == pytest.approx(giga, rel=2e-3)


def test_the_network_stays_as_it_was():
    network = Tiny().train()
    before = [parameter.clone() for parameter in network.parameters()]
    count_macs(network, 8)
    assert network.training
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert network.norm.num_batches_tracked == 0
