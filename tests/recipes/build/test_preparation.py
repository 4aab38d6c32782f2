"""How images are prepared: a network's own values, those of its weights, those of the file; kept with the weights."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.preparation import preparation_of, with_preparation
from mixsize.recipes.commands.evaluate import build_job
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.hub_config import Preparation, adopt_config, config_text
from mixsize.recipes.models.network import create_network, planned_network

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRAL = ["data.eval_transform={name: center_crop}", "data.normalization=network"]


def filled(*items, train=None):
    recipe = compose(["demo", *items])
    return with_preparation(recipe, planned_network(recipe), train)


def found(recipe):
    return preparation_of(recipe).model_dump(exclude={"input_size"})


def test_values_left_open_are_the_networks_own():
    resnet = found(filled("model.name=resnet18", *CENTRAL))
    cfg = timm.get_pretrained_cfg("resnet18")
    assert (cfg.interpolation, cfg.crop_pct) == ("bicubic", 0.95)
    expected = {"mean": cfg.mean, "std": cfg.std, "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center"}
    assert resnet == expected
    inception = found(filled("model.name=inception_v3.tf_in1k", *CENTRAL))
    assert (inception["mean"], inception["std"]) == ((0.5,) * 3, (0.5,) * 3)


def test_values_of_the_recipe_stand(digits):
    given = ["data.mean=[0.1, 0.2, 0.3]", "data.eval_transform.fraction=0.5", "evaluation.interpolation=bilinear"]
    resnet = found(filled("model.name=resnet18", *CENTRAL, *given))
    expected = {"mean": (0.1, 0.2, 0.3), "std": IMAGENET[1], "interpolation": "bilinear", "crop_pct": 0.5}
    assert resnet == {**expected, "crop_mode": "center"}
    whole = found(filled("model.name=resnet18", "data.normalization=network"))
    assert (whole["crop_pct"], whole["crop_mode"]) == (1.0, "squash")


def test_the_files_own_on_request(digits):
    file = Beton.open(digits / "train.beton")
    assert found(filled("data.std=[0.1, 0.2, 0.3]", train=file))["mean"] == file.info.mean
    assert found(filled(train=file))["std"] == file.info.std


def test_a_filter_that_the_loaders_lack_is_named():
    network = planned_network(compose(["demo"]))
    network.pretrained_cfg["interpolation"] = "lanczos"
    with pytest.raises(ValueError, match=r"evaluation\.interpolation: cifar_resnet20 .* with lanczos, .* bicubic"):
        with_preparation(compose(["demo", "data.normalization=network"]), network, None)


def test_config_json_is_timms_and_comes_back():
    preparation = Preparation(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", crop_pct=0.9, crop_mode="center",
        input_size=(3, 48, 48),
    )  # fmt: skip
    network = create_network(compose(["demo", "model.name=resnet10t"]).model.model_copy(update={"kwargs": {}}), 3)
    text = config_text(network, preparation, ["a", "b", "c"])
    assert network.pretrained_cfg["mean"] == IMAGENET[0]
    with open("config.json", "w") as file:
        file.write(text)
    save_file(network.state_dict(), "model.safetensors")
    theirs = timm.create_model("local-dir:.", pretrained=True)
    config = resolve_model_data_config(theirs)
    expected = preparation.model_dump(mode="json")
    assert {key: json.loads(json.dumps(config[key])) for key in expected} == expected
    assert theirs.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "config.json: the file: Input should be an object"),
        ('{"pretrained_cfg": {"std": [0, 1, 1]}}', "config.json: pretrained_cfg.std.0: Input should be greater than 0"),
        ('{"architecture": "resnet18"}', "config.json: pretrained_cfg: Field required"),
    ],
)
def test_another_config_json_is_refused(text, words, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        adopt_config(planned_network(compose(["demo"])), tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton"]
    items = ["demo", *data, f"output.folder={folder}", "progress_bar=false", "evaluation.sizes=[16]"]
    assert main(["train", *items, "max_duration=1ep"]) == 0
    return folder / "demo", items


def test_a_run_keeps_its_preparation_with_its_weights(run, digits):
    folder, _ = run
    info = Beton.open(digits / "train.beton").info
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == list(info.classes)
    assert config["pretrained_cfg"]["mean"] == pytest.approx(info.mean)
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]


def test_weights_are_evaluated_and_tuned_with_their_own_preparation(run, digits, tmp_path):
    folder, items = run
    info = Beton.open(digits / "train.beton").info
    shutil.copy(digits / "test.beton", tmp_path / "other.beton")
    # Other images, of other statistics, in place of those that it was trained on.
    other = f"data.train={tmp_path}/other.beton"
    for job in (build_job(folder, [other]), build_job(folder / "model.safetensors", [*items, other])):
        assert job.recipe.data.mean == pytest.approx(info.mean)
    recipe = compose([*items, f"model.checkpoint={folder}/model.safetensors", "data.normalization=network"])
    network = create_network(recipe.model, 10)
    assert with_preparation(recipe, network, None).data.std == pytest.approx(info.std)


def test_a_last_layer_for_other_classes_is_made_anew_and_logged(run, caplog):
    folder, items = run
    model = compose([*items, f"model.checkpoint={folder}/model.safetensors"]).model
    whole, part = create_network(model, 10), create_network(model, 4)
    assert "is for 10 classes; the last layer starts from random weights" in caplog.text
    assert part.fc.weight.shape == (4, 64)
    for (name, one), other in zip(whole.state_dict().items(), part.state_dict().values(), strict=True):
        assert name.startswith("fc.") or torch.equal(one, other)
    headless = {name: value for name, value in whole.state_dict().items() if not name.startswith("fc.")}
    save_file(headless, "headless.safetensors")
    create_network(model.model_copy(update={"checkpoint": "headless.safetensors"}), 4)
    assert "headless.safetensors has no last layer; the last layer starts" in caplog.text
    with pytest.raises(ValueError, match="was trained for 10 classes"):
        build_job(folder, ["model.num_classes=12"])
