"""Composer's algorithms and callbacks in a recipe: names, arguments, refusals, what they ask of other sections."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import composer.algorithms
import composer.callbacks
import pytest
import yaml
from composer.algorithms import EMA
from composer.core import Algorithm, Callback

from mixsize.algorithms.averaging.model_ema import ModelEMA
from mixsize.recipes.config.compose import RecipeError, compose, to_yaml
from mixsize.recipes.config.composer_arguments import classes, parameters
from mixsize.recipes.config.composer_page import composer_page
from mixsize.recipes.config.composer_table import ALGORITHMS, CALLBACKS

ROOT = Path(__file__).parents[3]
REFUSED = [
    *(("algorithms", name) for name, part in ALGORITHMS.items() if part.verdict == "refused"),
    *(("callbacks", name) for name, part in CALLBACKS.items() if part.verdict == "refused"),
]


def refused(*items):
    with pytest.raises(RecipeError) as error:
        compose(["demo", *items])
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "package", "base", "table"),
    [
        ("algorithms", composer.algorithms, Algorithm, ALGORITHMS),
        ("callbacks", composer.callbacks, Callback, CALLBACKS),
    ],
)
def test_the_table_has_all_that_composer_exports(kind, package, base, table):
    exported = [vars(package)[name] for name in package.__all__]
    parts = {one for one in exported if isinstance(one, type) and issubclass(one, base)}
    found = {EMA if one is ModelEMA else one for one in classes(kind).values()}
    assert found == parts
    assert list(classes(kind)) == list(table)


def test_names_are_those_of_composers_documentation():
    assert {"ema", "swa", "sam", "blurpool", "squeeze_excite", "randaugment", "cutmix"} <= set(classes("algorithms"))
    assert {"speed_monitor", "lr_monitor", "nan_monitor", "mlperf"} <= set(classes("callbacks"))


def test_the_average_takes_the_arguments_of_composers():
    assert list(parameters(ModelEMA)) == list(parameters(EMA))


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_what_does_not_fit_is_refused_with_its_reason_when_the_recipe_is_read(kind, name):
    reason = {"algorithms": ALGORITHMS, "callbacks": CALLBACKS}[kind][name].words
    assert (
        refused(f"{kind}.{name}={{}}")
        == f"{kind}.{name}: cannot be used here: {reason}, got {{}} (on the command line)"
    )


SAVED = "output.save_every=never"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["algorithms.ema.half_lif=100ba"], "algorithms.ema.half_lif: is no argument of ema, which takes half_life, "
         'smoothing, ema_start, update_interval; the nearest is half_life, got "100ba"'),
        (["algorithms.emma={}"], "algorithms.emma: Composer has no such algorithm; the nearest is ema"),
        (["callbacks.zzz={}"], "callbacks.zzz: Composer has no such callback; it has activation_monitor, "),
        (["algorithms.ema=100ba"], 'algorithms.ema: must be a mapping, got "100ba"'),
        (["algorithms.ema.half_life=100"], "algorithms.ema.half_life: must be text, got 100"),
        (["algorithms.ema.half_life=100sp"], "algorithms.ema: Invalid time unit"),
        (["algorithms.blurpool.min_channels=2.5"], "algorithms.blurpool.min_channels: must be a whole number, got 2.5"),
        (["algorithms.blurpool.blur_first=1"], "algorithms.blurpool.blur_first: must be true or false, got 1"),
        (["algorithms.factorize.latent_channels=a"],
         'algorithms.factorize.latent_channels: must be a whole number or a number, got "a"'),
        (["algorithms.gradient_clipping={clipping_type: norm}"],
         "algorithms.gradient_clipping.clipping_threshold: required, but not given"),
        (["algorithms.gradient_clipping={clipping_type: l2, clipping_threshold: 1}"],
         "algorithms.gradient_clipping.clipping_type: must be one of norm, value, adaptive, got \"l2\""),
        (["callbacks.speed_monitor.time_unit=weeks"], "callbacks.speed_monitor: Invalid time_unit: weeks"),
        (["callbacks.early_stopper={monitor: MulticlassAccuracy, dataloader_label: eval_17px}"],
         "callbacks.early_stopper.dataloader_label: must be one of train, eval_8px"),
        (["precision=amp_bf16", "algorithms.low_precision_layernorm.apply_at=init"],
         "algorithms.low_precision_layernorm.apply_at: is no plain value"),
        (["algorithms.low_precision_layernorm={}"],
         "algorithms.low_precision_layernorm: has no effect with precision: fp32"),
        (["algorithms.swa={}", "max_duration=60sec"], "algorithms.swa.swa_start: 0.7dur is a part of max_duration"),
        (["algorithms.ema.ema_start=0.5dur", "max_duration=60sec"], "algorithms.ema.ema_start: 0.5dur is a part of"),
        (["algorithms.swa={}", "execution.network=compile"], "algorithms.swa: needs execution.network: eager, it is"),
        (["algorithms.sam={}"], "algorithms.sam: a run cannot go on from a checkpoint with it: set output.save_every"),
        (["algorithms.layer_freezing={}"], "algorithms.layer_freezing: a run cannot go on from a checkpoint with it"),
        (["algorithms.sam={}", SAVED, "smoothing={}"], "algorithms.sam: computes two gradients a step"),
        (["algorithms.squeeze_excite={}", "model.pretrained=true", "optimizer.train=head_and_batch_norm"],
         "algorithms.squeeze_excite: its new weights would not be trained"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_key_and_what_is_allowed(items, message):
    line = refused(*items)
    assert line.startswith(message), line
    assert "\n" not in line


@pytest.mark.parametrize(
    "items",
    [
        ["algorithms.sam={}", SAVED],
        ["algorithms.ema={}", "max_duration=60sec"],  # 0.0dur is the start of any run.
        ["algorithms.ema.smoothing=0.99"],
        ["algorithms.factorize.latent_channels=8"],
        ["algorithms.gradient_clipping={clipping_type: norm, clipping_threshold: 1}"],
        ["callbacks.early_stopper={monitor: CrossEntropy, dataloader_label: eval_16px, patience: 2ep}"],
        ["precision=amp_bf16", "algorithms.low_precision_layernorm={}"],
    ],
)
def test_what_training_takes_is_read_and_written_the_same(items, tmp_path):
    recipe = compose(["demo", *items])
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert compose([str(tmp_path / "again.yaml")]) == recipe


def test_files_merge_name_by_name_and_null_takes_one_out(tmp_path):
    for name, algorithms in {
        "first": {"ema": {"half_life": "5ba"}, "blurpool": {}},
        "second": {"blurpool": None, "cutout": {"length": 0.25}},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"algorithms": algorithms}))
    files = [f"{tmp_path}/first.yaml", f"{tmp_path}/second.yaml"]
    recipe = compose(["demo", *files, "algorithms.ema.update_interval=5ba", "algorithms.cutout.length=null"])
    assert recipe.algorithms == {"ema": {"half_life": "5ba", "update_interval": "5ba"}, "cutout": {}}
    assert compose(["demo", *files, "algorithms=null"]).algorithms == {}


def test_a_recipe_without_these_sections_is_read_without_composer():
    code = (
        "import sys; from mixsize.recipes.config.compose import compose; compose(['demo', 'algorithms={}']);"
        " assert not {'composer', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_is_fresh():
    page = (ROOT / "docs/composer-algorithms.md").read_text(encoding="utf-8")
    assert page == composer_page(), "stale: python -m mixsize.recipes.config.composer_page docs/composer-algorithms.md"
