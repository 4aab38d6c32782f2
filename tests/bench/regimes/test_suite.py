"""Suites are read strictly, packaged ones compose, and a budget becomes each run's length."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.bench.regimes.suite import Budget, SuiteError, load_suite, packaged_suites
from mixsize.bench.regimes.suite_runs import length_items, runs_of, steps_of_pixels
from mixsize.cli import main
from mixsize.recipes.build.resume import finished_record
from mixsize.recipes.config.compose import compose
from mixsize.recipes.planning.costs import Costs, make_plan

SUITE = """
name: small
recipes: {demo: [demo]}
regimes: {fixed: [regime/fixed], mixed: [regime/digits_bplus]}
seeds: 2
budget: {epochs: 2}
evaluation_sizes: [8, 16]
"""


def write(tmp_path, *changes, text=SUITE):
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return str(path)


def refusal(tmp_path, *changes):
    path = write(tmp_path, *changes)
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_a_suite_is_recipes_times_regimes_times_seeds(tmp_path):
    suite = load_suite(write(tmp_path))
    runs = runs_of(suite, tmp_path / "runs", suite.seeds)
    # Seed by seed.
    assert [run.name for run in runs] == [
        "small-fixed-seed17", "small-mixed-seed17", "small-fixed-seed18", "small-mixed-seed18",
    ]  # fmt: skip
    assert [run.recipe.regime.mode for run in runs] == ["fixed", "B+", "fixed", "B+"]
    assert [run.recipe.seed for run in runs] == [17, 17, 18, 18]
    assert {run.recipe.max_duration for run in runs} == {"2ep"}
    assert {run.recipe.evaluation.sizes for run in runs} == {(8, 16)}
    assert runs[0].folder == tmp_path / "runs/small-fixed-seed17"
    # What is started composes to what was meant.
    assert all(compose(run.items) == run.recipe for run in runs)


def test_several_recipes_stand_before_the_regimes_name(tmp_path):
    two = ("{demo: [demo]}", "{a: [demo], b: [demo, model.name=resnet10t]}")
    runs = runs_of(load_suite(write(tmp_path, two)), Path("runs"), 1)
    assert [run.label for run in runs] == ["a/fixed", "a/mixed", "b/fixed", "b/mixed"]
    assert [run.name for run in runs][-1] == "small-b-mixed-seed17"


def test_further_items_reach_every_run_but_not_the_budget(tmp_path):
    extra = ["optimizer.lr=0.5", "max_duration=7ba", "output.wandb.project=p"]
    for run in runs_of(load_suite(write(tmp_path)), Path("runs"), 1, extra):
        assert (run.recipe.optimizer.lr, run.recipe.max_duration) == (0.5, "2ep")
        assert run.recipe.output.wandb.group == "small"
    with pytest.raises(ValueError, match=r"suite small, fixed: optimizer\.lr: must be greater than 0, got 0"):
        runs_of(load_suite(write(tmp_path)), Path("runs"), 1, ["optimizer.lr=0"])


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("seeds: 2", "seed: 2", "seed: unknown key; did you mean seeds?"),
        ("seeds: 2", "seeds: 0", "seeds: must be at least 1, got 0"),
        ("seeds: 2", "seeds: two", 'seeds: must be a whole number, got "two"'),
        ("{epochs: 2}", "{epochs: 2, pixels: 5}", "budget: needs exactly one of epochs, seconds and pixels, got "
         '{"epochs": 2, "pixels": 5}'),
        ("{epochs: 2}", "{}", "budget: needs exactly one of epochs, seconds and pixels, got {}"),
        ("{epochs: 2}", "{epoch: 2}", "budget.epoch: unknown key; did you mean budget.epochs?"),
        ("{epochs: 2}", "{seconds: 1.5}", "budget.seconds: must be a whole number, got 1.5"),
        ("[8, 16]", "[8, 8]", "evaluation_sizes: lists a size twice, got [8, 8]"),
        ("[8, 16]", "[8, -1]", "evaluation_sizes.1: must be in [1, 65535], got -1"),
        ("[regime/fixed]", "regime/fixed", 'regimes.fixed: must be a list, got "regime/fixed"'),
        ("fixed:", "a/b:", "regimes.a/b: the key must be of letters, digits and _ - . +, with a letter or digit first, "
         "as it names files"),
        ("name: small", "name: ..", "name: must be of letters, digits and _ - . +, with a letter or digit first, "
         'as it names files, got ".."'),
        ("name: small", "", "name: required, but not given"),
        ("{demo: [demo]}", "{}", "recipes: must not be empty, got {}"),
        ("seeds: 2", "data: {source: cifar, folder: x}", "data.source: must be one of digits, got \"cifar\""),
    ],
)  # fmt: skip
def test_a_faulty_suite_gives_one_line(tmp_path, before, after, line):
    assert refusal(tmp_path, (before, after)) == [line]


def test_every_fault_of_a_suite_is_told(tmp_path):
    assert len(refusal(tmp_path, ("seeds: 2", "seeds: 0"), ("name: small", "nam: small"))) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "no packaged suite has this name.*did you mean digits"),
        ("xyz", "the packaged suites are calibration, cifar10, cifar10_cpu, cifar10_gpu, cifar10_options"),
        ("nowhere.yaml", r"nowhere\.yaml: cannot be read: No such file"),
    ],
)
def test_a_suite_that_is_not_there_is_named(name, words):
    with pytest.raises(SuiteError, match=words):
        load_suite(name)


def test_the_papers_suites_come_with_the_package():
    assert packaged_suites() == [
        "calibration", "cifar10", "cifar10_cpu", "cifar10_gpu", "cifar10_options", "digits", "imagenet", "lr_scaling",
        "precision", "resilience", "sampling", "smoothing",
    ]  # fmt: skip


COSTS: dict[str, Costs] = {}


@pytest.mark.parametrize("name", packaged_suites())
def test_a_packaged_suite_composes_and_every_plan_can_be_drawn(name, tmp_path):
    suite = load_suite(name)
    assert suite.name == name
    runs = runs_of(suite, tmp_path, 1)
    labels = [(recipe, regime) for recipe in suite.recipes for regime in suite.regimes]
    several = len(suite.recipes) > 1
    assert [run.label for run in runs] == [f"{recipe}/{of}" if several else of for recipe, of in labels]
    for run in runs:
        if run.recipe.model.name not in COSTS:
            from mixsize.recipes.models.network import planned_network

            COSTS[run.recipe.model.name] = Costs(planned_network(run.recipe), run.recipe.model.name)
        plan = make_plan(run.recipe, costs=COSTS[run.recipe.model.name])
        assert plan.epochs == suite.budget.epochs
        COSTS[run.recipe.model.name].check(run.recipe.evaluation.sizes)
        assert finished_record(run.recipe, run.folder) is None


def test_the_suites_draw_what_the_paper_compares(tmp_path):
    def recipes(name):
        return {run.label: run.recipe for run in runs_of(load_suite(name), tmp_path, 1)}

    sampling = recipes("sampling")
    assert [sampling[label].regime.draw for label in ("per_step", "per_epoch")] == ["step", "epoch"]
    assert sampling["per_step"].regime.sizes == sampling["per_epoch"].regime.sizes
    # Phases hold the shares of S(28) of 200 epochs: .2, .3, .3, .2, smallest first.
    phases = sampling["progressive"].regime.phases
    assert [(phase.size_px, phase.epochs) for phase in phases] == [(16, 40), (24, 60), (32, 60), (40, 40)]
    smoothing = recipes("smoothing")
    for mode in ("bplus", "dplus"):
        without, smoothed = smoothing[f"{mode}_without"], smoothing[f"{mode}_with"]
        assert without.smoothing is None
        assert smoothed.smoothing.alpha == 0.9
        assert smoothed.regime == without.regime
    resilience = recipes("resilience")
    assert resilience["fixed"].evaluation.sizes == tuple(224 + 32 * m for m in range(-6, 7))
    assert resilience["fixed"].calibration is None
    assert all(recipe.calibration.batches == 200 for label, recipe in resilience.items() if label != "fixed")


def test_a_budget_of_pixels_ends_at_the_step_that_reaches_it():
    """By hand: steps of 8 images of 4 px are 128 pixels each, 10 images make one step an epoch."""
    regime = Regime.fixed(Base(4, 8))
    assert steps_of_pixels(regime, 10, 0, 128) == (1, 1.0)
    assert steps_of_pixels(regime, 10, 0, 129) == (2, 2.0)
    assert steps_of_pixels(regime, 40, 0, 3 * 128) == (3, 0.6)
    with pytest.raises(ValueError, match=r"budget\.pixels is 1e\+12, which 10,000 epochs do not reach"):
        steps_of_pixels(regime, 10, 0, 1e12)


def test_regimes_on_one_budget_of_pixels_spend_it_alike(tmp_path):
    """Ten epochs of the base's pixels; the mixed regime takes 0.81 of them in an epoch, so it trains for longer."""
    base = 10 * 44 * 32 * 16**2
    runs = runs_of(load_suite(write(tmp_path, ("{epochs: 2}", f"{{pixels: {base}}}"))), tmp_path, 1)
    lengths = {run.label: run.recipe.duration for run in runs}
    assert lengths["fixed"] == (440, "ba")
    spent = {}
    for run in runs:
        plan = make_plan(run.recipe)
        spent[run.label] = sum(row.steps_total * row.pixels_per_step for row in plan.shapes)
        assert plan.steps_total == lengths[run.label][0]
    # Expected steps of the last epoch stand in for drawn ones in the plan.
    assert spent["mixed"] == pytest.approx(base, rel=0.01)
    assert make_plan(runs[1].recipe).epochs > 11


