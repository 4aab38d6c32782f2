"""Networks changed by Composer's algorithms: built the same for training, plans, evaluation and prediction."""

from __future__ import annotations

import warnings

import pytest
import torch
from composer import functional
from composer.algorithms.blurpool import BlurConv2d
from safetensors.torch import save_file

from mixsize.recipes.config.compose import compose, to_yaml
from mixsize.recipes.models.flops import count_macs
from mixsize.recipes.models.network import create_network, planned_network, trained_network
from mixsize.recipes.models.surgery import Surgery

SMALL = ["demo", "model.name=resnet10t", "model.kwargs={channels: [16, 16, 32, 32], stem_width: 8}"]
BLUR = "algorithms.blurpool={min_channels: 8}"


def recipe(*items):
    return compose([*SMALL, *items])


def build(*items):
    torch.manual_seed(0)
    one = recipe(*items)
    return create_network(one.model, 10, Surgery.of(one)).eval()


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_network_is_changed_as_composers_function_changes_it():
    expected = build()
    functional.apply_blurpool(expected, min_channels=8)
    changed = build(BLUR)
    assert any(isinstance(layer, BlurConv2d) for layer in changed.modules())
    assert torch.equal(changed(images()), expected(images()))
    assert not torch.equal(changed(images()), build()(images()))


def test_algorithms_act_in_the_order_of_the_recipe():
    factorize = "algorithms.factorize={min_channels: 16, latent_channels: 0.25}"
    first, second = build(BLUR, factorize), build(factorize, BLUR)
    assert first.state_dict().keys() != second.state_dict().keys()


def test_a_plan_counts_the_changed_network():
    blocks = "algorithms.squeeze_excite={min_channels: 16, latent_channels: 8}"
    plain, wider = (count_macs(planned_network(one), 32) for one in (recipe(), recipe(blocks)))
    assert plain is not None
    assert wider is not None
    assert wider > plain


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["algorithms.squeeze_excite={min_channels: 4096}"],
         r"algorithms.squeeze_excite: ResNet has no layer that it changes with \{'min_channels': 4096\}"),
        (["model.name=tf_efficientnet_b0", "model.kwargs={}", "algorithms.blurpool={}"],
         "algorithms.blurpool: would put plain layers in the place of Conv2dSame"),
        (["model.name=convnext_atto", "model.kwargs={}", "algorithms.low_precision_layernorm={}", "precision=amp_bf16"],
         "algorithms.low_precision_layernorm: would put plain layers in the place of LayerNorm2d"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_or_too_much_is_refused_without_data(items, message):
    with pytest.raises(ValueError, match=message):
        planned_network(recipe(*items))


def test_layers_of_low_precision_keep_their_names():
    items = ["model.name=vit_tiny_patch16_224", "model.kwargs={depth: 1}"]
    plain = planned_network(recipe(*items))
    changed = planned_network(recipe(*items, "algorithms.low_precision_layernorm={}", "precision=amp_bf16"))
    assert type(changed.norm).__name__ == "LPLayerNorm"
    assert changed.state_dict().keys() == plain.state_dict().keys()


def saved(folder, network, *items):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(recipe(*items)))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def test_weights_of_a_changed_network_are_loaded_into_one_changed_in_the_same_way(tmp_path):
    changed = build(BLUR)
    weights = saved(tmp_path / "run", changed, BLUR)
    assert torch.equal(trained_network(recipe(BLUR), weights, 10).eval()(images()), changed(images()))
    start = f"model.checkpoint={weights}"
    assert torch.equal(build(BLUR, start)(images()), changed(images()))
    for other in ([], ["algorithms.blurpool={min_channels: 16}"]):
        with pytest.raises(ValueError, match=r"whose layers were changed; give the same algorithms: \{blurpool: "):
            build(*other, start)


def test_weights_of_timms_network_are_loaded_before_it_is_changed(tmp_path):
    plain = build()
    weights = saved(tmp_path / "run", plain)
    functional.apply_blurpool(plain, min_channels=8)
    assert torch.equal(build(BLUR, f"model.checkpoint={weights}")(images()), plain(images()))


@pytest.mark.parametrize(
    ("algorithms", "message"),
    [
        ("[blurpool]", "must be a mapping of names to arguments"),
        ("{blurpool: {optimizers: 1}}", "algorithms: is no argument of blurpool, which takes replace_convs"),
    ],
)
def test_a_recipe_beside_weights_is_read_with_care(tmp_path, algorithms, message):
    weights = saved(tmp_path / "run", build())
    (tmp_path / "run/recipe.yaml").write_text(f"algorithms: {algorithms}")
    with pytest.raises(ValueError, match=f"recipe.yaml: .*{message}"):
        build(f"model.checkpoint={weights}")


def test_a_network_without_surgery_needs_no_composer(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "composer", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
