"""Image sizes that a network takes: refusals, their advice, and that the advice works."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from mixsize.recipes.config.schema import Model
from mixsize.recipes.models.network import check_sizes, network_stride


def meta(name: str, **kwargs) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=5, **kwargs)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_network_for_one_size_is_refused_at_others_until_made_dynamic(name):
    network = meta(name)
    own = network.pretrained_cfg["input_size"][-1]
    words = f"{name} takes {own} px only, not 192 px; model.kwargs: {{dynamic_img_size: true}} lifts this"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        check_sizes(network, name, [192, own, own])
    check_sizes(network, name, [own])
    flexible = meta(name, **Model(name=name, kwargs={"dynamic_img_size": True}).kwargs)
    check_sizes(flexible, name, [192, own])
    assert own % network_stride(flexible) == 0
    assert 192 % network_stride(flexible) == 0


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "mixer_s32_224", "botnet26t_256", "levit_128s"])
def test_a_network_that_cannot_be_made_dynamic_can_be_made_for_one_other_size(name):
    network = meta(name)
    own = network.pretrained_cfg["input_size"][-1]
    with pytest.raises(ValueError, match=f"{own} px only, not 192 px; timm has no argument that lifts this"):
        check_sizes(network, name, [192, own])
    with pytest.raises(ValueError, match=re.escape("model.kwargs: {img_size: 192} lifts this")):
        check_sizes(network, name, [192])
    check_sizes(meta(name, img_size=192), name, [192])


def test_both_ways_out_are_named_where_one_size_is_asked_for():
    network = meta("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=re.escape("{dynamic_img_size: true} or {img_size: 192} lifts this")):
        check_sizes(network, "vit", [192, 192])


def test_a_network_made_for_another_size_is_refused_at_the_pretrained_one():
    network = meta("levit_128s", img_size=192)
    check_sizes(network, "levit_128s", [192])
    with pytest.raises(ValueError, match="takes 192 px only, not 224 px"):
        check_sizes(network, "levit_128s", [224])


def test_an_argument_without_effect_is_not_advised():
    network = meta("efficientformer_l1")
    with pytest.raises(ValueError, match="timm has no argument that lifts this; train at one size or choose another"):
        check_sizes(network, "efficientformer_l1", [192])


def test_a_network_that_resizes_its_images_itself_is_refused():
    """Every size goes through CrossViT, at the cost of its own."""
    network = meta("crossvit_tiny_240")
    with pytest.raises(ValueError, match="takes 240 px only, not 192 px"):
        check_sizes(network, "crossvit_tiny_240", [192, 240])
    check_sizes(network, "crossvit_tiny_240", [240])


def test_an_unmarked_network_is_refused_where_its_forward_pass_fails():
    """Halo attention cuts maps into blocks of 8, here at strides of 16 and 32: 256 px and its multiples go through."""
    network = meta("halonet26t")
    check_sizes(network, "halonet26t", [256, 512])
    with pytest.raises(ValueError, match=r"^halonet26t cannot take 192, 224 px: its forward pass ends in Assert"):
        check_sizes(network, "halonet26t", [192, 224, 256])


@pytest.mark.parametrize("marked", [False, True])
def test_a_network_that_fails_on_the_meta_device_is_judged_by_its_mark(marked):
    class Reading(torch.nn.Module):
        pretrained_cfg = {"input_size": (3, 64, 64), "fixed_input_size": marked}  # noqa: RUF012

        def forward(self, images):
            return images * images.mean().item()

    check_sizes(Reading(), "reading", [64])
    if marked:
        with pytest.raises(ValueError, match="reading takes 64 px only, not 32, 96 px"):
            check_sizes(Reading(), "reading", [32, 64, 96])
    else:
        check_sizes(Reading(), "reading", [32, 96])


def test_a_checked_network_stays_as_it_was():
    network = timm.create_model("mobilenetv3_small_050", num_classes=5, drop_rate=0.5).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    check_sizes(network, "mobilenetv3_small_050", [32, 64])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert network.training
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "stride_px"),
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, 16),
        ("eva02_tiny_patch14_224", {"dynamic_img_size": True}, 14),
        ("vit_small_patch8_224", {"dynamic_img_size": True}, 8),
        ("swin_tiny_patch4_window7_224", {"dynamic_img_size": True}, 32),
        ("resnet18", {"output_stride": 8}, 8),
        ("cifar_resnet20", {}, 4),
    ],
)
def test_strides(name, kwargs, stride_px):
    assert network_stride(meta(name, **kwargs)) == stride_px


def test_a_stride_without_feature_info_is_the_patch():
    network = meta("vit_tiny_patch16_224")
    del network.feature_info
    assert network_stride(network) == 16
    network.patch_embed.patch_size = 8
    assert network_stride(network) == 8
