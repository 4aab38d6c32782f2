"""From a recipe to a Trainer: its parts, and recipes that do not fit data, network or machine."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mixsize.algorithms.execution.preflight import Preflight
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert
from mixsize.ffcv_loaders.decode.augment import PadCrop, RandomResizedCrop, Resize
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.recipes.build.data import build_calibration_loader, build_eval_loader, build_loader
from mixsize.recipes.build.preparation import with_preparation
from mixsize.recipes.build.trainer import build
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.network import create_network, network_stride, planned_network
from mixsize.recipes.models.optimizer import build_optimizer
from mixsize.recipes.planning.costs import make_plan
from mixsize.recipes.planning.regimes import build_regime, epochs_of


def recipe(digits, tmp_path, *items):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    return compose(["demo", *data, "progress_bar=false", *items])


def prepared(digits, recipe):
    return with_preparation(recipe, planned_network(recipe), Beton.open(digits / "train.beton"))


def test_a_fit_leaves_a_record_of_what_was_drawn_and_reached(digits, tmp_path, capsys):
    run = build(recipe(digits, tmp_path, "regime/digits_dplus", "max_duration=1ep", "evaluation.sizes=[8,16]"))
    record = fit(run)
    files = ("record.json", "recipe.yaml", "config.json", "model.safetensors")
    assert len({(tmp_path / "runs/demo" / name).stat().st_mode for name in files}) == 1
    # 1437 images: 287.4, 431.1, 431.1 and 287.4 in batches of 32: 8.98, 13.47, 13.47 and 8.98 of them, rounded.
    steps = {row.size_px: (row.steps, row.duplicates) for row in record.shapes}
    assert steps == {20: (9, 1), 16: (13, 1), 12: (13, 2), 8: (9, 4)}
    assert record.samples == 32 * 44
    assert set(record.accuracy) == {"8", "16"}
    assert all(0 <= value <= 1 for value in record.accuracy.values())
    composed = compose([str(tmp_path / "runs/demo/recipe.yaml")])
    assert composed == run.recipe
    out = capsys.readouterr().out
    assert "what was drawn in 44 steps" in out
    assert "top-1 %" in out


def test_loaders_read_with_the_recipes_filters_and_copies(digits, tmp_path):
    filters = ["loader.interpolation=bicubic", "evaluation.interpolation=bilinear"]
    filters += ["loader.min_oversampling=1.5", "evaluation.min_oversampling=2.5"]
    made = prepared(digits, recipe(digits, tmp_path, *filters, "calibration={}"))
    as_in_evaluation = prepared(digits, recipe(digits, tmp_path, *filters, "calibration.transform=eval"))
    file, cpu = Beton.open(digits / "train.beton"), torch.device("cpu")
    for loader in (
        build_loader(made, file, Regime.fixed(Base(8, 32)), cpu),
        build_calibration_loader(made, file, 8, 32, cpu),
    ):
        assert (loader.dataset.source.interpolation, loader.dataset.source.min_oversampling) == ("bicubic", 1.5)
    for loader in (
        build_calibration_loader(as_in_evaluation, file, 8, 32, cpu),
        build_eval_loader(made, file, 8, 32, cpu),
    ):
        assert (loader.dataset.source.interpolation, loader.dataset.source.min_oversampling) == ("bilinear", 2.5)


PHASES = "[{size_px: 8, epochs: 1, crop_scale: [0.5, 1.0]}, {size_px: 16, epochs: 1, crop_scale: [0.25, 0.75]}]"


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], PadCrop(padding=1, flip=False)),
        # The released code calibrates without AutoAugment and cutout, also where it trains with them.
        (["data.augment={padding: 2, policy: cifar10, cutout_px: 4}"], PadCrop(padding=2, flip=False)),
        (["data.augment={policy: rand-m9, magnitude: 5, color_jitter: 0.4, erasing: 0.5}"], PadCrop(1, flip=False)),
        (["data.augment={name: random_resized_crop, flip: true}"], RandomResizedCrop((0.08, 1.0), (0.75, 1.3333))),
        (
            [
                "data.augment={name: random_resized_crop, flip: true}",
                "regime.mode=progressive",
                f"regime.phases={PHASES}",
            ],
            RandomResizedCrop((0.25, 0.75), (0.75, 1.3333)),
        ),
        (["calibration.transform=eval", "data.augment={padding: 3}"], Resize()),
    ],
)
def test_calibration_images_are_cut_as_training_images_are(items, expected, digits, tmp_path):
    made = prepared(digits, recipe(digits, tmp_path, "calibration={}", *items))
    file, cpu = Beton.open(digits / "train.beton"), torch.device("cpu")
    found = build_calibration_loader(made, file, 12, 100, cpu)
    assert len(found) == 14
    threads = [made.model_copy(update={"loader": made.loader.model_copy(update={"num_workers": n})}) for n in (1, 3)]
    regime = Regime.fixed(Base(12, 100))
    loaders = [
        MixSizeLoader(
            file,
            regime,
            augment=expected,
            mean=file.info.mean,
            std=file.info.std,
            seed=made.seed,
            min_oversampling=0.8,
            device="cpu",
        ),
        *(build_calibration_loader(one, file, 12, 100, cpu) for one in threads),
        found,
    ]
    for batches in islice(zip(*loaders, strict=True), 3):
        for images, labels in batches:
            assert tuple(images.shape) == (100, 3, 12, 12)
            assert torch.equal(images, batches[0][0])
            assert torch.equal(labels, batches[0][1])


def test_the_same_recipe_trains_to_the_same_weights(digits, tmp_path):
    weights = []
    for threads in (1, 2):
        items = ["regime/digits_bplus", "max_duration=6ba", "evaluation.sizes=[16]", f"loader.num_workers={threads}"]
        run = build(recipe(digits, tmp_path, *items))
        fit(run)
        weights.append(torch.cat([p.detach().flatten() for p in run.trainer.state.model.parameters()]))
    assert torch.equal(*weights)


def test_accuracy_is_that_of_the_whole_test_set(digits, tmp_path):
    """Recomputed from the network's own outputs over a plain loop."""
    run = build(recipe(digits, tmp_path, "max_duration=20ba", "evaluation.sizes=[16]", "optimizer.lr=0.1"))
    record = fit(run)
    network = run.trainer.state.model.module.eval()
    loader = run.trainer.state.evaluators[0].dataloader.dataloader
    with torch.no_grad():
        hits = [(network(images).argmax(1) == labels) for images, labels in loader]
    assert record.accuracy["16"] == pytest.approx(torch.cat(hits).float().mean().item(), abs=1e-6)
    assert sum(map(len, hits)) == 360


