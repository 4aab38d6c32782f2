"""The table of all packaged networks and the regimes for their data."""

from __future__ import annotations

from mixsize.display.markdown import markdown_table
from mixsize.recipes.config.compose import compose, packaged_recipes
from mixsize.recipes.models.network import planned_network
from mixsize.recipes.planning.costs import Costs, Plan, make_plan

_CIFAR = ("fixed", "s28_bplus", "s28_dplus")
_IMAGENET = (
    "fixed", "s144_bplus", "s144_dplus", "s208_dplus", "s224_dplus", "progressive", "ffcv_ramp", "multiscale_shift",
    "timm_progressive",
)  # fmt: skip
#: Folder of networks -> the packaged regimes whose sizes fit its images.
REGIMES: dict[str, tuple[str, ...]] = {"cifar10": _CIFAR, "cifar100": _CIFAR, "imagenet": _IMAGENET}

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
    networks = [name for name in packaged_recipes() if name.partition("/")[0] in REGIMES]
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
