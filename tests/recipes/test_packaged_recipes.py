import importlib.resources
import re

import pytest
import timm

from mixsize.recipes import networks, schema
from mixsize.recipes.compose import compose, packaged_recipes, to_yaml

assert networks.__all__  # its import registers the CIFAR networks

CIFAR = ["cifar10/resnet20", "cifar10/resnet44", "cifar10/wrn28_10"]
IMAGENET = ["imagenet/densenet169", "imagenet/efficientnet_b0", "imagenet/resnet50"]
CIFAR_REGIMES = ["regime/fixed", "regime/s28_bplus", "regime/s28_dplus"]
IMAGENET_REGIMES = [
    "regime/fixed",
    "regime/s144_bplus",
    "regime/s144_dplus",
    "regime/s208_dplus",
    "regime/s224_dplus",
    "regime/progressive",
]
DIGIT_REGIMES = ["regime/fixed", "regime/digits_bplus", "regime/digits_dplus"]

NETWORKS = [*CIFAR, *IMAGENET, "demo"]
FAMILIES = [(CIFAR, CIFAR_REGIMES), (IMAGENET, IMAGENET_REGIMES), (["demo"], DIGIT_REGIMES)]
PAIRS = [(network, regime) for members, regimes in FAMILIES for network in members for regime in regimes]


def text_of(name: str) -> str:
    return importlib.resources.files("mixsize.recipes").joinpath(f"{name}.yaml").read_text("utf-8")


def test_the_package_holds_exactly_these_recipes():
    regimes = {regime for _, members in FAMILIES for regime in members}
    assert packaged_recipes() == sorted({*NETWORKS, *regimes})


@pytest.mark.parametrize(("network", "regime"), PAIRS)
def test_every_network_composes_with_every_regime_of_its_family_in_either_order(network, regime):
    recipe = compose([network, regime])
    assert compose([regime, network]) == recipe
    alone = compose([network])
    assert recipe.regime.base.size_px == alone.regime.base.size_px
    assert recipe.regime.base.batch_size == alone.regime.base.batch_size
    unchanged = {"regime", "optimizer"}
    assert recipe.model_dump(exclude=unchanged) == alone.model_dump(exclude=unchanged)


@pytest.mark.parametrize(("network", "regime"), PAIRS)
def test_a_regime_leaves_nothing_behind_when_another_follows(network, regime):
    other = "regime/s224_dplus" if regime == "regime/s144_bplus" else "regime/s144_bplus"
    assert compose([network, other, regime]) == compose([network, regime])


@pytest.mark.parametrize("name", packaged_recipes())
def test_each_file_opens_with_its_paper_command_target_and_measurements(name):
    text = text_of(name)
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


@pytest.mark.parametrize("name", packaged_recipes())
def test_lines_fit_in_a_terminal(name):
    assert max(map(len, text_of(name).splitlines())) <= 120


@pytest.mark.parametrize("names", [NETWORKS, [n for n in packaged_recipes() if n.startswith("regime/")]])
def test_keys_come_in_one_order_so_that_recipes_can_be_compared_line_by_line(names):
    def top_keys(name):
        return re.findall(r"^(\w+):", text_of(name), re.MULTILINE)

    assert len({tuple(top_keys(name)) for name in names}) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_and_its_arguments_exist_in_timm(name):
    model = compose([name]).model
    assert timm.is_model(model.name)
    if model.kwargs:
        timm.create_model(model.name, num_classes=2, **model.kwargs)


@pytest.mark.parametrize(("network", "regime"), PAIRS)
def test_the_written_recipe_composes_to_itself(network, regime, tmp_path):
    recipe = compose([network, regime])
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), "utf-8")
    assert compose([str(path)]) == recipe


def test_resnet44_follows_the_papers_training_set_up():
    recipe = compose(["cifar10/resnet44"])
    assert recipe.duration == (200, "ep")
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.momentum) == ("sgd", 0.1, 0.9)
    assert recipe.optimizer.weight_decay == 1e-4
    assert recipe.schedule.milestones == (81, 122, 164)
    assert recipe.schedule.factors == (0.1, 0.01, 0.001)
    assert recipe.regime == schema.FixedRegime(base=schema.Base(size_px=32, batch_size=64))
    assert recipe.data.augment == schema.PadCrop(name="pad_crop", padding=4, flip=True)
    # 156K steps in table 1: 200 * 50000 / 64
    assert recipe.duration[0] * recipe.data.train_images / recipe.regime.base.batch_size == 156_250


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


def test_only_b_plus_on_imagenet_scales_the_learning_rate():
    scaling = {regime: compose([network, regime]).optimizer.lr_scaling for network, regime in PAIRS}
    assert [regime for regime, value in scaling.items() if value == "linear"] == ["regime/s144_bplus"]


def test_only_s224_starts_from_two_duplicates():
    duplicates = {regime: compose([network, regime]).regime.base.duplicates for network, regime in PAIRS}
    assert {regime: count for regime, count in duplicates.items() if count != 1} == {"regime/s224_dplus": 2}


@pytest.mark.parametrize("regime", ["regime/digits_bplus", "regime/digits_dplus"])
def test_the_demos_mean_size_is_14_px(regime):
    sizes = compose(["demo", regime]).regime.sizes
    assert sum(size * share for size, share in sizes.items()) == pytest.approx(14)