def test_evaluation_images_are_normalised_as_training_images_are(digits, tmp_path):
    run = build(recipe(digits, tmp_path))
    train, evaluation = run.loader.dataset, run.trainer.state.evaluators[0].dataloader.dataloader.dataset
    assert train.source.beton.info.mean != evaluation.source.beton.info.mean
    pixels = torch.full((1, 2, 2, 3), 100, dtype=torch.uint8)
    torch.testing.assert_close(
        evaluation.source.stager.stage(pixels, None).images, train.source.stager.stage(pixels, None).images
    )
    run.trainer.close()


def test_weight_decay_spares_biases_and_normalisation():
    network = create_network(compose(["cifar10/resnet20"]).model, 10)
    config = compose(["cifar10/resnet20"]).optimizer
    optimizer = build_optimizer(config, network, Regime.fixed(Base(32, 64)))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    kernels = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    }
    assert {name for name, parameter in network.named_parameters() if id(parameter) in decayed} == kernels
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    everything = build_optimizer(config.model_copy(update={"decay": "all"}), network, Regime.fixed(Base(32, 64)))
    assert [group["weight_decay"] for group in everything.param_groups] == [1e-4]


def test_linear_scaling_follows_the_mean_batch():
    composed = compose(["imagenet/resnet50", "regime/s144_bplus", "regime.rounding=pow2"])
    regime = build_regime(composed, 32, 1)
    network = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(composed.optimizer, network, regime)
    # 1 / (0.2/256 + 0.6/1024 + 0.2/2048) = 682.7 images a step, over 256
    assert optimizer.param_groups[0]["lr"] == pytest.approx(composed.optimizer.lr * 682.667 / 256, rel=1e-4)


