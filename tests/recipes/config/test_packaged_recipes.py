"""The packaged recipes: complete, comparable, those of the paper, and they train.

Four of them train always; all networks and regimes train under the marker `soak`, which takes minutes.
"""

import importlib.resources
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.scheduled_sampler import ScheduledBatchSampler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import SequentialSampler

from mixsize.algorithms.regime.plan import check_plannable, plan_length
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.spans import spans_of
from mixsize.ffcv_loaders.conversion.convert import convert
from mixsize.recipes.build.trainer import build
from mixsize.recipes.config import regimes, schema
from mixsize.recipes.config.compose import RecipeError, compose, packaged_recipes
from mixsize.recipes.models import amoebanet, networks
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.planning.schedule import schedule_of_run
from mixsize.recipes.planning.table import PUBLISHED, packaged_pairs

# Their import registers the CIFAR networks.
assert networks.__all__
assert amoebanet.__all__

CIFAR = [
    "cifar10/amoebanet",
    "cifar10/resnet20",
    "cifar10/resnet44",
    "cifar10/wrn28_10",
    "cifar100/resnet44",
    "cifar100/wrn28_10",
]
IMAGENET = ["imagenet/densenet169", "imagenet/efficientnet_b0", "imagenet/resnet50"]
CIFAR_MIXED = ["regime/s28_bplus", "regime/s28_dplus"]
IMAGENET_MIXED = ["regime/s144_bplus", "regime/s144_dplus", "regime/s208_dplus", "regime/s224_dplus"]
CIFAR_REGIMES = ["regime/fixed", *CIFAR_MIXED]
IMAGENET_CURRICULA = ["regime/progressive", "regime/ffcv_ramp", "regime/multiscale_shift", "regime/timm_progressive"]
IMAGENET_REGIMES = ["regime/fixed", *IMAGENET_MIXED, *IMAGENET_CURRICULA]
IMAGENET_PUBLISHED = sorted(PUBLISHED)
# For published recipes at 160 or 176 px.
PUBLISHED_REGIMES = ["regime/s106_dplus"]
DIGIT_REGIMES = ["regime/fixed", "regime/digits_bplus", "regime/digits_dplus"]
# Files that follow others and change a part of them.
OVERLAYS = ["regime/per_epoch", "finetune/fixres", "finetune/mixed"]

NETWORKS = [*CIFAR, *IMAGENET, "demo"]
FAMILIES = [(CIFAR, CIFAR_REGIMES), (IMAGENET, IMAGENET_REGIMES), (["demo"], DIGIT_REGIMES)]
PAIRS = [(network, regime) for members, regimes in FAMILIES for network in members for regime in regimes]
REGIMES = sorted({regime for _, members in FAMILIES for regime in members})


def text_of(name: str) -> str:
    return importlib.resources.files("mixsize.recipes").joinpath(f"{name}.yaml").read_text("utf-8")


def test_the_package_holds_exactly_these_recipes():
    assert packaged_recipes() == sorted([*NETWORKS, *REGIMES, *OVERLAYS, *IMAGENET_PUBLISHED, *PUBLISHED_REGIMES])


def test_the_table_of_plans_leaves_no_pair_out():
    assert sorted(packaged_pairs()) == sorted(pair for pair in PAIRS if pair[0] != "demo")


@pytest.mark.parametrize(("network", "regime"), PAIRS)
def test_every_network_composes_with_every_regime_of_its_family_in_either_order(network, regime):
    recipe = compose([network, regime])
    assert compose([regime, network]) == recipe
    alone = compose([network])
    assert recipe.regime.base.size_px == alone.regime.base.size_px
    assert recipe.regime.base.batch_size == alone.regime.base.batch_size
    unchanged = {"regime", "optimizer", "smoothing"}
    assert recipe.model_dump(exclude=unchanged) == alone.model_dump(exclude=unchanged)
    other = "regime/s224_dplus" if regime == "regime/s144_bplus" else "regime/s144_bplus"
    assert compose([network, other, regime]) == recipe, "a regime leaves nothing behind when another follows"


@pytest.mark.parametrize("name", packaged_recipes())
def test_each_file_opens_with_its_paper_command_target_and_measurements(name):
    text = text_of(name)
    assert max(map(len, text.splitlines())) <= 120
    header = text[: re.search(r"^[^#\n]", text, re.MULTILINE).start()]
    assert header.startswith("# ")
    for label in ("Paper:", "Should reach:", "Hardware:", "Time:", "Accuracy:"):
        assert label in header, f"{name} does not state {label}"
    commands = [
        line.removeprefix("# Command:").strip("# \n").split("   ")[0].strip()
        for line in header.splitlines()
        if "mixsize " in line
    ]
    assert commands
    assert "# Command:" in header
    for command in commands:
        program, verb, *items = command.split()
        assert (program, verb) == ("mixsize", "train")
        assert name in items
        compose(items)


