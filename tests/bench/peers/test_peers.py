"""``mixsize bench peers``: what each peer is given, what it does with it, and the table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mixsize.algorithms import Base, Choice, Regime
from mixsize.bench.loader.torchvision_loader import normalisation, torchvision_loader
from mixsize.bench.pages.tables import RECORD_TABLES
from mixsize.bench.peers import peers
from mixsize.bench.peers import run as peer_run
from mixsize.bench.peers.loaders import check_images, timm_loader, torchvision_augment
from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.run_record import read_records

from ..report.run_records import make_record

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
    sampler, loader = timm_loader(
        folder, MIX, augments, 0, (0.0,) * 3, (1.0,) * 3, seed=5, progressive_epochs=progressive_epochs
    )
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
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
        schema.RandomResizedCrop(name="random_resized_crop", policy="rand-m9"),
        schema.Resize(name="resize", erasing=0.1),
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
        ([], ["regime/digits_dplus"], "a mix of sizes without duplicates, got D+"),
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


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_every_library_trains_for_the_same_epochs(data, tmp_path):
    """timm's run is a process of its own, with worker processes of timm's; Composer's is in this one."""
    mix = tmp_path / "mix.yaml"
    mix.write_text(
        "regime: {mode: table, choices: [{size_px: 12, batch_size: 6, share: 0.5},"
        " {size_px: 8, batch_size: 10, share: 0.5}]}\nsmoothing: null\n"
    )
    recipe = items(data, f"output.folder={tmp_path}/runs", "max_duration=2ep")
    composers, timms = peers.plan_runs(recipe, [str(mix)], ["composer", "timm"], seeds=1)[1:]
    images = data / "images" / "train"
    runs = [peer_run.train("composer", composers.items, images), peers.train_in_process(timms, images)]
    assert [run.epochs for run in runs] == [2, 2]
    assert all(108 < run.samples <= 120 for run in runs)
    assert all(set(run.accuracy) == {"8", "12"} for run in runs)
    assert all(run.seconds.training > 0 for run in runs)
    steps = [{(row.size_px, row.batch_size): row.steps for row in run.shapes} for run in runs]
    # Half of 12 px is rounded to 8 px, a multiple of 4; growth begins half-way, after the second epoch's start.
    assert steps[0] == {(8, 6): 20}
    assert set(steps[1]) == {(12, 6), (8, 10)}
    for run, of_run in zip(runs, steps, strict=True):
        assert run.pixels == sum(size**2 * batch * count for (size, batch), count in of_run.items())
        assert run.steps == sum(of_run.values())
    assert (runs[1].suite, runs[1].label) == ("peers", "timm scheduled sizes")


def test_the_command_prints_a_table_and_keeps_all_records(data, tmp_path, monkeypatch, capsys):
    """A run that fails is named, and the others go on."""

    def trained(run, images):
        outcome = {"outcome": "failed", "error": "exit code 1"} if run.peer else {}
        return make_record(
            run.label, run.recipe.seed, name=run.recipe.name, recipe=run.recipe.model_dump(mode="json"),
            accuracy={"8": 0.25, "12": 0.5}, **outcome,
        )  # fmt: skip

    monkeypatch.setattr(peers, "train_in_process", trained)
    argv = ["bench", "peers", *items(data), "--images", str(data / "images" / "train"), "--peer", "composer"]
    out = tmp_path / "result.json"
    assert main([*argv, "--regime", "regime/fixed", "--regime", "regime/digits_bplus", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "failed: demo-composer-progressiveresizing-seed17" in captured.err
    assert "12 px*" in captured.out
    assert [(run.label, run.finished) for run in read_records(out)] == [
        ("mixsize fixed", True), ("mixsize digits_bplus", True), ("Composer ProgressiveResizing", False),
    ]  # fmt: skip
    assert "| mixsize fixed | 1 | 1 | 1 | 1.00x | 25.0 | 50.0 |" in RECORD_TABLES["peers"](out)


def test_a_process_that_fails_leaves_a_failed_record(data, monkeypatch):
    monkeypatch.setattr(peers.sys, "executable", "/bin/false")
    run, *_ = peers.plan_runs(items(data), ["regime/fixed"], ["composer"], seeds=1)[1:]
    record = peers.train_in_process(run, data)
    assert (record.outcome, record.error, record.label) == ("failed", "exit code 1", "Composer ProgressiveResizing")
