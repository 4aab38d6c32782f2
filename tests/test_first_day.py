"""A user's first day, command by command: own images in, a run, a longer run, other classes, the network out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from mixsize.cli import main
from mixsize.recipes.commands.eval_report import read_record
from mixsize.recipes.models.inference import load_at_size, probabilities

QUICK = ["progress_bar=false", "loader.num_workers=1"]


@pytest.fixture(params=["photographs", pytest.param("cifar10", marks=pytest.mark.data)])
def images(request, photos) -> Path:
    """A folder with train and test, each with class folders."""
    if request.param == "cifar10":
        return request.getfixturevalue("real_images") / "cifar10"
    for split, copies in (("train", 6), ("test", 2)):
        for image in (photos.parent / "source").rglob("*.jpg"):
            folder = Path("mine", split, image.parent.name)
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                shutil.copy(image, folder / f"{image.stem}-{copy}.jpg")
    return Path("mine")


def run(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


def test_a_first_day(images, capsys):
    train_images = len(list((images / "train").rglob("*.jpg")))
    run("start", images, "--model", "cifar_resnet20", "--for", "1ep", "--name", "mine", "--no-train")
    run("plan", "mine.yaml")
    assert f"images  {train_images:,} in " in capsys.readouterr().out
    run("train", "mine.yaml", *QUICK)
    first = json.loads(Path("runs/mine/record.json").read_text())
    run("train", "mine.yaml", *QUICK, "max_duration=2ep")
    record = json.loads(Path("runs/mine/record.json").read_text())
    assert (first["epochs"], record["epochs"]) == (1, 2)
    assert record["steps"] > first["steps"]

    classes = sorted(path.name for path in (images / "train").iterdir())
    for split in ("train", "test"):
        shutil.copytree(images / split / classes[0], Path("other", split, "a"))
        shutil.copytree(images / split / classes[1], Path("other", split, "b"))
        shutil.copytree(images / split / classes[1], Path("other", split, "c"))
    run("convert", "other", "data/other", "--no-progress")
    data = ["data.train=data/other/train.beton", "data.eval=data/other/test.beton", "name=other"]
    run(
        "train", "mine.yaml", *QUICK, *data, "model.checkpoint=runs/mine/model.safetensors", "regime.base.batch_size=16"
    )
    names = json.loads(Path("runs/other/config.json").read_text())["label_names"]
    assert names == ["a", "b", "c"]

    # timm predicts in float32, whatever the recipe's precision.
    run("eval", "runs/mine", "--sizes", "32", "evaluation.min_oversampling=null", "precision=fp32", "--no-calibrate")
    found = read_record(Path("runs/mine/eval/model.json"))
    run("export", "runs/mine", "--sizes", "24,32", "--onnx", "24", "--out", "out", *QUICK)
    network = timm.create_model("local-dir:out", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    hits = 0
    for label, name in enumerate(classes):
        for path in (images / "test" / name).iterdir():
            with Image.open(path) as image:
                hits += int(probabilities(network, transform(image.convert("RGB"))[None]).argmax()) == label
    assert hits == round(found.sizes[0].own.top1 * found.images)

    capsys.readouterr()
    path = next((images / "test" / classes[0]).iterdir())
    run("predict", "out", path, "--size", "24", "--top", "1")
    out = capsys.readouterr().out
    network, transform = load_at_size("out", 24)
    with Image.open(path) as image:
        best = int(probabilities(network, transform(image.convert("RGB"))[None]).argmax())
    assert f" {classes[best]} │" in out
