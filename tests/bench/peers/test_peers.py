"""``mixsize bench peers``: what each peer is given, what it does with it, and the table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer.algorithms import ProgressiveResizing
from composer.core import Event, Time
from PIL import Image

from mixsize.algorithms import Base, Choice, Regime
from mixsize.bench.pages.tables import TABLES
from mixsize.bench.peers import peers
from mixsize.bench.peers import run as peer_run
from mixsize.bench.peers.loaders import (
    check_images,
    normalisation,
    timm_loader,
    torchvision_augment,
    torchvision_loader,
)
from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose

#: timm's reader leaves files to the garbage collector.
TIMM_LEAVES_FILES_OPEN = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
IMAGES = 60
PLAIN = schema.Resize(name="resize")
MIX = Regime.from_choices(Base(12, 6), [Choice(12, 6, 1, 0.5), Choice(8, 10, 1, 0.5)], share_of="samples")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with images/{train,test}, train.beton and test.beton: 60 squares of 8 px, each of its own grey."""
    folder = tmp_path_factory.mktemp("grey")
    for split in ("train", "test"):
        for index in range(IMAGES):
            file = folder / "images" / split / f"class{index % 3}" / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 4 * index, dtype=np.uint8)).save(file)
    convert_splits(str(folder / "images"), folder, workers=1, progress=False)
    return folder


@pytest.fixture
def train(data):
    with Beton.open(data / "train.beton") as beton:
        yield beton


def items(data: Path, *more: str) -> list[str]:
    return [
        "demo", f"data.train={data}/train.beton", f"data.eval={data}/test.beton", "data.augment={name: resize}",
        "max_duration=1ep", "evaluation.sizes=[8,12]", "evaluation.every_epochs=1", "regime.base.size_px=12",
        "regime.base.batch_size=6", "loader.num_workers=1", "progress_bar=false", *more,
    ]  # fmt: skip


def greys(images: torch.Tensor) -> list[int]:
    """The grey of each image, which is even and its own."""
    assert images.std((1, 2, 3)).max() < 1e-4
    return [round(float(value) * 255) for value in images[:, 0, 0, 0]]


def timm_epochs(data, train, progressive_epochs=None, epochs=2):
    augments = [torchvision_augment(PLAIN, choice.size_px, train) for choice in MIX.choices]
    folder = data / "images" / "train"
    loader = timm_loader(
        folder, MIX, augments, 0, (0.0,) * 3, (1.0,) * 3, seed=5, progressive_epochs=progressive_epochs
    )
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        yield [(images.clone(), labels.clone()) for images, labels in loader]


