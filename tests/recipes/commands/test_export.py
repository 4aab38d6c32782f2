"""``mixsize export`` and ``mixsize predict``, against timm, a plain loop and ONNX's reference implementation."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx.reference
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config

from mixsize.algorithms.batchnorm.bank import StatisticsBank
from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.commands.eval_report import read_record
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.hub_config import Preparation, config_text
from mixsize.recipes.models.inference import class_names, load_at_size, probabilities
from mixsize.recipes.models.network import create_network


@pytest.fixture(scope="module")
def items(photos, tmp_path_factory):
    """ResNet-14 on photographs, centre crops, and every view read from the full image."""
    return [
        "imagenet/resnet50", "model.name=resnet14t", "model.kwargs={}", f"data.train={photos}", f"data.eval={photos}",
        f"output.folder={tmp_path_factory.mktemp('runs')}", "device=cpu", "precision=fp32", "channels_last=false",
        "regime.base={size_px: 64, batch_size: 8}", "optimizer.lr=0.02", "progress_bar=false", "max_duration=4ep",
        "schedule={name: constant}", "calibration={batches: 3}", "evaluation.sizes=[64, 96]",
        # 64 / 0.5 is a whole number: timm rounds the resized side down and mixsize up.
        "evaluation.min_oversampling=null", "data.eval_transform.fraction=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(items):
    assert main(["train", *items, "output.save_every=never"]) == 0
    recipe = compose(items)
    return f"{recipe.output.folder}/{recipe.name}"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "network"
    assert main(["export", run, "--sizes", "64,96", "--onnx", "96", "--out", str(folder)]) == 0
    return folder


def pictures(photos):
    beton = Beton.open(photos)
    return [Image.open(io.BytesIO(beton.stored(i))).convert("RGB") for i in range(beton.num_samples)], beton.labels


def hits(network, transform, images, labels):
    return sum(
        int(probabilities(network, transform(image)[None]).argmax()) == label
        for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("size_px", [64, 96])
def test_a_network_at_a_size_is_as_accurate_as_the_evaluation_says(run, exported, photos, size_px):
    assert main(["eval", run, "--sizes", str(size_px), "--out", "found"]) == 0
    row = read_record(Path("found/model.json")).sizes[0]
    images, labels = pictures(photos)
    assert hits(*load_at_size(exported, size_px), images, labels) == round(row.calibrated.top1 * 24)
    assert 0.5 < row.calibrated.top1 <= 1


def test_timm_alone_finds_the_accuracy_of_the_networks_own_statistics(run, exported, photos):
    assert main(["eval", run, "--sizes", "64", "--no-calibrate", "--out", "found"]) == 0
    network = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    images, labels = pictures(photos)
    row = read_record(Path("found/model.json")).sizes[0]
    assert hits(network, transform, images, labels) == round(row.own.top1 * 24)


@pytest.mark.parametrize("folder", ["run", "exported"])
def test_timms_own_training_starts_from_what_is_saved(folder, request):
    """As its script does with --initial-checkpoint, and with --pretrained-path for other classes."""
    path = f"{request.getfixturevalue(folder)}/model.safetensors"
    saved = load_file(path)
    network = timm.create_model("resnet14t", num_classes=2, checkpoint_path=path)
    again = timm.create_model("resnet14t", num_classes=2)
    timm.models.load_checkpoint(again, path)
    for loaded in (network.state_dict(), again.state_dict()):
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[name], values) for name, values in saved.items())
    overlay = {"file": path, "num_classes": -1}
    other = timm.create_model("resnet14t", pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay).state_dict()
    assert torch.equal(other["layer4.0.conv1.weight"], saved["layer4.0.conv1.weight"])
    assert other["fc.weight"].shape == (5, saved["fc.weight"].shape[1])


def test_a_finished_run_can_be_loaded_and_has_the_statistics_that_it_was_evaluated_with(run, exported):
    own, measured = (StatisticsBank.load(f"{folder}/batch_norm.pt") for folder in (run, exported))
    assert own.sizes == measured.sizes == [64, 96]
    for size_px in (64, 96):
        for name, layer in own[size_px].items():
            torch.testing.assert_close(layer.mean, measured[size_px][name].mean)
    network, _ = load_at_size(run, 96)
    assert torch.equal(network.bn1.running_mean, own[96]["bn1"].mean.float())
    network, _ = load_at_size(run, 128)
    plain = timm.create_model(f"local-dir:{run}", pretrained=True)
    assert torch.equal(network.bn1.running_mean, plain.bn1.running_mean)
    assert class_names(network) == ["china", "flower"]


@pytest.mark.parametrize("size_px", [1, 8, 95, 160, 224])
@pytest.mark.parametrize("fraction", [0.875, 0.95, 1.0])
def test_the_resized_side_is_rounded_up_as_in_evaluation(tmp_path, size_px, fraction):
    network = create_network(compose(["demo"]).model, 3)
    preparation = Preparation(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", crop_pct=fraction, crop_mode="center",
        input_size=(3, 16, 16),
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config_text(network, preparation, None))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    _, transform = load_at_size(tmp_path, size_px)
    numerator, denominator = {0.875: (8, 7), 0.95: (20, 19), 1.0: (1, 1)}[fraction]
    assert transform.transforms[0].size == -(-size_px * numerator // denominator)
    assert tuple(transform(Image.new("RGB", (90, 70))).shape) == (3, size_px, size_px)


def test_predictions_are_printed_and_an_unreadable_image_is_named(exported, photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    images, _ = pictures(photos)
    for index in (0, 20):
        images[index].save(f"{index}.png")
    with open("broken.png", "w") as file:
        file.write("no image")
    assert main(["predict", str(exported), "0.png", "broken.png", "20.png", "--size", "96"]) == 1
    out = capsys.readouterr().out
    network, transform = load_at_size(exported, 96)
    for index in (0, 20):
        best = probabilities(network, transform(images[index])[None])[0]
        row = next(line for line in out.splitlines() if f"{index}.png" in line and "cannot" not in line)
        assert f" {['china', 'flower'][int(best.argmax())]} │" in row
        assert f" {100 * best.max():.1f} │" in row
    assert "broken.png: cannot be read as an image" in out
    assert main(["predict", str(exported), "0.png", "--size", "128"]) == 0
    assert "no batch-norm statistics of 128 px" in capsys.readouterr().out


def test_onnx_gives_the_networks_outputs_at_its_size(exported):
    network, _ = load_at_size(exported, 96)
    images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    session = onnx.reference.ReferenceEvaluator(str(exported / "model-96.onnx"))
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(images).numpy(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_or_loaded_is_named(run, exported, tmp_path, capsys):
    assert main(["export", run, "--out", str(exported)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "x.png"]) == 2
    assert "has no config.json; it must be the folder of a finished run" in capsys.readouterr().err
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its weights cannot be loaded"):
        load_at_size(tmp_path)
