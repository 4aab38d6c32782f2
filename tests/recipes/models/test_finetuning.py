"""What stays trainable."""

from __future__ import annotations

import pytest
import timm
import torch

from mixsize.recipes.models.finetuning import train_head_and_batch_norm


def trainable(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_the_last_layer_and_every_batch_norm_stay_trainable():
    network = timm.create_model("resnet10t", num_classes=3)
    train_head_and_batch_norm(network)
    norms = {name for name, _ in network.named_parameters() if ".bn" in name or name.startswith("bn1")}
    norms |= {n for n, _ in network.named_parameters() if n.startswith(("conv1.1.", "conv1.4."))}
    norms |= {n for n, p in network.named_parameters() if "downsample" in n and p.ndim == 1}
    assert trainable(network) == {"fc.weight", "fc.bias", *norms}


def test_a_network_with_other_norms_trains_its_last_layer_alone():
    network = timm.create_model("convnext_atto", num_classes=3)
    train_head_and_batch_norm(network)
    assert trainable(network) == {"head.fc.weight", "head.fc.bias"}


def test_all_heads_of_a_network_with_several_stay_trainable():
    network = timm.create_model("levit_128s", num_classes=3)
    train_head_and_batch_norm(network)
    assert {"head.linear.weight", "head_dist.linear.weight"} <= trainable(network)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])
def test_running_statistics_go_on_moving(name):
    network = timm.create_model(name, num_classes=3)
    train_head_and_batch_norm(network)
    before = network.bn1.running_mean.clone()
    network.train()(torch.randn(4, 3, 64, 64))
    assert not torch.equal(network.bn1.running_mean, before)