@pytest.mark.parametrize("names", [NETWORKS, [*REGIMES, *PUBLISHED_REGIMES]])
def test_keys_come_in_one_order_so_that_recipes_can_be_compared_line_by_line(names):
    def top_keys(name):
        return re.findall(r"^(\w+):", text_of(name), re.MULTILINE)

    assert len({tuple(top_keys(name)) for name in names}) == 1


def test_published_recipes_have_the_keys_of_the_networks_and_more_in_the_order_of_the_schema():
    order = list(schema.Recipe.model_fields)
    shared = set(re.findall(r"^(\w+):", text_of("imagenet/resnet50"), re.MULTILINE))
    for name in IMAGENET_PUBLISHED:
        keys = re.findall(r"^(\w+):", text_of(name), re.MULTILINE)
        assert keys == sorted(keys, key=order.index), name
        assert shared <= set(keys) <= shared | {"mixing", "algorithms"}, name


@pytest.mark.parametrize("name", [*NETWORKS, *IMAGENET_PUBLISHED])
def test_the_network_and_its_arguments_exist_in_timm(name):
    model = compose([name]).model
    assert timm.is_model(model.name)
    if model.kwargs:
        timm.create_model(model.name, num_classes=2, **model.kwargs)


def test_resnet44_follows_the_papers_training_set_up():
    recipe = compose(["cifar10/resnet44"])
    assert recipe.duration == (200, "ep")
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.momentum) == ("sgd", 0.1, 0.9)
    assert recipe.optimizer.weight_decay == 1e-4
    assert recipe.schedule.milestones == (81, 122, 164)
    assert recipe.schedule.factors == (0.1, 0.01, 0.001)
    assert recipe.regime == regimes.FixedRegime(base=regimes.Base(size_px=32, batch_size=64))
    assert recipe.data.augment == schema.PadCrop(name="pad_crop", padding=4, flip=True)
    assert recipe.model.kwargs == {"zero_init_last": True}
    # 156K steps in table 1: 200 * 50000 / 64
    assert recipe.duration[0] * recipe.data.train_images / recipe.regime.base.batch_size == 156_250


@pytest.mark.parametrize("network", ["resnet44", "wrn28_10"])
def test_cifar_100_differs_from_cifar_10_in_its_data_and_name_alone(network):
    ten, hundred = (compose([f"{data}/{network}"]).model_dump() for data in ("cifar10", "cifar100"))
    assert (ten["data"].pop("classes"), hundred["data"].pop("classes")) == (10, 100)
    # The networks' own are CIFAR-10's.
    assert (ten["data"].pop("mean"), ten["data"].pop("std")) == (None, None)
    assert all(hundred["data"].pop(key) is not None for key in ("mean", "std"))
    for values, data in ((ten, "cifar10"), (hundred, "cifar100")):
        assert values.pop("name").startswith(f"{data}-")
        assert {values["data"].pop(split).split("/")[1] for split in ("train", "eval")} == {data}
    assert ten == hundred


@pytest.mark.parametrize("name", ["cifar10/wrn28_10", "cifar100/wrn28_10", "cifar10/amoebanet"])
def test_the_larger_cifar_networks_train_with_autoaugment_and_cutout(name):
    augment = compose([name]).data.augment
    assert augment == schema.PadCrop(name="pad_crop", padding=4, flip=True, policy="cifar10", cutout_px=16)


def test_amoebanet_takes_table_1s_steps_with_the_released_codes_rate():
    recipe = compose(["cifar10/amoebanet"])
    # 469K steps in table 1: 600 * 50000 / 64 = 468,750
    assert recipe.duration == (600, "ep")
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.025, 3e-4)
    assert (recipe.schedule.name, recipe.schedule.final_factor) == ("cosine", 0.0)


def test_efficientnet_follows_the_papers_schedule_and_the_released_codes_regularisation():
    recipe = compose(["imagenet/efficientnet_b0"])
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.1, 0.9, 1e-5)
    assert recipe.schedule.name == "cosine"
    assert recipe.optimizer.lr * recipe.schedule.final_factor == pytest.approx(1e-4)
    assert recipe.model.kwargs == {"drop_rate": 0.2, "drop_path_rate": 0.2}


