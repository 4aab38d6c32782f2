"""The table of all packaged networks and regimes, and its place in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsize.bench.pages import tables
from mixsize.cli import main
from mixsize.recipes.config.compose import packaged_recipes
from mixsize.recipes.planning import table as plan_table

PAIRS = [("cifar10/resnet20", "regime/fixed"), ("cifar10/resnet20", "regime/s28_dplus")]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(plan_table, "packaged_pairs", lambda: PAIRS)


def test_a_row_for_each_pair_with_costs_relative_to_the_fixed_size(few, capsys):
    assert main(["plan", "--table"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| network | regime | steps / epoch | steps |")
    assert rule.count("---:") == 8
    # (.2 * 40**2 + .3 * 32**2 + .3 * 24**2 * 2 + .2 * 16**2 * 4) / 32**2 = 1.15
    assert rows == [
        "| cifar10/resnet20 | fixed | 781 | 156,200 | 32 px | 64 | 1.00 | 1.00x | 1.00x |",
        "| cifar10/resnet20 | s28_dplus | 780 | 156,000 | 28 px | 64 | 1.90 | 1.15x | 1.15x |",
    ]


def test_every_packaged_network_and_regime_of_its_data_is_paired():
    pairs = plan_table.packaged_pairs()
    networks = {name for name in packaged_recipes() if name.startswith(("ci", "im"))} - plan_table.PUBLISHED.keys()
    assert {network for network, _ in pairs} == networks
    paired = {regime for _, regime in pairs}
    # An overlay, the demo's, and one of published recipes.
    left_out = {"regime/per_epoch", "regime/digits_bplus", "regime/digits_dplus", "regime/s106_dplus"}
    assert paired == {name for name in packaged_recipes() if name.startswith("regime/")} - left_out


def test_published_recipes_are_compared_with_resnet50_at_a_fixed_size(monkeypatch):
    items = ("regime/s106_dplus", "max_duration=50ep")
    monkeypatch.setattr(plan_table, "PUBLISHED", {"imagenet/rsb_a3": items})
    head, rule, *rows = plan_table.published_table().splitlines()
    assert head == "| recipe | regime | epochs | steps | images | pixels | MACs |"
    assert rule.count("---:") == 6
    # 450,360 steps of 256 images; 100 epochs of 625 steps of 2,048 at 160 px: 100 / 90 * (160/224)^2 = 0.567.
    # D+: views (0.1 + 0.1 + 0.6 * 3 + 0.2 * 6) = 3.2, pixels 1.084 of the base's.
    assert rows[0] == "| imagenet/resnet50 | fixed | 90 | 450,360 | 115 M | 1.00x | 1.00x |"
    assert rows[1].startswith("| imagenet/rsb_a3 | as published | 100 | 62,500 | 128 M | 0.57x | 0.5")
    assert rows[2].startswith("|  | s106_dplus | 50 | 31,250 | 205 M | 0.31x | 0.3")


def test_a_marker_without_a_file_is_filled_from_the_recipes(few):
    text = "a\n<!-- table: plans -->\nold\n<!-- end table -->\nb\n"
    assert tables.refresh(text, Path()) == text.replace("old\n", plan_table.plans_table())


def test_a_marker_of_another_kind_needs_its_file():
    with pytest.raises(KeyError):
        tables.refresh("<!-- table: overhead -->\n<!-- end table -->\n", Path())