def test_composers_loader_shows_each_image_once_an_epoch_at_the_base_size(data, train):
    augment = torchvision_augment(PLAIN, 12, train)
    loader = torchvision_loader(data / "images" / "train", augment, batch_size=6, workers=0)
    normalise = normalisation((0.0,) * 3, (1.0,) * 3)
    orders = []
    for _ in range(2):
        batches = [normalise(batch) for batch in loader]
        assert {tuple(images.shape) for images, _ in batches} == {(6, 3, 12, 12)}
        orders.append([grey for images, _ in batches for grey in greys(images)])
        assert sorted(orders[-1]) == [4 * index for index in range(IMAGES)]
        # The label is the class of that grey.
        assert [int(label) for _, labels in batches for label in labels] == [grey // 4 % 3 for grey in orders[-1]]
    assert orders[0] != orders[1]


def test_batches_are_normalised_by_mean_and_standard_deviation():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    images, labels = normalisation((0.1, 0.2, 0.3), (0.5, 0.25, 0.1))((pixels, torch.tensor([3, 4])))
    assert images[0, :, 0, 0].tolist() == pytest.approx([-0.2, 0.0, 7.0], abs=1e-6)
    assert labels.tolist() == [3, 4]


@TIMM_LEAVES_FILES_OPEN
def test_timm_shows_no_image_twice_an_epoch_at_the_sizes_and_batches_asked_for(data, train):
    epochs = list(timm_epochs(data, train))
    shapes = []
    for batches in epochs:
        shapes.append([(images.shape[-1], len(images)) for images, _ in batches])
        assert set(shapes[-1]) == {(12, 6), (8, 10)}
        seen = [grey for images, _ in batches for grey in greys(images)]
        assert len(set(seen)) == len(seen)
        assert [int(label) for _, labels in batches for label in labels] == [grey // 4 % 3 for grey in seen]
        # What is left over is less than the smallest batch.
        assert IMAGES - len(seen) < 6
    # timm keeps what an epoch is made of and shuffles it.
    assert Counter(shapes[0]) == Counter(shapes[1])


def test_timm_draws_as_many_steps_of_each_size_as_its_share_of_the_steps():
    """Half of the samples at a batch of 6 and half at 10: 5/8 and 3/8 of the steps."""
    assert MIX.step_shares == pytest.approx([0.625, 0.375])


@TIMM_LEAVES_FILES_OPEN
def test_timms_progressive_window_moves_from_the_smallest_size_to_the_largest(data, train):
    means = [
        np.mean([images.shape[-1] for images, _ in batches])
        for batches in timm_epochs(data, train, progressive_epochs=9, epochs=9)
    ]
    # Of sizes 8 and 12 the window gives the smaller three quarters of the steps at first, and one at last.
    assert np.mean(means[-3:]) - np.mean(means[:3]) > 1


def test_composers_sizes_grow_from_half_the_base_to_the_whole_as_it_comes():
    """Half for half of the epochs, whole for the last fifth, in multiples of 4 px."""
    algorithm = ProgressiveResizing()
    sizes = []
    for elapsed in (0.0, 0.25, 0.5, 0.65, 0.8, 1.0):
        state = SimpleNamespace(
            get_elapsed_duration=lambda elapsed=elapsed: Time.from_timestring(f"{elapsed}dur"),
            batch_get_item=lambda key: (torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))[key],
            batch_set_item=lambda key, value: sizes.append(value.shape[-1]) if key == 0 else None,
        )
        algorithm.apply(Event.AFTER_DATALOADER, state, None)
    assert sizes == [16, 16, 16, 24, 32, 32]


def test_the_recipes_augmentation_becomes_torchvisions(train):
    views = {}
    for name, config in {
        "pad_crop": schema.PadCrop(name="pad_crop", padding=2),
        "random_resized_crop": schema.RandomResizedCrop(name="random_resized_crop", scale=(0.5, 0.5)),
        "resize": schema.Resize(name="resize", flip=True),
    }.items():
        transform = torchvision_augment(config, 16, train)
        torch.manual_seed(0)
        ramp = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8).expand(3, 8, 8)
        views[name] = [transform(ramp) for _ in range(40)]
        assert {tuple(view.shape) for view in views[name]} == {(3, 16, 16)}
        # Half are mirrored: brightness falls from left to right.
        falling = sum(bool(view[0, 8, 5] > view[0, 8, 10]) for view in views[name])
        assert 8 <= falling <= 32
    assert any(bool((view == 0).any()) for view in views["pad_crop"])
    assert not any(bool((view == 0).any()) for view in views["resize"])


@pytest.mark.parametrize(
    "config",
    [
        schema.PadCrop(name="pad_crop", cutout_px=2),
        schema.PadCrop(name="pad_crop", policy="cifar10"),
        schema.CenterCrop(name="center_crop"),
    ],
)
def test_an_augmentation_that_the_peers_have_not_is_refused(config, train):
    with pytest.raises(ValueError, match=r"data\.augment: the peers are given"):
        torchvision_augment(config, 16, train)


def test_pad_crop_of_images_that_differ_in_size_is_refused(photos):
    with Beton.open(photos) as beton, pytest.raises(ValueError, match="images of one size only"):
        torchvision_augment(schema.PadCrop(name="pad_crop"), 16, beton)