@pytest.mark.parametrize("name", ["imagenet/resnet50", "imagenet/densenet169"])
def test_the_other_imagenet_networks_divide_the_rate_by_ten_three_times(name):
    recipe = compose([name])
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert (recipe.schedule.milestones, recipe.schedule.factors) == ((30, 60, 80), (0.1, 0.01, 0.001))
    assert recipe.data.augment.name == "random_resized_crop"
    assert recipe.data.eval_transform == schema.CenterCrop(name="center_crop", fraction=7 / 8)


def test_wide_resnet_steps_through_the_papers_learning_rates():
    recipe = compose(["cifar10/wrn28_10"])
    rates = [recipe.optimizer.lr * factor for factor in recipe.schedule.factors]
    assert rates == pytest.approx([0.02, 0.004, 0.0008])
    assert recipe.schedule.milestones == (60, 120, 160)
    assert recipe.optimizer.weight_decay == 5e-4


@pytest.mark.parametrize(
    ("name", "epochs", "steps"),
    [("imagenet/resnet50", 90, 450e3), ("imagenet/densenet169", 90, 450e3), ("imagenet/efficientnet_b0", 200, 1000e3)],
)
def test_imagenet_recipes_take_table_1s_number_of_steps(name, epochs, steps):
    recipe = compose([name])
    assert recipe.duration == (epochs, "ep")
    taken = epochs * recipe.data.train_images / recipe.regime.base.batch_size
    assert taken == pytest.approx(steps, rel=2e-3)
    assert recipe.evaluation.sizes == (96, 128, 160, 192, 224, 256, 288)


def steps_in(unit, *items):
    """Steps of a whole run in thousands, or of one epoch."""
    recipe = compose(list(items))
    epochs = recipe.duration[0] / 1000 if unit == "run" else 1
    return epochs * plan_length(build_regime(recipe, 1, 1), recipe.data.train_images, recipe.seed, epoch=0)


def test_step_counts_beside_the_commands_are_those_that_they_take():
    pattern = r"in (\d+)K / (\d+)K / (\d+)K steps;\n# +B\+ takes (\d+)K with regime\.rounding=pow2, else (\d+)K\."
    stated = {name: re.search(pattern, text_of(name)) for name in NETWORKS}
    assert {name for name, found in stated.items() if not found} == {"cifar10/resnet20", "demo"}
    for name, found in stated.items():
        if found:
            mixed = "regime/s28" if name.startswith("cifar") else "regime/s144"
            pow2 = steps_in("run", name, f"{mixed}_bplus", "regime.rounding=pow2")
            base, dplus = steps_in("run", name, "regime/fixed"), steps_in("run", name, f"{mixed}_dplus")
            taken = [base, pow2, dplus, pow2, steps_in("run", name, f"{mixed}_bplus")]
            assert [int(figure) for figure in found.groups()] == pytest.approx(taken, rel=0.01), name


@pytest.mark.parametrize(("network", "regime"), [pair for pair in PAIRS if pair[1].endswith("_dplus")])
def test_a_regime_that_promises_the_baselines_number_of_steps_takes_it(network, regime):
    words = re.sub(r"\s+#?\s*", " ", text_of(regime))
    ratio = steps_in("epoch", network, regime) / steps_in("epoch", network, "regime/fixed")
    if "about as many steps in an epoch as the baseline" in words:
        assert ratio == pytest.approx(1, abs=0.05)
    elif found := re.search(r"An epoch has (\d+) % more steps than the baseline's", words):
        assert ratio == pytest.approx(1 + int(found[1]) / 100, abs=0.01)
    else:
        assert regime == "regime/s224_dplus"


def test_the_readme_states_the_range_of_a_steps_cost():
    cost: dict[str, list[float]] = {"B+": [], "D+": []}
    for network, regime in PAIRS:
        if regime.endswith("plus"):
            built = build_regime(compose([network, regime]), 1, 1)
            pixels = [choice.size_px**2 * choice.batch_size * choice.duplicates for choice in built.choices]
            cost[built.mode] += [count / built.base.pixels for count in pixels]
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text("utf-8").split())
    within = int(re.search(r"packaged B\+ regimes a step has the baseline's pixels to within (\d+) %", readme)[1])
    assert within - 1 < 100 * max(abs(ratio - 1) for ratio in cost["B+"]) <= within
    least, most = re.search(
        r"packaged D\+ regimes it has ([\d.]+) to ([\d.]+) times the baseline's pixels", readme
    ).groups()
    assert [float(least), float(most)] == pytest.approx([min(cost["D+"]), max(cost["D+"])], abs=0.005)


def test_only_b_plus_on_imagenet_scales_the_learning_rate():
    scaling = {regime: compose([network, regime]).optimizer.lr_scaling for network, regime in PAIRS}
    assert [regime for regime, value in scaling.items() if value == "linear"] == ["regime/s144_bplus"]