def test_all_companions_train_together_and_calibrate_before_the_last_evaluation(digits, tmp_path):
    items = ["regime/digits_bplus", "smoothing={alpha: 0.8}", "calibration={batches: 3}", "max_duration=8ba"]
    run = build(recipe(digits, tmp_path, *items, "evaluation.sizes=[8,16]"))
    fit(run)
    algorithms = {type(algorithm).__name__: algorithm for algorithm in run.trainer.state.algorithms}
    assert set(algorithms) == {"StepSeed", "MixSizeSampling", "EpochSchedule", "GradSmoothing", "BNCalibrate"}
    assert algorithms["GradSmoothing"].smoother.alpha == 0.8
    assert algorithms["BNCalibrate"].bank.sizes == [8, 16]


def test_phases_train_at_their_sizes_and_end_a_cosine_at_the_runs_end(digits, tmp_path):
    phases = "regime={mode: progressive, phases: [{size_px: 8, epochs: 1}, {size_px: 16, epochs: 1, lr_factor: 0.5}]}"
    items = [phases, "regime.batch_norm=reset", "max_duration=2ep", "evaluation.sizes=[16]"]
    run = build(recipe(digits, tmp_path, *items))
    record = fit(run)
    # 1437 // 128 at 8 px, 1437 // 32 at 16 px
    assert {row.size_px: (row.batch_size, row.steps) for row in record.shapes} == {
        8: (128, 11),
        16: (32, 44),
    }
    assert epochs_of(compose(["demo", phases, "max_duration=33ba"]), run.regime, 1437) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="lr_scaling: linear needs one mean batch"):
        build(recipe(digits, tmp_path, *items, "name=scaled", "optimizer.lr_scaling=linear"))


@pytest.mark.parametrize(
    ("name", "stride"), [("cifar10/resnet44", 4), ("imagenet/resnet50", 32), ("imagenet/densenet169", 32)]
)
def test_strides_come_from_the_network(name, stride):
    assert network_stride(planned_network(compose([name]))) == stride


def test_batches_divide_among_ranks_by_default():
    for ranks in (1, 2, 8):
        regime = build_regime(compose(["cifar10/resnet44", "regime/s28_bplus"]), 4, ranks)
        assert all(choice.batch_size % ranks == 0 for choice in regime.choices)
    assert [c.batch_size for c in build_regime(compose(["cifar10/resnet44", "regime/s28_bplus"]), 4, 1).choices] == [
        41, 64, 114, 256,
    ]  # fmt: skip


def test_any_timm_network_trains_by_name(digits, tmp_path):
    items = ["model.name=mobilenetv3_small_050", "model.kwargs={}", "regime.base.size_px=32", "max_duration=2ba"]
    record = fit(build(recipe(digits, tmp_path, *items, "evaluation.sizes=[32]")))
    assert record.steps == 2


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["model.name=resnet5"], r"unknown timm model 'resnet5'; did you mean resnet50"),
        (["model.name=vit_tiny_patch16_224", "model.kwargs={}"], "vit_tiny.* 224 px only.*dynamic_img_size: true"),
        (["model.kwargs={nonsense: 3}"], "model.kwargs: cifar_resnet20 cannot be made with.*nonsense"),
        (["model.checkpoint=/nowhere.pt"], r"model.checkpoint: no file /nowhere.pt"),
        (["model.num_classes=5"], r"sample \d+ has label 5, allowed are 0..4"),
        (["regime.base.size_px=18", "regime/fixed"], "size 18 px is not a multiple of the stride 4 of cifar_resnet20"),
        (["evaluation.sizes=[10]"], "size 10 px is not a multiple of the stride 4"),
        (["regime.base.batch_size=2000"], "1437 images are too few.*batch of 2000"),
        (["data.train=/nowhere.beton"], "/nowhere.beton"),
        (["execution.network=cuda_graphs"], "execution.network: cuda_graphs needs a GPU, and this runs on the cpu"),
    ],
)
def test_what_cannot_be_built_is_refused(digits, tmp_path, items, words):
    with pytest.raises(ValueError, match=words):
        build(recipe(digits, tmp_path, *items))
    assert not (tmp_path / "runs").exists()