def test_another_folder_than_the_files_own_is_refused(data, train, photos, tmp_path):
    check_images(data / "images" / "train", train)
    with pytest.raises(ValueError, match="different classes"):
        check_images(photos.parent / "source", train)
    for index in range(3):
        (tmp_path / f"class{index}").mkdir()
        (tmp_path / f"class{index}" / "a.png").write_bytes(
            (data / "images" / "train" / "class0" / "00.png").read_bytes()
        )
    with pytest.raises(ValueError, match=r"has 3 images and data\.train 60"):
        check_images(tmp_path, train)


def test_runs_are_planned_seed_by_seed_with_all_but_the_sizes_alike(data):
    mix = "regime/digits_bplus"
    runs = peers.plan_runs(items(data), ["regime/fixed", mix], peer_run.PEERS, seeds=2)
    labels = [run.label for run in runs]
    assert labels == 2 * [
        "mixsize fixed", "mixsize digits_bplus", "Composer ProgressiveResizing", "timm scheduled sizes",
        "timm progressive sizes",
    ]  # fmt: skip
    assert [run.recipe.seed for run in runs] == 5 * [17] + 5 * [18]
    assert len({run.recipe.name for run in runs}) == 10
    by_peer = {run.peer: run.recipe.regime for run in runs}
    assert by_peer["timm"] == by_peer["timm_progressive"] == compose(items(data, mix)).regime


def test_sizes_alone_are_compared(data):
    """The packaged regime smooths gradients, which the peers do not."""
    assert compose(items(data, "regime/s28_bplus")).smoothing is not None
    runs = peers.plan_runs(items(data, "calibration={batches: 5}"), ["regime/s28_bplus"], peer_run.PEERS, seeds=1)
    assert all(run.recipe.smoothing is None and run.recipe.calibration is None for run in runs)


@pytest.mark.parametrize(
    ("more", "regimes", "words"),
    [
        (["max_duration=5ba"], ["regime/fixed"], "max_duration is 5ba; runs are compared at equal epochs"),
        ([], ["regime/fixed"], "none serves timm"),
        ([], ["regime/digits_dplus"], "a mix of sizes without duplicates, which D+ is not"),
        ([], ["regime/digits_bplus", "regime/digits_bplus"], "was already asked for"),
        (["data.train=/nowhere.beton"], ["regime/digits_bplus"], "/nowhere.beton"),
    ],
)
def test_what_cannot_be_compared_is_refused(data, more, regimes, words, capsys):
    argv = ["bench", "peers", *items(data, *more), "--images", str(data / "images" / "train")]
    assert main([*argv, *(part for regime in regimes for part in ("--regime", regime))]) == 2
    assert words in capsys.readouterr().err


def test_regimes_that_change_more_than_the_sizes_are_refused(data, tmp_path):
    (tmp_path / "faster.yaml").write_text("regime: {mode: fixed}\noptimizer: {lr: 0.2}\n")
    with pytest.raises(ValueError, match="the runs differ in optimizer"):
        peers.plan_runs(items(data), ["regime/digits_bplus", str(tmp_path / "faster.yaml")], ["composer"], seeds=1)


def test_a_shape_is_counted_as_the_step_sees_it():
    shapes = peer_run.Shapes()
    for size, batch in ((8, 10), (12, 6), (8, 10)):
        shapes.batch_start(SimpleNamespace(batch=(torch.zeros(batch, 3, size, size), None)), None)
    assert shapes.steps == {(8, 10): 2, (12, 6): 1}