def test_gradients_are_smoothed_at_the_papers_mixed_sizes_and_nowhere_else():
    smoothed = {regime: compose([network, regime]).smoothing for network, regime in PAIRS}
    assert {regime for regime, value in smoothed.items() if value} == {*CIFAR_MIXED, *IMAGENET_MIXED}
    assert {value for value in smoothed.values() if value} == {schema.Smoothing(alpha=0.9, eps=1e-6)}


def test_only_s224_starts_from_two_duplicates():
    duplicates = {regime: compose([network, regime]).regime.base.duplicates for network, regime in PAIRS}
    assert {regime: count for regime, count in duplicates.items() if count != 1} == {"regime/s224_dplus": 2}


@pytest.mark.parametrize("regime", ["regime/digits_bplus", "regime/digits_dplus"])
def test_the_demos_mean_size_is_14_px(regime):
    sizes = compose(["demo", regime]).regime.sizes
    assert sum(size * share for size, share in sizes.items()) == pytest.approx(14)


# ---- regimes with phases, and files that follow others ----


def progression(*items):
    regime = build_regime(compose(["imagenet/resnet50", *items]), 32, 1)
    assert isinstance(regime, Progression)
    return regime


def test_progressive_has_the_three_phases_of_its_source():
    phases = progression("regime/progressive")
    drawn = [(r.choices[0].size_px, r.choices[0].batch_size) for r in phases.regimes]
    assert drawn == [(128, 512), (192, 256), (224, 256)]
    assert phases.starts == (0, 30, 60)
    # lr .1, .05, .01; after each transition a tenth of it, rising over one epoch
    assert [0.1 * phases.lr_factor(at) for at in (15, 45, 75)] == pytest.approx([0.1, 0.05, 0.01])
    assert [0.1 * phases.lr_factor(at) for at in (30, 30.5, 31)] == pytest.approx([0.005, 0.0275, 0.05])


@pytest.mark.parametrize(("begin", "end", "epochs"), [(65, 76, 88), (41, 48, 56), (29, 34, 40), (11, 13, 16)])
def test_the_ramp_switches_where_ffcvs_does(begin, end, epochs):
    """start_ramp, end_ramp and epochs of FFCV's rn50 files, and its own way of getting from them to a size."""
    ramp = progression("regime/ffcv_ramp", f"regime.ramp.begin_epoch={begin}", f"regime.ramp.end_epoch={end}")
    theirs = [int(np.round(np.interp(epoch, [begin, end], [160, 192]) / 32)) * 32 for epoch in range(epochs)]
    assert [ramp.at_epoch(epoch).choices[0].size_px for epoch in range(epochs)] == theirs
    assert {ramp.at_epoch(epoch).choices[0].batch_size for epoch in range(epochs)} == {1024}


def test_timms_schedule_is_that_of_its_own_sampler():
    epochs = 100
    sampler = ScheduledBatchSampler(
        SequentialSampler(range(100)), [8] * 4, choice_schedule="progressive", schedule_epochs=epochs
    )
    theirs = np.array([sampler.choice_weights_for_epoch(epoch).numpy() for epoch in range(epochs)])
    ours = progression("regime/timm_progressive", f"max_duration={epochs}ep", "schedule={name: constant}")
    for tenth, regime in enumerate(ours.regimes):
        assert ours.starts[tenth] == 10 * tenth
        assert [choice.size_px for choice in regime.choices] == [224, 192, 160, 128]
        shares = theirs[10 * tenth : 10 * tenth + 10].mean(axis=0)[::-1]
        assert regime.step_shares == pytest.approx(shares.tolist(), abs=5e-4)


def test_the_shifting_mixture_goes_from_small_sizes_to_ml_cvnets_at_equal_shares():
    shift = progression("regime/multiscale_shift", "max_duration=41ep", "schedule={name: constant}")
    # ml-cvnets' five sizes from 128 to 320 px, in multiples of 32; 256 images at 224 px, else 256 * (224 / S)^2
    last = shift.at_epoch(40)
    assert {choice.size_px: (choice.batch_size, choice.share) for choice in last.choices} == {
        320: (125, 0.2), 288: (155, 0.2), 224: (256, 0.2), 192: (348, 0.2), 128: (784, 0.2),
    }  # fmt: skip
    assert {choice.size_px: choice.share for choice in shift.at_epoch(0).choices} == {224: 0.1, 192: 0.3, 128: 0.6}
    half = {choice.size_px: round(choice.share, 9) for choice in shift.at_epoch(20).choices}
    assert half == {320: 0.1, 288: 0.1, 224: 0.15, 192: 0.25, 128: 0.4}
    assert len(shift.phases) == 21