def test_shapes_are_visited_as_part_of_the_set_up_and_nothing_else_changes(digits, tmp_path):
    records = []
    for name, visited in (("with", "true"), ("without", "false")):
        items = ["regime/digits_bplus", "max_duration=3ba", f"name={name}", f"execution.preflight={visited}"]
        run = build(recipe(digits, tmp_path, *items, "evaluation.sizes=[16]"))
        preflight = [algorithm for algorithm in run.trainer.state.algorithms if isinstance(algorithm, Preflight)]
        records.append(fit(run))
        assert len(preflight) == (visited == "true")
        if preflight:
            assert records[0].seconds.set_up > preflight[0].seconds > 0
    assert records[0].loss == records[1].loss
    # On the CPU nobody waits for a shape's first step, so that none is visited unless that is asked for.
    assert recipe(digits, tmp_path).execution.preflight is None


def test_compiled_passes_train_as_eager_ones_do(digits, tmp_path, monkeypatch):
    torch._dynamo.reset()
    compile_with, compiled = torch.compile, []

    def compiling(model, **options):
        compiled.append(model)
        return compile_with(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compiling)
    losses = []
    for engine in ("eager", "compile"):
        items = [f"name={engine}", f"execution.network={engine}", "regime/digits_bplus", "max_duration=4ba"]
        run = build(recipe(digits, tmp_path, *items, "evaluation.sizes=[16]"))
        losses.append(fit(run).loss["16"])
        network = create_network(run.recipe.model, 10)
        network.load_state_dict(load_file(tmp_path / f"runs/{engine}/model.safetensors"))
    assert compiled
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_gpu_that_is_not_there_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: gpu was asked for"):
        build(recipe(digits, tmp_path, "device=gpu"))


def test_data_of_other_classes_is_refused(digits, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pets" / name / "0.png")
    convert(tmp_path / "pets", tmp_path / "pets.beton", workers=1, progress=False)
    with pytest.raises(ValueError, match="different classes: 0, 1, "):
        build(recipe(digits, tmp_path, f"data.eval={tmp_path}/pets.beton"))


def test_an_empty_or_cut_file_is_refused(digits, tmp_path):
    whole = (digits / "train.beton").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.beton").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.beton"):
            build(recipe(digits, tmp_path, f"data.train={tmp_path}/cut.beton"))


def test_network_stride_is_one_where_timm_does_not_know():
    assert network_stride(torch.nn.Linear(1, 1)) == 1


def test_a_run_whose_length_is_a_time_ends_at_the_step_that_reaches_it(digits, tmp_path, monkeypatch):
    """Seconds come from a clock that each step moves by 0.4: the third step reaches 1 s, and the rate falls with it."""
    run = build(recipe(digits, tmp_path, "max_duration=1sec", "evaluation.sizes=[16]", "optimizer.lr=1"))
    rates = []
    trainer = run.trainer

    def tick(clock, state, logger):
        clock.seconds += 0.4

    monkeypatch.setattr(TrainingClock, "batch_end", tick)
    trained = trainer._train_batch

    def train_batch(*args):
        rates.append(trainer.state.optimizers[0].param_groups[0]["lr"])
        return trained(*args)

    monkeypatch.setattr(trainer, "_train_batch", train_batch)
    record = fit(run)
    assert (record.steps, record.seconds.training) == (3, pytest.approx(1.2))
    assert [point.step for point in record.curve] == [3]
    # One cycle: .04 at the start, 1 at .3, 0 at the end, in a line: at .4 and .8 of the time 6/7 and 2/7.
    assert rates == pytest.approx([0.04, 6 / 7, 2 / 7])
    # Killed before it left its record, it is evaluated and not trained on.
    (tmp_path / "runs/demo/record.json").unlink()
    again = build(recipe(digits, tmp_path, "max_duration=1sec", "evaluation.sizes=[16]", "optimizer.lr=1"))
    assert again.resumed is not None
    second = fit(again)
    assert (second.steps, second.accuracy, second.curve) == (3, record.accuracy, record.curve)
    with pytest.raises(ValueError, match=r"max_duration is 1sec; its number of steps is known only after training"):
        make_plan(run.recipe)
