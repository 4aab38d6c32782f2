"""AmoebaNet-A for CIFAR: its published size, its sizes, and timm's interface."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mixsize.recipes.models import amoebanet

NAME = "cifar_amoebanet_a"


def small(**arguments):
    return timm.create_model(NAME, layers=4, width=4, **arguments)


def test_it_has_the_published_number_of_parameters():
    # Liu et al. 2019 (DARTS), table 1: 3.1 M for AmoebaNet-A with 20 cells.
    with torch.device("meta"):
        network = timm.create_model(NAME)
    assert sum(p.numel() for p in network.parameters()) == 3_145_078


def test_the_parameters_of_the_narrowest_network_by_hand():
    # One normal cell after the stem, width 2. Stem: 3 -> 6 channels of 3 x 3: 162.
    # Inputs: two 1 x 1 convolutions 6 -> 2 with batch norm: 2 * (12 + 4).
    # Separable convolutions on 2 channels, k x k: twice k * k * 2 + 4 + batch norm 4; three of 3 x 3, one of 5 x 5.
    # Pooling and skips have none. The last layer: 6 -> 10 with bias.
    separable = {k: 2 * (2 * k * k + 4 + 4) for k in (3, 5)}
    # Of three cells the second and the third reduce.
    network = timm.create_model(NAME, layers=3, width=2)
    first = network.cells[0]
    assert first.nodes == amoebanet.NORMAL
    assert sum(p.numel() for p in first.parameters()) == 2 * (12 + 4) + 3 * separable[3] + separable[5]
    assert sum(p.numel() for p in network.conv1.parameters()) == 162
    # Reductions double the width twice: 3 * 8 channels come out.
    assert network.fc.in_features == 24


@pytest.mark.parametrize(("size_px", "maps"), [(16, 4), (24, 6), (32, 8), (40, 10), (30, 8), (33, 9)])
def test_any_size_is_taken_and_halved_twice(size_px, maps):
    network = small(num_classes=7).eval()
    images = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        assert network(images).shape == (2, 7)
        assert network.forward_features(images).shape == (2, 48, maps, maps)


def test_feature_info_matches_the_maps():
    network = small(features_only=True).eval()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 32, 32))
    assert [32 // m.shape[-1] for m in maps] == network.feature_info.reduction() == [1, 1, 2, 4]
    assert [m.shape[1] for m in maps] == network.feature_info.channels()


def test_halving_sees_the_even_and_the_odd_pixels():
    halving = amoebanet.Halving(1, 2).eval()
    nn.init.ones_(halving.even.weight)
    nn.init.ones_(halving.odd.weight)
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    out = halving(image)[0]
    torch.testing.assert_close(out[0], torch.tensor([[1.0, 3.0], [7.0, 9.0]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(out[1], torch.tensor([[5.0, 0.0], [0.0, 0.0]]), rtol=1e-4, atol=0)


def test_dropped_paths_act_in_training_alone():
    network = small(drop_path_rate=0.5)
    images = torch.randn(4, 3, 16, 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_every_parameter_receives_a_gradient():
    network = small()
    network(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_classifier_can_be_replaced():
    network = small(num_classes=3)
    network.reset_classifier(5)
    assert network.get_classifier() is network.fc
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 5)