def test_a_ramp_without_a_batch_fits_it_to_the_budget():
    ramp = progression("regime/ffcv_ramp", "regime.ramp.batch_size=null")
    # 256 images of 224 x 224 px: 501.8 at 160 px, 348.4 at 192
    assert [regime.choices[0].batch_size for regime in ramp.regimes] == [502, 348]


@pytest.mark.parametrize("regime", [*CIFAR_MIXED, *IMAGENET_MIXED])
def test_per_epoch_changes_how_often_a_size_is_drawn_and_nothing_else(regime):
    network = "cifar10/resnet44" if regime in CIFAR_MIXED else "imagenet/resnet50"
    assert compose([network, regime, "regime/per_epoch"]) == compose([network, regime, "regime.draw=epoch"])


def test_per_epoch_needs_sizes_to_draw_from():
    with pytest.raises(RecipeError, match="has no effect with mode: fixed, only with B\\+, D\\+, table"):
        compose(["imagenet/resnet50", "regime/per_epoch"])


def test_fine_tuning_starts_from_trained_weights():
    with pytest.raises(RecipeError, match=r"optimizer\.train: leaves random weights as they are: give model\."):
        compose(["imagenet/resnet50", "finetune/fixres"])
    assert compose(["imagenet/resnet50", "finetune/fixres", "model.pretrained=true"]).optimizer.lr == 4e-3
    mixed = compose(["imagenet/resnet50", "finetune/mixed"])
    assert mixed.model.pretrained
    assert mixed.optimizer.train == "all"
    assert compose(["imagenet/resnet50", "finetune/mixed", "regime/s144_bplus"]).regime.sizes == "s144"


@pytest.mark.parametrize(("network", "regime"), [pair for pair in PAIRS if pair[0] != "demo"])
def test_every_pair_can_be_planned_at_its_own_sizes_by_common_numbers_of_ranks(network, regime):
    recipe = compose([network, regime])
    for ranks in (1, 4, 8):
        planned = build_regime(recipe, 4 if network in CIFAR else 32, ranks)
        check_plannable(planned, recipe.data.train_images, 0, ranks)


# ---- published recipes ----


def run_of(*items):
    recipe = compose(list(items))
    return recipe, build_regime(recipe, 32, 1)


def pixels_of(*items):
    """Pixels of a whole run, in epochs of ImageNet at 224 px."""
    recipe, regime = run_of(*items)
    images, total = recipe.data.train_images, 0.0
    for span in spans_of(regime, images, recipe.seed, epochs=recipe.duration[0]):
        choices = regime.regimes[span.regime].choices
        total += span.epochs * sum(n * choice.pixels for n, choice in zip(span.steps, choices, strict=True))
    return total / (images * 224**2)


@pytest.mark.parametrize("name", IMAGENET_PUBLISHED)
def test_a_published_recipe_names_its_run_at_mixed_sizes_and_its_pixels(name):
    commands = re.findall(r"^#.* mixsize train (.*)$", text_of(name), re.MULTILINE)
    assert commands[:2] == [name, " ".join([name, *PUBLISHED[name]])]
    ratio = pixels_of(name, *PUBLISHED[name]) / pixels_of(name)
    words = re.sub(r"\s+#?\s*", " ", text_of(name))
    assert ratio == pytest.approx(1, abs=0.02 if "with the same pixels" in words else 0.09)
    for ranks in (1, 4, 8):
        for items in ([name], [name, *PUBLISHED[name]]):
            recipe = compose(items)
            check_plannable(build_regime(recipe, 32, ranks), recipe.data.train_images, 0, ranks)


def test_efficienttrain_has_ten_stages_of_equal_pixels_and_its_rate_falls_by_them():
    recipe, stages = run_of("imagenet/efficienttrain")
    sizes = [96, 96, 160, 160, 160, 160, 224, 224, 224, 224]
    assert [regime.choices[0].size_px for regime in stages.regimes] == sizes
    assert [stages.strength_at("magnitude", start) for start in stages.starts] == list(range(10))
    assert {choice.batch_size for regime in stages.regimes for choice in regime.choices} == {4096}
    # Its code gives a stage int(200 * (224 / S)^2) / 10 epochs; the run costs 200 epochs at 224 px.
    lengths = np.diff([*stages.starts, recipe.duration[0]])
    assert lengths == pytest.approx([int(200 * (224 / size) ** 2) / 10 for size in sizes], abs=1)
    assert pixels_of("imagenet/efficienttrain") == pytest.approx(200, rel=2e-3)
    rate = schedule_of_run(recipe, stages, recipe.data.train_images)
    warm = 8.4 / 455
    assert warm == pytest.approx(20 / int(200 * (224 / 96) ** 2), rel=5e-3)
    for stage, start in enumerate(stages.starts[1:], start=1):
        fallen = (1 + np.cos(np.pi * (stage / 10 - warm) / (1 - warm))) / 2
        assert rate(start) == pytest.approx(2.5e-4 + (1 - 2.5e-4) * fallen, abs=3e-3)
    assert rate(455) * recipe.optimizer.lr == pytest.approx(1e-6)


