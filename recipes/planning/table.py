"""The tables of the packaged recipes: all networks with the regimes for their data, and the published recipes."""

from __future__ import annotations

import math

from mixsize.display.markdown import markdown_table
from mixsize.recipes.config.compose import compose, packaged_recipes
from mixsize.recipes.models.network import planned_network
from mixsize.recipes.models.surgery import Surgery
from mixsize.recipes.planning.costs import Costs, Plan, make_plan

_CIFAR = ("fixed", "s28_bplus", "s28_dplus")
_IMAGENET = (
    "fixed", "s144_bplus", "s144_dplus", "s208_dplus", "s224_dplus", "progressive", "ffcv_ramp", "multiscale_shift",
    "timm_progressive",
)  # fmt: skip
#: Folder of networks -> the packaged regimes whose sizes fit its images.
REGIMES: dict[str, tuple[str, ...]] = {"cifar10": _CIFAR, "cifar100": _CIFAR, "imagenet": _IMAGENET}
#: Published recipe -> the items that train it at mixed sizes, as in its file: with about the pixels of its own regime.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "imagenet/efficientnetv2_s": ("regime/s208_dplus", "max_duration=231ep", "schedule.every_epochs=1.58"),
    "imagenet/efficienttrain": ("regime/s144_dplus", "max_duration=200ep"),
    "imagenet/mosaic_medium": ("regime/s106_dplus", "max_duration=51ep", "smoothing=null"),
    "imagenet/mosaic_mild": ("regime/s106_dplus", "max_duration=51ep"),
    "imagenet/rsb_a2": ("regime/s144_dplus",),
    "imagenet/rsb_a3": ("regime/s106_dplus",),
    "imagenet/torchvision": ("regime/s106_dplus",),
    "imagenet/trd": ("regime/s144_dplus", "max_duration=98ep", "schedule.milestones=[24,49,73]"),
}
_REFERENCE = "imagenet/resnet50"

_HEAD = (
    "network",
    "regime",
    "steps / epoch",
    "steps",
    "mean size",
    "mean batch",
    "mean duplicates",
    "pixels",
    "MACs",
)


def packaged_pairs() -> list[tuple[str, str]]:
    """Return the packaged networks with the regimes for their data: ``("cifar10/resnet44", "regime/s28_bplus")``."""
    names = [name for name in packaged_recipes() if name not in PUBLISHED]
    networks = [name for name in names if name.partition("/")[0] in REGIMES]
    return [(name, f"regime/{regime}") for name in networks for regime in REGIMES[name.partition("/")[0]]]


def plans_table() -> str:
    """Return steps, means and costs of all pairs as a Markdown table.

    Pixels and MACs (multiply-accumulates of the forward pass) are those of an epoch, relative to the fixed size.
    """
    costs: dict[str, Costs] = {}
    rows = []
    for network, regime in packaged_pairs():
        recipe = compose([network, regime])
        if network not in costs:
            costs[network] = Costs(planned_network(recipe), recipe.model.name)
        rows.append([network, regime.removeprefix("regime/"), *_cells(make_plan(recipe, costs=costs[network]))])
    return markdown_table(_HEAD, rows)


def published_table() -> str:
    """Return steps and costs of the published recipes and of their runs at mixed sizes as a Markdown table.

    Images count each view. Pixels and MACs are those of the whole run, relative to ResNet-50's 90 epochs at 224 px.
    """
    costs: dict[str, Costs] = {}  # Recipes share networks.

    def plan_of(*items: str) -> Plan:
        recipe = compose(items)
        network = f"{recipe.model!r} {Surgery.of(recipe)!r}"
        if network not in costs:
            costs[network] = Costs(planned_network(recipe), recipe.model.name)
        return make_plan(recipe, costs=costs[network])

    reference = plan_of(_REFERENCE)
    rows = [_published_row(_REFERENCE, "fixed", reference, reference)]
    for name, items in PUBLISHED.items():
        rows.append(_published_row(name, "as published", plan_of(name), reference))
        rows.append(_published_row("", items[0].removeprefix("regime/"), plan_of(name, *items), reference))
    return markdown_table(("recipe", "regime", "epochs", "steps", "images", "pixels", "MACs"), rows)


def _published_row(name: str, regime: str, plan: Plan, reference: Plan) -> list[str]:
    images = math.fsum(row.samples_total * row.duplicates for row in plan.shapes)
    return [
        name,
        regime,
        f"{plan.epochs:g}",
        f"{plan.steps_total:,}",
        f"{images / 1e6:,.0f} M",
        f"{_pixels(plan) / _pixels(reference):.2f}x",
        f"{_macs(plan) / _macs(reference):.2f}x",
    ]


def _pixels(plan: Plan) -> float:
    return math.fsum(row.steps_total * row.pixels_per_step for row in plan.shapes)


def _macs(plan: Plan) -> float:
    return math.fsum(row.steps_total * (row.macs_per_step or math.nan) for row in plan.shapes)


def _cells(plan: Plan) -> list[str]:
    macs = plan.macs_per_epoch_ratio
    return [
        f"{plan.steps_per_epoch:,.0f}",
        f"{plan.steps_total:,}",
        f"{plan.mean_size_px:.0f} px",
        f"{plan.mean_batch_size:,.0f}",
        f"{plan.mean_duplicates:.2f}",
        f"{plan.pixels_per_epoch_ratio:.2f}x",
        "" if macs is None else f"{macs:.2f}x",
    ]
