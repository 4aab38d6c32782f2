"""The optimiser of a recipe: rates and decay of its groups, timm's optimisers by name, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from timm.optim import get_optimizer_info, list_optimizers

from mixsize.algorithms.regime.regime import Base, Choice, Regime
from mixsize.algorithms.training.epoch_schedule import set_learning_rate
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.finetuning import train_head_and_batch_norm
from mixsize.recipes.models.optimizer import build_optimizer

FIXED = Regime.fixed(Base(32, 64))


def optimizer_of(network, *items, regime=FIXED):
    return build_optimizer(compose(["cifar10/resnet20", *items]).optimizer, network, regime)


def by_name(network, optimizer, value="lr"):
    """Parameter -> a value of its group."""
    values = {id(p): group[value] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in network.named_parameters() if id(p) in values}


@pytest.mark.parametrize("variant", ["{name: sgd, lr: 0.8", "{name: adamw, lr: 0.8", "{name: timm, opt: lamb, lr: 0.8"])
def test_layer_decay_by_hand(variant):
    network = timm.create_model("test_vit", num_classes=3, depth=2)
    optimizer = optimizer_of(network, f"optimizer={variant}, weight_decay: 0.05, layer_decay: 0.5}}")
    rates = by_name(network, optimizer)
    # The embedding, two blocks, then the last norm and the classifier.
    expected = {"patch_embed.proj.weight": 0.1, "pos_embed": 0.1, "blocks.0.mlp.fc1.bias": 0.2}
    expected |= {"blocks.1.attn.qkv.weight": 0.4, "head.weight": 0.8, "head.bias": 0.8}
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert rates.keys() == dict(network.named_parameters()).keys()
    decay = by_name(network, optimizer, "weight_decay")
    assert {decay["blocks.1.attn.qkv.weight"], decay["head.weight"], decay["patch_embed.proj.weight"]} == {0.05}
    assert {decay["head.bias"], decay["blocks.0.norm1.weight"]} == {0.0}
    # A schedule multiplies the rate of each layer.
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        scaled = by_name(network, optimizer)
        assert {name: scaled[name] for name in expected} == pytest.approx(
            {name: rate * factor for name, rate in expected.items()}
        )


def test_layer_decay_goes_with_decay_of_all_with_frozen_layers_and_with_scaled_rates():
    network = timm.create_model("test_resnet", num_classes=3)
    train_head_and_batch_norm(network)
    regime = Regime.from_choices(Base(32, 64), [Choice(32, 128, 1, 1.0)])
    items = "{name: sgd, lr: 0.1, weight_decay: 0.01, decay: all, layer_decay: 0.5, lr_scaling: linear}"
    optimizer = optimizer_of(network, f"optimizer={items}", regime=regime)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    rates = by_name(network, optimizer)
    assert rates.keys() == trained
    assert "bn1.weight" in trained
    assert rates["fc.weight"] == pytest.approx(0.2)
    assert max(rate for name, rate in rates.items() if not name.startswith("fc")) == pytest.approx(0.1)
    assert set(by_name(network, optimizer, "weight_decay").values()) == {0.01}


def test_the_root_of_the_mean_batch():
    # Half of the steps of 64 images, half of 256: 160 in the mean step.
    rows = [Choice(32, 64, 1, 0.5), Choice(16, 256, 1, 0.5)]
    regime = Regime.from_choices(Base(32, 64), rows, share_of="steps")
    optimizer = optimizer_of(torch.nn.Linear(2, 2), "optimizer.lr_scaling=sqrt", "optimizer.lr=0.1", regime=regime)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * math.sqrt(2.5))


def test_timms_optimisers_take_their_arguments():
    network = torch.nn.Linear(3, 2)
    setting = "{name: timm, opt: lamb, lr: 0.01, weight_decay: 0.02, kwargs: {betas: [0.8, 0.9], trust_clip: true}}"
    optimizer = optimizer_of(network, f"optimizer={setting}")
    assert type(optimizer).__name__ == "Lamb"
    weight, bias = optimizer.param_groups
    assert (weight["weight_decay"], bias["weight_decay"]) == (0.02, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    assert (weight["betas"], weight["trust_clip"]) == ((0.8, 0.9), True)
    # timm's defaults: momentum 0.9 and Nesterov's form for sgd.
    (group,) = optimizer_of(network, "optimizer={name: timm, opt: sgd, lr: 0.1, decay: all}").param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("opt: lambb", r"optimizer.opt is 'lambb'; it must be one of .*; did you mean lamb or"),
        ("opt: adahessian", "optimizer.opt is 'adahessian'.*without adahessian"),
        ("opt: fusedlamb", "optimizer.opt is 'fusedlamb'.*without those of Apex"),
        ("opt: lookahead_lamb", "optimizer.opt is 'lookahead_lamb'"),
        ("opt: lamb, kwargs: {beta: 0.9}", "optimizer.kwargs.beta: Lamb takes no such argument, but lr, bias_corr"),
        ("opt: lamb, kwargs: {eps: small}", "optimizer.kwargs.eps is 'small'; Lamb takes float"),
        ("opt: lamb, kwargs: {trust_clip: 1}", "optimizer.kwargs.trust_clip is 1; Lamb takes bool"),
        ("opt: lamb, kwargs: {betas: [0.9]}", r"optimizer.kwargs.betas is \[0.9\]; Lamb takes Tuple\[float, float\]"),
        ("opt: sgd, kwargs: {eps: 0.1}", "optimizer.kwargs.eps: SGD takes no such argument"),
        ("opt: sgd, kwargs: {dampening: 0.5}", "optimizer.kwargs: sgd cannot be made with .*: Nesterov"),
        ("opt: lamb, kwargs: {lr: 0.1}", r"optimizer.kwargs.lr: cannot be given here: set optimizer.lr, got 0.1"),
        ("opt: lamb, kwargs: {weight_decay: 0.1}", "cannot be given here: set optimizer.weight_decay"),
        ("opt: lamb, momentum: 0.9", "optimizer.momentum: has no effect with name: timm, only with sgd"),
        ("opt: lamb, layer_decay: 0.5", "optimizer.layer_decay: timm does not say what the layers of a Linear are"),
        ("opt: lamb, layer_decay: 1.5", r"optimizer.layer_decay: must be in \(0, 1\]"),
        ("opt: lamb, clip_norm: 0.0", "optimizer.clip_norm: must be greater than 0"),
    ],
)
def test_what_timm_does_not_take_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        optimizer_of(torch.nn.Linear(2, 2), f"optimizer={{name: timm, lr: 0.1, {setting}}}")


def _usable():
    infos = {name: get_optimizer_info(name) for name in list_optimizers(exclude_filters=["kron*"])}  # Kron compiles.
    return sorted(name for name, info in infos.items() if not (isinstance(info.opt_class, str) or info.second_order))


@pytest.mark.parametrize("opt", _usable())
def test_a_step_given_its_passes_as_a_closure_is_the_same_step(opt):
    # Composer gives the optimiser a closure, except under amp_fp16.
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 3
    networks = [network, copy.deepcopy(network)]
    for closed, own in zip((False, True), networks, strict=True):
        torch.manual_seed(1)
        optimizer = optimizer_of(own, f"optimizer={{name: timm, opt: {opt}, lr: 0.01, weight_decay: 0.01}}")

        def passes(own=own, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(own(images), labels)
            loss.backward()
            return loss.item()

        for _ in range(3):
            if closed:
                optimizer.step(closure=passes)
            else:
                passes()
                optimizer.step()
    for name, tensor in networks[0].state_dict().items():
        assert torch.equal(tensor, networks[1].state_dict()[name]), name