def test_efficientnetv2_has_the_stages_of_its_code():
    recipe, stages = run_of("imagenet/efficientnetv2_s")
    assert [regime.choices[0].size_px for regime in stages.regimes] == [128 + 43 * stage for stage in (1, 2, 3, 4)]
    magnitudes = [stages.strength_at("magnitude", start) for start in stages.starts]
    assert magnitudes == pytest.approx(np.linspace(5, 10, 4), abs=1e-3)
    assert recipe.optimizer.lr == pytest.approx(0.016 * 4096 / 256)
    rate = schedule_of_run(recipe, stages, recipe.data.train_images)
    assert [rate(epoch) for epoch in (2.5, 240.1)] == pytest.approx([0.5, 0.97**100])


@pytest.mark.parametrize("name", ["imagenet/mosaic_mild", "imagenet/mosaic_medium"])
def test_the_mosaic_recipes_grow_as_composers_progressive_resizing_does(name):
    recipe, ramp = run_of(name)
    sizes = [ramp.at_epoch(epoch).choices[0].size_px for epoch in range(90)]
    # Its initial_scale, delay_fraction and finetune_fraction: 0.5, 0.4 and 0.2.
    scales = 0.5 + 0.5 * np.interp(np.arange(90) / 89, [0.4, 0.8], [0, 1])
    assert np.abs(np.array(sizes) - 176 * scales).max() <= 4
    assert (set(sizes[:36]), set(sizes[72:])) == ({88}, {176})
    assert set(sizes) == set(range(88, 177, 4))
    assert {ramp.at_epoch(epoch).choices[0].batch_size for epoch in range(90)} == {2048}
    # Composer's decay does not depend on the learning rate; timm's is multiplied by it.
    assert recipe.optimizer.lr * recipe.optimizer.weight_decay == pytest.approx(5e-4)


def test_torchvisions_average_has_the_weight_of_its_code():
    recipe = compose(["imagenet/torchvision"])
    kept = 1 - (1 - 0.99998) * recipe.regime.base.batch_size * 32 / recipe.duration[0]
    assert recipe.algorithms["ema"] == {"smoothing": round(kept, 4), "update_interval": "32ba"}


def test_an_epoch_of_trd_has_a_third_of_the_pixels():
    # 0.9 * (112 / 224)^2 + 0.1, as the epochs of this seed are drawn
    assert pixels_of("imagenet/trd") / 300 == pytest.approx(0.325, rel=0.1)
    assert compose(["imagenet/trd"]).regime.draw == "epoch"


def test_rsb_a2_and_a3_differ_in_what_the_paper_says():
    a2, a3 = compose(["imagenet/rsb_a2"]), compose(["imagenet/rsb_a3"])
    assert (a2.duration, a2.regime.base.size_px, a2.optimizer.lr) == ((300, "ep"), 224, 5e-3)
    assert (a3.duration, a3.regime.base.size_px, a3.optimizer.lr) == ((100, "ep"), 160, 8e-3)
    assert (a2.data.augment.policy, a3.data.augment.policy) == ("rand-m7-mstd0.5-inc1", "rand-m6-mstd0.5-inc1")
    assert (a2.model.kwargs.get("drop_path_rate"), a3.model.kwargs.get("drop_path_rate")) == (0.05, None)
    same = {"mixing", "loss", "schedule", "loader", "evaluation", "algorithms"}
    assert a2.model_dump(include=same) == a3.model_dump(include=same)


# ---- recipes train ----

