"""``mixsize recipes NAME`` and ``KEY``, and the page of all keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsize.cli import main
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.keys import all_keys
from mixsize.recipes.config.reference import OF_ITS_KEYS, REQUIRED, explain, recipe_keys
from mixsize.recipes.config.reference_page import recipe_keys_page

ROOT = Path(__file__).parents[3]


def printed(capsys, *argv):
    assert main(["recipes", *argv]) == 0
    return capsys.readouterr().out


def test_a_packaged_recipe_is_printed_with_its_head(capsys):
    out = printed(capsys, "cifar10/resnet44")
    assert out == (ROOT / "recipes/cifar10/resnet44.yaml").read_text()
    assert out.startswith("# ")


def test_a_key_is_printed_with_its_values_default_and_meaning(capsys):
    assert printed(capsys, "optimizer.momentum") == (
        "optimizer.momentum: factor on the running sum of gradients\n"
        "  value:    number in [0, 1)\n"
        "  default:  0.9\n"
        "  with:     optimizer.name sgd\n"
    )
    values = "none, linear, linear_by_sample, sqrt, linear_by_step or sqrt_by_step"
    assert f"  value:    {values}\n  default:  none\n" in printed(capsys, "optimizer.lr_scaling")
    assert "  default:  required" in printed(capsys, "regime.base.size_px")


def test_a_section_is_printed_with_its_variants_and_its_keys(capsys):
    out = printed(capsys, "data.augment")
    assert "  center_crop: Resize the shorter side to the size / fraction, then crop the centre square." in out
    assert "    data.augment.cutout_px\n" in out
    assert printed(capsys, "regime.base").splitlines()[-3:] == [
        "    regime.base.size_px", "    regime.base.batch_size", "    regime.base.duplicates",
    ]  # fmt: skip


def test_a_key_whose_default_differs_between_variants_is_printed_for_each(capsys):
    lines = printed(capsys, "data.augment.flip").splitlines()
    assert [line.split(":  ")[1].strip() for line in lines if "default" in line] == ["true", "false"]
    assert [line for line in lines if "with:" in line] == [
        "  with:     data.augment.name pad_crop, random_resized_crop",
        "  with:     data.augment.name resize",
    ]


@pytest.mark.parametrize("name", ["regime.phases.lr_factor", "regime.phases[].lr_factor", "regime.phases.0.lr_factor"])
def test_positions_in_lists_may_be_given(name):
    assert explain(name).startswith("regime.phases[].lr_factor: factor of the learning rate in this phase")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer.lrr", "optimizer.lrr: a recipe has no such key; did you mean optimizer.lr?"),
        ("cifar10/resnet4", "cifar10/resnet4: no packaged recipe has this name; did you mean cifar10/resnet44?"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, words, capsys):
    assert main(["recipes", name]) == 2
    assert capsys.readouterr().err == f"error: {words}\n"


def test_every_key_is_listed_and_has_a_meaning():
    keys = recipe_keys()
    assert {key.name.replace("[]", "") for key in keys} == {".".join(path) for path in all_keys()}
    assert all(key.meaning and key.value for key in keys)


def test_a_default_is_what_a_recipe_without_the_key_gets():
    items = ["demo", "regime/fixed"]
    checked = 0
    for key in recipe_keys():
        # Keys of sections that are off, of lists and of some variants have no place in this recipe.
        is_off = key.name.split(".")[0] in ("smoothing", "calibration") or key.name.startswith(
            ("output.wandb.", "regime.ramp.", "regime.shift.", "regime.strengths.")
        )
        if key.default in (REQUIRED, OF_ITS_KEYS, "") or key.variants or "[]" in key.name or is_off:
            continue
        assert compose([*items, f"{key.name}={key.default}"]) == compose([*items, f"{key.name}=null"]), key
        checked += 1
    assert checked > 30


def test_the_page_of_all_keys_is_fresh():
    page = (ROOT / "docs/recipe-keys.md").read_text(encoding="utf-8")
    assert page == recipe_keys_page(), "stale: python -m mixsize.recipes.config.reference_page docs/recipe-keys.md"
