"""``mixsize start``: recipes for networks and images of several kinds, and the first training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.commands.start import make_recipe
from mixsize.recipes.commands.start_command import parse_length
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.schema import Model
from mixsize.recipes.models.network import create_network
from mixsize.recipes.planning.first_recipe import Images, choose

MANY = Images(1_281_167, 375, one_size=False)
FEW = Images(10_000, 375, one_size=False)
CIFAR = Images(50_000, 32, one_size=True)


def values(name, images, *, on_gpu=False, pretrained=False, instructions=()):
    network = create_network(Model(name=name), 10)
    chosen = choose(network, name, images, on_gpu=on_gpu, pretrained=pretrained, instructions=instructions)
    return {one.key: one.value for one in chosen}


@pytest.mark.parametrize(
    ("name", "images", "base_px", "sizes"),
    [
        # 3/4 and 1/2 of 224 in multiples of 32: 168 is nearest to 160, 112 is between 96 and 128.
        ("resnet18", FEW, 224, {224: 0.3334, 160: 0.3333, 128: 0.3333}),
        # Two steps of a stride of 32, where images are smaller.
        ("resnet18", CIFAR, 64, {64: 0.5, 32: 0.5}),
        ("cifar_resnet20", CIFAR, 32, {32: 0.3334, 24: 0.3333, 16: 0.3333}),
        ("resnet10t", FEW, 192, {192: 0.3334, 128: 0.3333, 96: 0.3333}),
        ("vit_tiny_patch16_224", FEW, 224, None),
        ("cifar_resnet20", Images(127, 32, one_size=True), 32, None),
    ],
)
def test_sizes_follow_the_images_and_the_network(name, images, base_px, sizes):
    found = values(name, images)
    assert found["regime.base.size_px"] == base_px
    assert found.get("regime.sizes") == sizes
    assert found["regime.mode"] == ("B+" if sizes else "fixed")
    assert base_px in found["evaluation.sizes"]
    assert sizes is None or max(found["evaluation.sizes"]) > base_px


def test_batches_optimisers_and_crops_follow_device_network_and_images():
    cpu, gpu = values("resnet18", MANY), values("resnet18", MANY, on_gpu=True)
    # 32 x 128² / 224² = 10.4 images on a CPU.
    assert (cpu["regime.base.batch_size"], gpu["regime.base.batch_size"]) == (8, 256)
    assert (cpu["precision"], gpu["precision"]) == ("fp32", "amp_bf16")
    precisions = [
        values(name, MANY, instructions=instructions)["precision"]
        for name in ("resnet18", "mobilenetv3_small_050")
        for instructions in ([], ["avx512_bf16"], ["amx_bf16", "avx512_bf16"])
    ]
    assert precisions == ["fp32", "fp32", "amp_bf16", "fp32", "fp32", "fp32"]
    assert gpu["optimizer"] == {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    assert values("resnet18", MANY, on_gpu=True, pretrained=True)["optimizer"]["lr"] == pytest.approx(0.01)
    convnext = values("convnext_atto", MANY, on_gpu=True)["optimizer"]
    assert (convnext["name"], convnext["lr"]) == ("adamw", 0.001)
    assert (gpu["data.augment"]["scale"], values("resnet18", FEW)["data.augment"]["scale"]) == ([0.08, 1], [0.35, 1])
    assert values("cifar_resnet20", CIFAR)["data.augment"] == {"name": "pad_crop", "padding": 4, "flip": True}
    # 200 images: 16 steps of 12, rounded down to 8.
    assert values("cifar_resnet20", Images(200, 32, one_size=True))["regime.base.batch_size"] == 8


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_file_composes_to_the_recipe(name, photos):
    recipe, text = make_recipe("mine", name, [photos, photos], "30ep")
    Path("mine.yaml").write_text(text)
    assert compose(["mine.yaml"]) == recipe
    assert (recipe.name, recipe.max_duration, recipe.model.name) == ("mine", "30ep", name)
    assert recipe.data.eval_transform.fraction is None
    assert "  # " in text


def test_lengths():
    lengths = {"20min": "1200sec", "3h": "10800sec", "9sec": "9sec", "30ep": "30ep"}
    assert {text: parse_length(text) for text in lengths} == lengths


def test_a_folder_is_converted_and_trained_and_nothing_is_overwritten(photos, capsys):
    source = photos.parent / "source"
    for split in ("train", "val"):
        shutil.copytree(source, Path("flowers", split))
    # Six copies of 24 photographs: enough for three sizes.
    for image in list(Path("flowers/train").rglob("*.jpg")):
        for copy in range(5):
            shutil.copy(image, image.with_stem(f"{image.stem}-{copy}"))
    assert main(["start", str(source), "--model", "resnet10t", "--for", "1ep"]) == 2
    assert "has no train and test folders" in capsys.readouterr().err
    argv = ["start", "flowers", "--model", "resnet10t", "--for", "1ep"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    beton = Beton.open("data/flowers/train.beton")
    median_px = int(np.median(np.minimum(beton.heights, beton.widths)))
    # Its own 176 px are nearest to 6 strides of 32 px.
    assert f"    size_px: {min(192, -(-median_px // 32) * 32)}  # " in out
    assert "recipe: flowers.yaml" in out
    assert Path("runs/flowers/model.safetensors").is_file()
    assert main(argv) == 2
    assert "flowers.yaml exists; train it with mixsize train flowers.yaml" in capsys.readouterr().err
    assert main(["start", "flowers", "--model", "resnet10", "--for", "1ep", "--name", "second"]) == 2
    assert "did you mean" in capsys.readouterr().err