SMALL = ["device=cpu", "precision=fp32", "channels_last=false", "progress_bar=false", "output.save_every=never"]
SMALL += ["loader.num_workers=1", "evaluation.every_epochs=1"]
# For networks with a stride of 32: smaller sizes, everything else as packaged. The networks are ResNet-50's recipe with
# a quarter of its layers.
SHALLOW = ["imagenet/resnet50", "model.name=resnet14t"]
SMALL_IMAGENET = {
    "regime/s144_bplus": ["regime.sizes={96: 0.2, 64: 0.2, 32: 0.6}"],
    "regime/s144_dplus": ["regime.sizes={96: 0.2, 64: 0.2, 32: 0.6}"],
    "regime/s208_dplus": ["regime.sizes={96: 0.5, 64: 0.5}"],
    "regime/s224_dplus": ["regime.sizes={96: 0.5, 64: 0.5}"],
    "regime/progressive": [
        "regime.phases=[{size_px: 32, epochs: 1, batch_size: 24}, {size_px: 64, epochs: 1, lr_factor: 0.5}]"
    ],
    "regime/ffcv_ramp": ["regime.ramp={start_px: 32, end_px: 64, begin_epoch: 0, end_epoch: 1, batch_size: 24}"],
    "regime/multiscale_shift": [
        "regime.shift={start: {32: 1.0}, end: {32: 0.5, 64: 0.5}, end_fraction: null, end_epoch: 1}"
    ],
    "regime/timm_progressive": [
        "regime.phases=[{sizes: {32: 0.7, 64: 0.3}, epochs: 1, share_of: steps}, {size_px: 64, epochs: 1}]"
    ],
}

PHASES = "[{size_px: 32, epochs: 1, batch_size: 24, magnitude: 2}, {size_px: 64, epochs: 1, magnitude: 9}]"
RAMP = "{start_px: 32, end_px: 64, begin_fraction: null, end_fraction: null, begin_epoch: 0, end_epoch: 1}"
SMALL_PUBLISHED = {
    "imagenet/efficientnetv2_s": [f"regime.phases={PHASES}"],
    "imagenet/efficienttrain": [f"regime.phases={PHASES}", "regime.fraction_of=epochs"],
    "imagenet/mosaic_medium": [f"regime.ramp={RAMP}", "regime.ramp.batch_size=24"],
    "imagenet/mosaic_mild": [f"regime.ramp={RAMP}", "regime.ramp.batch_size=24"],
    "imagenet/trd": [
        "regime.choices=[{size_px: 64, batch_size: 2, share: 0.5}, {size_px: 32, batch_size: 2, share: 0.5}]"
    ],
}