def test_milestones_keep_their_place_in_the_run():
    resnet = compose(["cifar10/resnet20"])
    assert resnet.schedule.milestones == (81, 122, 164)
    assert length_items(resnet, Budget(epochs=200), 1) == ["max_duration=200ep"]
    # 81, 122 and 164 of 200 are 40.5, 61 and 82 of 100; Python rounds the half to even.
    assert length_items(resnet, Budget(epochs=100), 1) == ["max_duration=100ep", "schedule.milestones=[40, 61, 82]"]
    # 781 steps of 64 x 32 x 32 pixels an epoch.
    items = length_items(resnet, Budget(pixels=781 * 64 * 1024 * 100.0), 1)
    assert items == ["max_duration=78100ba", "schedule.milestones=[40, 61, 82]"]
    with pytest.raises(ValueError, match=r"milestones \[81, 122, 164\] would become \[1, 1, 2\]; give a larger budget"):
        length_items(resnet, Budget(epochs=2), 1)


def test_a_budget_of_seconds_is_a_length_in_seconds(tmp_path):
    runs = runs_of(load_suite(write(tmp_path, ("{epochs: 2}", "{seconds: 90}"))), tmp_path, 1)
    assert {run.recipe.duration for run in runs} == {(90, "sec")}
    steps = write(tmp_path, ("{epochs: 2}", "{seconds: 90}"), ("[demo]", "[cifar10/resnet20]"))
    with pytest.raises(ValueError, match=r"suite small, fixed: schedule\.name: has milestones in epochs"):
        runs_of(load_suite(steps), tmp_path, 1)


@pytest.mark.parametrize(
    ("regime", "words"),
    [
        ("regime.base.size_px=18", "regime: size 18 px is not a multiple of the stride 4"),
        ("model.name=resnett18", "model.name: unknown timm model 'resnett18'"),
        ("optimizer.lrr=1", "optimizer.lrr: unknown key"),
    ],
)
def test_a_mistake_in_the_last_regime_is_found_before_the_first_run(regime, words, digits, tmp_path, capsys):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton"]
    path = write(tmp_path, ("[regime/digits_bplus]", f"[regime/fixed, {regime}]"))
    assert main(["bench", "regimes", path, *data, "--folder", str(tmp_path / "runs")]) == 2
    assert f"suite small, mixed: {words}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
