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
    assert {network for network, _ in pairs} == {name for name in packaged_recipes() if name.startswith(("ci", "im"))}
    paired = {regime for _, regime in pairs}
    left_out = {"regime/per_epoch", "regime/digits_bplus", "regime/digits_dplus"}  # an overlay, and the demo's
    assert paired == {name for name in packaged_recipes() if name.startswith("regime/")} - left_out


def test_a_marker_without_a_file_is_filled_from_the_recipes(few):
    text = "a\n<!-- table: plans -->\nold\n<!-- end table -->\nb\n"
    assert tables.refresh(text, Path()) == text.replace("old\n", plan_table.plans_table())


def test_a_marker_of_another_kind_needs_its_file():
    with pytest.raises(KeyError):
        tables.refresh("<!-- table: overhead -->\n<!-- end table -->\n", Path())