def test_every_library_trains_for_the_same_epochs_in_processes_of_their_own(data, tmp_path, capfd):
    out = tmp_path / "result.json"
    (tmp_path / "mix.yaml").write_text(
        "regime: {mode: table, choices: [{size_px: 12, batch_size: 6, share: 0.5},"
        " {size_px: 8, batch_size: 10, share: 0.5}]}\nsmoothing: null\n"
    )
    argv = ["bench", "peers", *items(data, f"output.folder={tmp_path}/runs", "max_duration=2ep")]
    argv += ["--images", str(data / "images" / "train"), "--regime", str(tmp_path / "mix.yaml")]
    assert main([*argv, "--peer", "composer", "--peer", "timm", "--out", str(out)]) == 0
    assert "timm scheduled sizes" in capfd.readouterr().out
    result = json.loads(out.read_text())
    runs = {label: rows[0] for label, rows in result["records"].items()}
    assert list(runs) == ["mixsize mix", "Composer ProgressiveResizing", "timm scheduled sizes"]
    assert {run["epochs"] for run in runs.values()} == {2}
    assert all(108 < run["samples"] <= 120 for run in runs.values())
    assert all(set(run["accuracy"]) == {"8", "12"} for run in runs.values())
    assert all(run["seconds"]["process"] > run["seconds"]["training"] > 0 for run in runs.values())
    steps = {
        label: {(row["size_px"], row["batch_size"]): row["steps"] for row in run["shapes"]}
        for label, run in runs.items()
    }
    # Half of 12 px is rounded to 8 px, a multiple of 4; growth begins half-way, after the second epoch's start.
    assert steps["Composer ProgressiveResizing"] == {(8, 6): 20}
    assert set(steps["timm scheduled sizes"]) == {(12, 6), (8, 10)}
    for label, run in runs.items():
        assert run["pixels"] == sum(size**2 * batch * count for (size, batch), count in steps[label].items())
        assert run["steps"] == sum(steps[label].values())


def test_a_run_that_fails_is_named_and_the_others_go_on(data, tmp_path, monkeypatch, capsys):
    def trained(run, images):
        return None if run.peer else record(run.recipe)

    monkeypatch.setattr(peers, "train_in_process", trained)
    argv = ["bench", "peers", *items(data), "--images", str(data / "images" / "train"), "--peer", "composer"]
    out = tmp_path / "result.json"
    assert main([*argv, "--regime", "regime/fixed", "--regime", "regime/digits_bplus", "--out", str(out)]) == 1
    assert "failed: demo-composer-progressiveresizing-seed17" in capsys.readouterr().err
    result = json.loads(out.read_text())
    assert result["failed"] == ["demo-composer-progressiveresizing-seed17"]
    assert list(result["records"]) == ["mixsize fixed", "mixsize digits_bplus"]


def record(recipe, steps=100, pixels=1000, training=10.0, process=30.0, accuracy=0.5):
    return {
        "name": recipe.name, "recipe": recipe.model_dump(mode="json"), "steps": steps, "epochs": 1, "samples": 60,
        "pixels": pixels, "shapes": [], "accuracy": {"8": accuracy, "12": 0.75},
        "seconds": {"training": training, "process": process}, "peer": None,
    }  # fmt: skip


def test_the_table_of_a_result_made_by_hand(data):
    recipe = compose(items(data))
    result = {
        "seeds": 2,
        "failed": ["x"],
        "records": {
            "mixsize fixed": [record(recipe), record(recipe, training=14.0, accuracy=0.6)],
            "timm scheduled sizes": [record(recipe, 80, 810, 12.4, 45.6, 0.25)],
        },
        "environment": {"gpu": None, "cpu": "a processor", "cores": 2, "torch": "2.7.0"},
        "measured": "2026-01-02T03:04:05+00:00",
    }
    lines = TABLES["peers"](result).splitlines()
    assert lines[0] == "| sizes by | steps | pixels | training s | process s | 8 px | 12 px* |"
    assert lines[2] == "| mixsize fixed | 100 | 1.00x | 12 ± 3 | 30 ± 0 | 55.0 ± 7.1 | 75.0 ± 0.0 |"
    assert lines[3] == "| timm scheduled sizes | 80 | 0.81x | 12 | 46 | 25.0 | 75.0 |"
    assert "cifar_resnet20, 1 epochs of up to 60 images, mean ± standard deviation of 2 seeds" in lines[5]
    assert "Failed: x." in lines[5]
