"""What strengths are set on: layers of timm's networks, and attributes."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import nn

from mixsize.algorithms.training.setters import attribute_setter, drop_path_setter, dropout_setter


def path_rates(network):
    return [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_stochastic_depth_keeps_timms_line_over_the_depth(name):
    network, expected = (timm.create_model(name, drop_path_rate=rate) for rate in (0.2, 0.1))
    configured = path_rates(network)
    set_rate = drop_path_setter(network, 0.2)
    set_rate(0.1)
    assert path_rates(network) == pytest.approx(path_rates(expected))
    set_rate(None)
    drop_path_setter(network)(0.1)
    assert max(path_rates(network)) == pytest.approx(0.1)
    set_rate(0.0)
    assert set(path_rates(network)) == {0.0}
    set_rate(None)
    assert path_rates(network) == configured


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_network_with_its_dropout_set_trains_as_one_made_with_it(name):
    def outputs(network):
        torch.manual_seed(7)
        return network.train()(images)

    torch.manual_seed(0)
    network, expected = (timm.create_model(name, num_classes=4, drop_rate=rate) for rate in (0.5, 0.2))
    expected.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 224 if "vit" in name else 64, 224 if "vit" in name else 64)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    set_rate = dropout_setter(network)
    set_rate(0.2)
    made = outputs(expected)
    assert torch.equal(outputs(network), made)
    network.load_state_dict(state)
    set_rate(None)
    assert not torch.equal(outputs(network), made)


def test_several_rates_of_dropout_keep_their_proportion_and_others_stay_at_0():
    network = nn.Sequential(nn.Dropout(0.4), nn.Dropout2d(0.1), nn.Dropout(0.0), nn.Linear(2, 2))
    set_rate = dropout_setter(network)
    set_rate(0.2)
    assert [network[place].p for place in range(3)] == [0.2, 0.05, 0.0]
    set_rate(None)
    assert [network[place].p for place in range(3)] == [0.4, 0.1, 0.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [(dropout_setter, r"no dropout to set; .* \(model.kwargs.drop_rate\)"), (drop_path_setter, "no stochastic depth")],
)
def test_a_network_without_any_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(timm.create_model("resnet10t"))


def test_an_attribute_takes_its_value_and_its_own_again():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    set_smoothing = attribute_setter(loss, "label_smoothing")
    set_smoothing(0.3)
    assert loss.label_smoothing == 0.3
    set_smoothing(None)
    assert loss.label_smoothing == 0.1
    with pytest.raises(AttributeError, match="no attribute 'mixup'"):
        attribute_setter(loss, "mixup")