@pytest.fixture(scope="module")
def small_images(tmp_path_factory):
    """A .beton file of 80 images of 32 x 32 px in 4 classes."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for label in range(4):
        (folder / "source" / str(label)).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source" / str(label) / f"{i}.png")
    convert(folder / "source", folder / "small.beton", workers=1, progress=False)
    return folder / "small.beton"


def train_two_steps(data, tmp_path, *items):
    """Build a recipe on small data, train it for two steps and return the run."""
    files = [f"data.train={data}", f"data.eval={data}", f"output.folder={tmp_path}/runs"]
    run = build(compose([*items, *files, *SMALL, "max_duration=2ba", "regime.base.batch_size=2"]))
    before = {name: value.detach().clone() for name, value in run.trainer.state.model.state_dict().items()}
    run.trainer.fit()
    assert int(run.trainer.state.timestamp.batch) == 2
    after = run.trainer.state.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    run.trainer.close()
    moved = {name.removeprefix("module.") for name, value in after.items() if not torch.equal(value, before[name])}
    return run, moved


def some(always, *others):
    """Parameters of which the first runs always and the others under the marker `soak`."""
    return [always, *(pytest.param(*other, marks=pytest.mark.soak) for other in others)]


CIFAR_RUNS = [([name], []) for name in CIFAR] + [
    (["cifar10/resnet20", "data.augment.policy=cifar10", "data.augment.cutout_px=16"], [regime, *overlay])
    for regime in CIFAR_MIXED
    for overlay in ([], ["regime/per_epoch"])
]
IMAGENET_RUNS = [(SHALLOW, [regime, "regime.base.size_px=64", *items]) for regime, items in SMALL_IMAGENET.items()]
IMAGENET_RUNS += [([name], ["regime.base.size_px=64"]) for name in IMAGENET]


@pytest.mark.parametrize(("network", "items"), some(CIFAR_RUNS[-2], *CIFAR_RUNS[:-2], CIFAR_RUNS[-1]))
def test_a_cifar_recipe_trains(network, items, small_images, tmp_path):
    run, moved = train_two_steps(small_images, tmp_path, *network, *items, "evaluation.sizes=[16]")
    assert {"conv1.weight", "fc.weight"} <= moved
    names = {type(algorithm).__name__ for algorithm in run.trainer.state.algorithms}
    assert {"MixSizeSampling", "EpochSchedule"} <= names
    assert ("GradSmoothing" in names) == bool(items)


@pytest.mark.parametrize(("network", "items"), some(IMAGENET_RUNS[4], *IMAGENET_RUNS[:4], *IMAGENET_RUNS[5:]))
def test_an_imagenet_recipe_trains(network, items, photos, tmp_path):
    run, moved = train_two_steps(photos, tmp_path, *network, *items, "evaluation.sizes=[64]")
    head = run.trainer.state.model.module.default_cfg["classifier"]
    assert f"{head}.weight" in moved
    assert sum("weight" in key for key in moved) > 20


def small(name, *mixed):
    """A published recipe, or its run at mixed sizes, with a small network of its family at small sizes."""
    network = "tf_efficientnetv2_b0" if name == "imagenet/efficientnetv2_s" else "resnet14t"
    sizes = ["regime.sizes={64: 0.4, 32: 0.6}"] if mixed else SMALL_PUBLISHED.get(name, [])
    return [name, *mixed, f"model.name={network}", "regime.base.size_px=64", "schedule.warmup_epochs=0", *sizes]


ALWAYS = small("imagenet/mosaic_mild")
PUBLISHED_RUNS = [small(name, *mixed) for name, items in PUBLISHED.items() for mixed in ((), items)]


@pytest.mark.parametrize(
    "items", some(PUBLISHED_RUNS[6], *[[run] for run in PUBLISHED_RUNS if run != PUBLISHED_RUNS[6]])
)
def test_a_published_recipe_trains(items, photos, tmp_path):
    run, moved = train_two_steps(photos, tmp_path, *items, "evaluation.sizes=[64]")
    assert sum("weight" in key for key in moved) > 20
    names = {type(one).__name__ for one in run.trainer.state.algorithms}
    assert ("Mixing" in names) == (run.recipe.mixing is not None)
    for key, name in {"ema": "ModelEMA", "sam": "SAM"}.items():
        assert (name in names) == (key in run.recipe.algorithms)
    layers = {type(module).__name__ for module in run.trainer.state.model.modules()}
    assert ("BlurConv2d" in layers) == ("blurpool" in run.recipe.algorithms)


def weights_of(name, tmp_path, **arguments):
    network = timm.create_model(name, num_classes=2, **arguments)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    return network, f"model.checkpoint={tmp_path}/weights.pt"


@pytest.mark.parametrize("items", some(SHALLOW, [["imagenet/efficientnet_b0"]]))
def test_fixres_moves_only_the_last_layer_and_batch_norm(items, photos, tmp_path):
    network, checkpoint = weights_of(compose(items).model.name, tmp_path)
    items = [*items, "finetune/fixres", checkpoint, "regime.base.size_px=64", "evaluation.sizes=[64]"]
    run, moved = train_two_steps(photos, tmp_path, *items)
    head = network.default_cfg["classifier"]
    norms = [part for part, module in network.named_modules() if isinstance(module, _BatchNorm)]
    allowed = {f"{head}.weight", f"{head}.bias"}
    allowed |= {
        f"{norm}.{key}"
        for norm in norms
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert moved <= allowed
    assert {f"{head}.weight", f"{norms[0]}.running_mean", f"{norms[-1]}.running_var", f"{norms[-1]}.bias"} <= moved
    trained = [p for group in run.trainer.state.optimizers[0].param_groups for p in group["params"]]
    assert len(trained) == 2 + 2 * len(norms)


def test_mixed_fine_tuning_moves_all_weights_from_the_checkpoints(photos, tmp_path):
    network, checkpoint = weights_of("resnet14t", tmp_path, zero_init_last=False)
    items = [*SHALLOW, "finetune/mixed", "model.pretrained=false", checkpoint]
    items += ["regime.base.size_px=64", "regime.sizes={96: 0.5, 64: 0.5}", "evaluation.sizes=[64]", "optimizer.lr=1e-5"]
    run, moved = train_two_steps(photos, tmp_path, *items)
    assert len([n for n in moved if n.endswith("conv2.weight")]) == 4
    for name, value in network.state_dict().items():
        if name.endswith("conv2.weight"):
            torch.testing.assert_close(run.trainer.state.model.state_dict()[f"module.{name}"], value, atol=1e-3, rtol=0)


def test_a_policy_for_images_of_several_sizes_is_refused_before_anything_is_written(photos, tmp_path):
    files = [f"data.train={photos}", f"data.eval={photos}", f"output.folder={tmp_path}/runs"]
    items = ["cifar10/wrn28_10", "model.name=wrn16_2", *files, *SMALL, "regime.base.batch_size=2"]
    with pytest.raises(ValueError, match="policy 'cifar10' and cutout of 16 px need images of one stored size"):
        build(compose(items))
    assert not (tmp_path / "runs").exists()
