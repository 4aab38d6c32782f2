"""Composing recipes: order and merging, writing, and the words of every refusal."""

import os
import re
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from mixsize.recipes.config import keys, optimisation, regimes, schema
from mixsize.recipes.config.compose import RecipeError, compose, digest, packaged_recipes, to_yaml
from mixsize.recipes.config.regimes import ProgressiveRegime

RESNET = "cifar10/resnet44"
MIXED = (RESNET, "regime/s28_bplus")
HERE = " (on the command line)"


def refusal(*items: str) -> list[str]:
    """Return the lines of the error that composing the items raises."""
    with pytest.raises(RecipeError) as caught:
        compose(items)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes, name: str = "x.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_file


# ---- order and merging ----


def test_items_apply_from_left_to_right(write):
    file = write("seed: 5\n")
    assert compose([RESNET, "seed=4", file]).seed == 5
    assert compose([RESNET, file, "seed=4"]).seed == 4
    assert compose(["seed=4", RESNET]).seed == 17


def test_mappings_merge_deep_and_lists_are_replaced(write):
    recipe = compose([RESNET, write("evaluation: {sizes: [20]}\nregime: {base: {size_px: 28}}\n")])
    assert recipe.evaluation.sizes == (20,)
    assert recipe.evaluation.batch_size == 256
    assert recipe.regime.base == regimes.Base(size_px=28, batch_size=64)


def test_a_file_replaces_leaf_mappings_as_a_whole_and_an_override_sets_one_key(write):
    file = write("model: {kwargs: {drop_rate: 0.1}}\nregime: {sizes: {16: 1.0}}\n")
    recipe = compose([*MIXED, "regime.sizes={32: 0.5, 24: 0.5}", file])
    assert (recipe.model.kwargs, recipe.regime.sizes) == ({"drop_rate": 0.1}, {16: 1.0})
    one_by_one = ["regime.sizes={32: 0.5, 24: 0.5}", "regime.sizes.24=0.2", "regime.sizes.16=0.3"]
    recipe = compose([*MIXED, "model.kwargs.drop_rate=0.1", *one_by_one])
    assert recipe.model.kwargs == {"zero_init_last": True, "drop_rate": 0.1}
    assert recipe.regime.sizes == {32: 0.5, 24: 0.2, 16: 0.3}
    assert compose([*MIXED, "model.kwargs.zero_init_last=null"]).model.kwargs == {}
    nested = {"zero_init_last": True, "block_args": {"rates": [0, 0.5]}}
    assert compose([*MIXED, "model.kwargs.block_args={rates: [0, 0.5]}"]).model.kwargs == nested


def test_sizes_have_one_order_however_they_are_given():
    up = compose([*MIXED, "regime.sizes={16: 0.5, 32: 0.3, 24: 0.2}"])
    down = compose([*MIXED, "regime.sizes={32: 0.3, 24: 0.2, 16: 0.5}"])
    assert list(up.regime.sizes) == list(down.regime.sizes) == [32, 24, 16]
    assert digest(up) == digest(down)


def test_an_override_of_the_name_keeps_the_keys_that_the_new_variant_also_has():
    adamw = compose([RESNET, "optimizer.name=adamw"]).optimizer
    assert adamw == optimisation.AdamW(name="adamw", lr=0.1, weight_decay=1e-4)


def test_a_section_given_under_a_new_name_replaces_the_section(write):
    file = write("optimizer: {name: adamw, lr: 0.002}\n")
    assert compose([RESNET, file]).optimizer == optimisation.AdamW(name="adamw", lr=0.002)
    assert compose([RESNET, "schedule={name: cosine}"]).schedule == schema.Cosine(name="cosine")
    nested = compose([RESNET, "data.augment={name: resize}"]).data
    assert (nested.augment, nested.train_images) == (schema.Resize(name="resize"), 50000)


def test_a_section_given_under_the_same_name_or_none_merges(write):
    file = write("optimizer: {name: sgd, lr: 0.002}\n")
    assert compose([RESNET, file]).optimizer == optimisation.Sgd(name="sgd", lr=0.002, weight_decay=1e-4)
    unnamed = write("optimizer: {lr_scaling: linear}\n")
    assert compose([unnamed, RESNET]).optimizer.lr_scaling == "linear"
    assert compose([unnamed, RESNET]) == compose([RESNET, unnamed])


def test_a_changed_mode_keeps_the_base_and_drops_keys_that_no_longer_apply(write):
    fixed = compose([*MIXED, "regime.mode=fixed"])
    assert fixed.regime == regimes.FixedRegime(base=regimes.Base(size_px=32, batch_size=64))
    for item in ("regime/fixed", "regime.mode=null", write("regime: {mode: fixed}")):
        assert compose([*MIXED, item]).regime == fixed.regime
    assert compose([*MIXED, "regime.mode=D+"]).regime.sizes == "s28"


def test_another_network_drops_the_arguments_of_the_previous_one(write):
    assert compose([RESNET]).model.kwargs == {"zero_init_last": True}
    assert compose([RESNET, "model.name=wrn28_10"]).model.kwargs == {}
    assert compose([RESNET, "model.name=cifar_resnet44"]).model.kwargs == {"zero_init_last": True}
    assert compose([RESNET, "model.name=wrn28_10", "model.kwargs.drop_rate=0.1"]).model.kwargs == {"drop_rate": 0.1}
    file = write("model: {kwargs: {drop_rate: 0.2}, name: wrn28_10}")
    assert compose([RESNET, file]).model.kwargs == {"drop_rate": 0.2}
    assert compose([RESNET, write("model: {name: wrn28_10}")]).model.kwargs == {}


def test_null_means_the_default_even_where_the_key_does_not_apply(write):
    assert compose([RESNET, "seed=4", "seed=null"]).seed == 17
    assert compose([RESNET, "regime.sizes=null", "optimizer.betas=null"]) == compose([RESNET])
    assert compose([RESNET, "output.wandb={project: p}", write("output: {wandb: null}")]).output.wandb is None
    assert compose([RESNET, "output.save_every=never", "output.save_every=null"]).output.save_every == "1ep"


def test_an_override_can_open_a_section_that_no_file_has():
    wandb = compose([RESNET, "output.wandb.project=p", "output.wandb.tags=[a, b]"]).output.wandb
    assert wandb == schema.Wandb(project="p", tags=("a", "b"))


def test_a_path_and_a_value_may_hold_an_equals_sign(write, tmp_path):
    (tmp_path / "lr=1").mkdir()
    recipe = compose([RESNET, write("seed: 3", "lr=1/x.yml"), "name=a=b"])
    assert (recipe.seed, recipe.name) == (3, "a=b")


def test_a_table_regime_takes_rows():
    rows = "[{size_px: 32, batch_size: 64, share: 0.25}, {size_px: 16, batch_size: 64, duplicates: 4, share: 0.75}]"
    regime = compose([RESNET, "regime.mode=table", f"regime.choices={rows}", "regime.share_of=steps"]).regime
    built = regime.build(stride_px=4, batch_multiple=1, epochs=None)
    assert [(c.size_px, c.batch_size, c.duplicates, c.share) for c in built.choices] == [
        (32, 64, 1, 0.25),
        (16, 64, 4, 0.75),
    ]
    assert built.share_of == "steps"


def test_phases_or_a_ramp_make_a_progressive_regime():
    phases = "regime={mode: progressive, phases: [{size_px: 16, epochs: 2, lr_factor: 0.5}, {size_px: 32, epochs: 1}]}"
    regime = compose([RESNET, phases, "regime.batch_norm=reset"]).regime.build(4, 1, None)
    assert [(phase.size_px, phase.epochs, phase.lr_factor) for phase in regime.phases] == [(16, 2, 0.5), (32, 1, 1.0)]
    ramp = "regime={mode: progressive, warmup_epochs: 0.5, ramp: {start_px: 16, end_px: 32, end_epoch: 4}}"
    built = compose([RESNET, ramp]).regime.build(4, 1, None)
    assert [built.at_epoch(epoch).choices[0].size_px for epoch in range(5)] == [16, 20, 24, 28, 32]
    assert built.warmup_epochs == 0.5
    of_three = "regime: needs one of regime.phases, regime.ramp and regime.shift"
    assert refusal(RESNET, "regime.mode=progressive")[0].startswith(of_three)
    third = "{size_px: 32, fraction: 0.333}"
    fractions = f"regime={{mode: progressive, phases: [{third}, {third}, {third}]}}"
    for words, *items in (
        ("regime.phases.1: mixes epochs and fractions", fractions.replace("fraction: 0.333", "epochs: 1", 1)),
        ("regime.phases.0: needs either epochs or fraction", fractions.replace(", fraction: 0.333", "", 1)),
        ("regime.phases: has fractions that sum to 0.866", fractions.replace("0.333", "0.2", 1)),
        ("regime.phases: has fractions, which need a max_duration in epochs; it is 9ba", fractions, "max_duration=9ba"),
        ("regime.phases: does not fit max_duration 2ep: phases[", fractions, "max_duration=2ep"),
    ):
        assert refusal(RESNET, *items)[0].startswith(words)
    mixture = fractions.replace("size_px: 32", "sizes: {32: 0.5, 16: 0.5}", 1)
    shift = "regime={mode: progressive, shift: {start: {16: 1.0}, end: {32: 1.0}, end_fraction: 1.0}}"
    for words, *items in (
        ("regime.phases.0: needs either size_px or sizes", fractions.replace("size_px: 32, ", "", 1)),
        ("regime: phases[0].batch_size is 8; several", mixture.replace("fraction:", "batch_size: 8, fraction:", 1)),
        ("regime.phases.0.sizes.16: must be in (0, 1], got 5", mixture.replace("16: 0.5", "16: 5")),
        ("regime.phases.0.sizes.0: the key must be in [1, 65535]", mixture.replace("16: 0.5", "0: 0.5")),
        ("regime.phases.0.sizes: must be one of s28, s144", mixture.replace("{32: 0.5, 16: 0.5}", "s29")),
        ("regime: phases[0]: the shares sum to 0.9", mixture.replace("16: 0.5", "16: 0.4")),
        ("regime.fraction_of: needs regime.phases with fractions", shift, "regime.fraction_of=pixels"),
        ("regime.shift: needs either end_epoch or end_fraction", shift, "regime.shift.end_epoch=5"),
        ("regime.shift.begin_epoch: needs end_epoch", shift, "regime.shift.begin_epoch=5"),
        ("regime.shift: has fractions, which need a max_duration in epochs; it is 9ba", shift, "max_duration=9ba"),
        ("regime.shift: does not fit max_duration 1ep: the shift goes from epoch 0 to 0", shift, "max_duration=1ep"),
        ("regime.shift.stages: must be in [1, 1000], got 1001", shift, "regime.shift.stages=1001"),
        ("regime: end: the shares sum to 1.5", shift, "regime.shift.end.16=0.5"),
    ):
        assert refusal(RESNET, "schedule={name: constant}", *items)[0].startswith(words)
    frozen = refusal(RESNET, phases, "regime.batch_norm=freeze")
    assert frozen[0].startswith("regime.freeze_steps: must be at least 1 with regime.batch_norm freeze")


def test_a_shift_follows_the_runs_length_from_its_first_to_its_last_epoch():
    shift = "regime={mode: progressive, shift: {start: {16: 1.0}, end: {32: 1.0}, end_fraction: 1.0, stages: 4}}"
    regime = compose([RESNET, shift, "max_duration=9ep", "schedule={name: constant}"]).regime
    built = regime.build(4, 1, 9)
    large = [{c.size_px: c.share for c in built.at_epoch(epoch).choices}.get(32, 0) for epoch in range(9)]
    # Four stages in 8 epochs: 0, 1/8 (to the even stage, 0), 1/4, 3/8 (to 1/2), 1/2, 5/8 (1/2), 3/4, 7/8 (1), 1
    assert large == [0, 0, 0.25, 0.5, 0.5, 0.5, 0.75, 1, 1]
    assert [built.at_epoch(epoch).choices[-1].batch_size for epoch in (0, 8)] == [256, 64]
    ramp = "regime={mode: progressive, ramp: {start_px: 16, end_px: 32, begin_fraction: 0.5, end_fraction: 0.75}}"
    sizes = [regime.choices[0].size_px for regime in compose([RESNET, ramp]).regime.build(4, 1, 200).regimes]
    assert sizes == [16, 20, 24, 28, 32]
    # From epoch 100 to 150 of 201: 30 px, which is rounded to 32, is reached after 7/8 of it, 43.75 epochs.
    assert compose([RESNET, ramp]).regime.build(4, 1, 201).starts[-1] == 144


EFFICIENTTRAIN = """
mode: progressive
fraction_of: pixels
phases:
  - {size_px: 96, fraction: 0.1, magnitude: 0}
  - {size_px: 96, fraction: 0.1, magnitude: 1}
  - {size_px: 160, fraction: 0.1, magnitude: 2}
  - {size_px: 160, fraction: 0.1, magnitude: 3}
  - {size_px: 160, fraction: 0.1, magnitude: 4}
  - {size_px: 160, fraction: 0.1, magnitude: 5}
  - {size_px: 224, fraction: 0.1, magnitude: 6}
  - {size_px: 224, fraction: 0.1, magnitude: 7}
  - {size_px: 224, fraction: 0.1, magnitude: 8}
  - {size_px: 224, fraction: 0.1, magnitude: 9}
base: {size_px: 224, batch_size: 1024}
"""


def test_a_recipe_can_say_efficienttrain_plus_plus():
    regime = ProgressiveRegime.model_validate(yaml.safe_load(EFFICIENTTRAIN))
    built = regime.build(32, 1, 455)
    assert [phase.epochs for phase in built.phases] == [109, 109, 39, 39, 40, 39, 20, 20, 20, 20]
    assert [built.strength_at("magnitude", start) for start in built.starts] == list(range(10))
    assert regime.follows_duration == ("phases", "fractions")
    # A mixture's pixels are those of its mean image: half of them at 224 px, a quarter of the pixels at 112 px
    mixed = {**yaml.safe_load(EFFICIENTTRAIN), "base": {"size_px": 224, "batch_size": 64}}
    mixed["phases"] = [{"sizes": {224: 0.5, 112: 0.5}, "fraction": 0.5}, {"size_px": 224, "fraction": 0.5}]
    lengths = [phase.epochs for phase in ProgressiveRegime.model_validate(mixed).build(32, 1, 130).phases]
    assert lengths == [80, 50]  # 80 * 0.625 = 50


def test_strengths_are_held_or_change_and_those_of_a_phase_come_first():
    phases = "[{size_px: 16, epochs: 4, dropout: 0.1}, {size_px: 32, epochs: 1, drop_path: [0.0, 0.2]}]"
    items = [f"regime={{mode: progressive, phases: {phases}, strengths: {{dropout: [0.0, 0.9]}}}}", "max_duration=10ep"]
    regime = compose([RESNET, "schedule={name: constant}", *items]).regime
    built = regime.build(4, 1, 10)
    assert [built.strength_at("dropout", epoch) for epoch in (0, 3, 4, 9)] == pytest.approx([0.1, 0.1, 0.4, 0.9])
    # The last phase lasts from epoch 4 to 9.
    assert [built.strength_at("drop_path", epoch) for epoch in (0, 4, 9)] == [None, 0.0, 0.2]
    assert regime.follows_duration == ("strengths", "strengths that change up to the last epoch")
    held = [items[0].replace("[0.0, 0.9]", "0.3").replace("[0.0, 0.2]", "0.2"), "max_duration=9000ba"]
    regime = compose([RESNET, "schedule={name: constant}", *held]).regime
    assert regime.follows_duration is None
    assert regime.build(4, 1, None).strength_at("dropout", 4) == 0.3


@pytest.mark.parametrize(
    ("words", "item", "others"),
    [
        ("regime.strengths.mixup: needs the section mixing, got 0.2", "strengths: {mixup: 0.2}", []),
        ("regime.strengths.magnitude: has no effect with policy none, only", "strengths: {magnitude: [0, 9]}", []),
        ("regime.strengths.dropout: must be in [0, 1), got 1.5", "strengths: {dropout: 1.5}", []),
        ("regime.strengths.dropout.1: must be in [0, 1), got 1", "strengths: {dropout: [0, 1]}", []),
        ("regime.strengths.dropout: must be a number, got", "strengths: {dropout: high}", []),
        ("regime.strengths.dropout.1: missing from the list", "strengths: {dropout: [0.1]}", []),
        ("regime.strengths.drop: unknown key", "strengths: {drop: 0.1}", []),
        ("regime.strengths.drop_path: needs execution.network eager", "strengths: {drop_path: 0.1}",
         ["execution.network=compile"]),
        ("regime.strengths: has strengths that change up to the last epoch, which need a max_duration in epochs",
         "strengths: {drop_path: [0.1, 0.2]}", ["max_duration=9ba"]),
    ],
)  # fmt: skip
def test_a_strength_without_an_effect_is_refused(words, item, others):
    phases = f"regime={{mode: progressive, phases: [{{size_px: 16, epochs: 4}}], {item}}}"
    assert refusal(RESNET, "schedule={name: constant}", phases, *others)[0].startswith(words)


# ---- writing ----


ROUND_TRIPS = [
    (*MIXED, "regime.sizes={16: 0.5, 32: 0.5}", "optimizer.lr=1e-7"),
    (RESNET, "optimizer.name=adamw", "schedule={name: one_cycle}", "data.mean=[0.1, 0.2, 0.3]"),
    (
        RESNET,
        "regime={mode: progressive, phases: [{sizes: s28, epochs: 1, dropout: [0, 0.5]}], strengths: {dropout: 0}}",
    ),
    (RESNET, "regime={mode: progressive, shift: {start: s28, end: {32: 0.5, 16: 0.5}, end_epoch: 3}}"),
    (RESNET, "regime.mode=table", "regime.choices=[{size_px: 8, batch_size: 4, share: 1}]"),
    (RESNET, "output.wandb={project: 'off', tags: ['1e-4', 'no', '010', 'é']}", "name='null'"),
    (RESNET, "data.augment={policy: rand-m9, magnitude: {32: 9, 16: 3.5}, color_jitter: [0.4, 0, 1, 0.1], erasing: 1}"),
    (RESNET, "model.kwargs={a: 1, b: 1.0, c: true, d: 'true', e: '1e3'}", r'data.train="a\x85b.beton"'),
]


@pytest.mark.parametrize("items", ROUND_TRIPS)
def test_a_written_recipe_composes_to_itself(items, write):
    recipe = compose(items)
    again = compose([write(to_yaml(recipe))])
    assert repr(again) == repr(recipe)  # 1, 1.0 and true compare equal
    assert digest(again) == digest(recipe)
    assert to_yaml(again) == to_yaml(recipe)


def test_a_written_recipe_holds_the_defaults_starts_sections_with_their_variant_and_is_read_by_other_readers():
    text = to_yaml(compose(MIXED))
    for part in (
        "seed: 17\n",
        "loss: {name: cross_entropy, label_smoothing: 0.0}\n",
        "regime:\n  mode: B+\n",
        "optimizer: {name: sgd, ",
    ):
        assert part in text
    assert yaml.safe_load(text)["regime"]["sizes"] == "s28"
    assert yaml.safe_load(text)["output"]["wandb"] is None


def test_the_digest_follows_the_recipe_not_the_items():
    plain = digest(compose([RESNET]))
    assert re.fullmatch("[0-9a-f]{64}", plain)
    assert digest(compose([RESNET, "seed=17", "optimizer.lr=0.1"])) == plain
    assert digest(compose([RESNET, "seed=18"])) != plain
    orders = [compose([RESNET, f"model.kwargs={kwargs}"]) for kwargs in ("{a: 1, b: 2}", "{b: 2, a: 1}")]
    assert digest(orders[0]) == digest(orders[1])


# ---- refused values: the dotted key, the allowed range, the value, the item ----


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ("seed=true", "seed: must be a whole number, got true"),
        ("seed=1.0", "seed: must be a whole number, got 1.0"),
        ("seed=-1", "seed: must be in [0, 4294967295], got -1"),
        ("seed=4294967296", "seed: must be in [0, 4294967295], got 4294967296"),
        ("optimizer.lr=true", "optimizer.lr: must be a number, got true"),
        ("optimizer.lr=0", "optimizer.lr: must be greater than 0, got 0"),
        ("optimizer.lr=.nan", "optimizer.lr: must be a finite number, got NaN"),
        ("optimizer.lr=-.inf", "optimizer.lr: must be a finite number, got -Infinity"),
        ("optimizer.lr.x=1", 'optimizer.lr: must be a number, got {"x": 1}'),
        ("optimizer.momentum=1", "optimizer.momentum: must be in [0, 1), got 1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: must be at least 0, got -1"),
        ("optimizer.decay=bias", 'optimizer.decay: must be one of weights, all, got "bias"'),
        ("regime.base.size_px=0", "regime.base.size_px: must be in [1, 65535], got 0"),
        ("regime.base.size_px=65536", "regime.base.size_px: must be in [1, 65535], got 65536"),
        ("regime.base.batch_size=-4", "regime.base.batch_size: must be at least 1, got -4"),
        ("data.train_images=9007199254740993",
         "data.train_images: must be in [1, 9007199254740992], got 9007199254740993"),
        ("evaluation.sizes=[]", "evaluation.sizes: must not be empty, got []"),
        ("evaluation.sizes=[16, true]", "evaluation.sizes.1: must be a whole number, got true"),
        ("evaluation.sizes=[0]", "evaluation.sizes.0: must be in [1, 65535], got 0"),
        ("evaluation.sizes=[16, 16]", "evaluation.sizes: lists a size twice, got [16, 16]"),
        ("evaluation.sizes=16", "evaluation.sizes: must be a list, got 16"),
        ("evaluation.sizes.0=16", "evaluation.sizes: is a list, give it as a whole"),
        ("data.mean=[0.5, 0.5, 125]", "data.mean.2: must be in [0, 1], got 125"),
        ("data.mean=[0, 0, 0, 0]", "data.mean: must have at most 3 entries, got [0, 0, 0, 0]"),
        ("data.std=[0, 0.2, 0.2]", "data.std.0: must be in (0, 1], got 0"),
        ("data.augment.flip=yes", 'data.augment.flip: must be true or false, got "yes"'),
        ("data.augment.policy=3", "data.augment.policy: must be text, got 3"),
        ("data.augment.magnitude=x", 'data.augment.magnitude: must be a number, got "x"'),
        ("data.augment.magnitude={16: -1}", "data.augment.magnitude.16: must be at least 0, got -1"),
        ("data.augment.magnitude={0: 1}", "data.augment.magnitude.0: the key must be in [1, 65535]"),
        ("data.augment.magnitude={}", "data.augment.magnitude: must not be empty, got {}"),
        ("data.augment.magnitude=5",
         "data.augment.magnitude: has no effect with policy none, only with rand-..., got 5"),
        ("data.augment.color_jitter=-1", "data.augment.color_jitter: must be at least 0, got -1"),
        ("data.augment.color_jitter=[1, 1, x]", 'data.augment.color_jitter.2: must be a number, got "x"'),
        ("data.augment.color_jitter=[0, 0, 0, 0.6]", "data.augment.color_jitter: must be a number of at least 0, a list"
         " of three for brightness, contrast and saturation, or of four, the last for hue in [0, 0.5], got [0, 0, 0,"
         " 0.6]"),
        ("data.augment.erasing=2", "data.augment.erasing: must be in [0, 1], got 2"),
        ("data.train=''", 'data.train: must not be empty, got ""'),
        ("data.train=", "data.train: no value after '='"),
        ("name=5", "name: must be text, got 5"),
        ("model=5", "model: must be a mapping, got 5"),
        ("regime=5", "regime: must be a mapping, got 5"),
        ("model.kwargs=5", "model.kwargs: must be a mapping, got 5"),
        ("model.kwargs.a=.inf", "model.kwargs.a: must be a finite number, got Infinity"),
        ("model.kwargs.a=[{b: .nan}]", "model.kwargs.a: must be a finite number, got [{\"b\": NaN}]"),
        ("model.kwargs.num_classes=3", "model.kwargs.num_classes: cannot be given here: set model.num_classes, got 3"),
        ("schedule={name: one_cycle, peak_fraction: 1}", "schedule.peak_fraction: must be in (0, 1), got 1"),
        ("schedule.name=[1]", "schedule.name: must be one of multistep, step, cosine, one_cycle, constant, got [1]"),
        ("output.save_every=0", "output.save_every: must be a whole number of epochs ('1ep') or of batches ('500ba') of"
         " at most 12 digits, or never, got 0"),
    ],
)  # fmt: skip
def test_a_faulty_value_gives_one_line_with_the_key_the_allowed_range_and_the_value(item, line):
    (given,) = refusal(RESNET, item)
    assert given.startswith(line + HERE)


@pytest.mark.parametrize("value", ["2h", "200", "0ep", "1.5ep", "ep", "2 ep", "[2ep]", "true", "1" * 13 + "ep"])
def test_a_duration_has_one_of_three_units(value):
    (line,) = refusal(RESNET, f"max_duration={value}")
    assert line.startswith(
        "max_duration: must be a whole number of epochs ('90ep'), of batches ('500ba') or of seconds ('600sec') of at"
        " most 12 digits, got "
    )
    assert compose([RESNET, "max_duration=500ba"]).duration == (500, "ba")


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ("{32: 0.5, 16: 0.4}", "regime: the shares sum to 0.9; they must sum to 1"),
        ("{32: 0.5, 16: 0.500002}", "regime: the shares sum to 1; they must sum to 1"),
        ("{32: 0.5, 24: 0.5}", None),
        ("{32: 0.3333333, 24: 0.3333333, 16: 0.3333333}", None),
        ("{0: 0.5, 16: 0.5}", "regime.sizes.0: the key must be in [1, 65535]"),
        ("{a: 1}", "regime.sizes.a: the key must be a whole number"),
        ("{1.5: 1}", "regime.sizes.1.5: the key must be a whole number"),
        ("{~: 1}", "regime.sizes.None: the key must be a whole number"),
        ("{32: 1.5}", "regime.sizes.32: must be in (0, 1], got 1.5"),
        ("{32: 0, 16: 1}", "regime.sizes.32: must be in (0, 1], got 0"),
        ("{}", "regime.sizes: must not be empty, got {}"),
        ("{32: null}", "regime.sizes: must not be empty, got {}"),
        ("7", "regime.sizes: must be one of s28, s144, s208, s224, or a mapping of pixels to shares, got 7"),
        ("s29", "regime.sizes: must be one of s28, s144, s208, s224, or a mapping of pixels to shares"),
    ],
)
def test_sizes_have_shares_that_sum_to_one(sizes, line):
    if line is None:
        compose([*MIXED, f"regime.sizes={sizes}"])
    else:
        (given,) = refusal(*MIXED, f"regime.sizes={sizes}")
        assert given.startswith(line)


def test_faulty_rows_of_a_table_are_named_by_their_position():
    rows = "[{size_px: 32, batch_size: 64, share: 0.5}, {size_px: 0, batch_size: 64, shares: 0.5}]"
    assert refusal(RESNET, "regime.mode=table", f"regime.choices={rows}") == [
        f"regime.choices.1.size_px: must be in [1, 65535], got 0{HERE}",
        f"regime.choices.1.share: missing from the list{HERE}",
        f"regime.choices.1.shares: unknown key{HERE}; did you mean regime.choices.1.share?",
    ]
    assert refusal(RESNET, "regime.mode=table") == ["regime.choices: required, but not given"]


@pytest.mark.parametrize(
    ("items", "line"),
    [
        (["regime.base.batch_size=2147483648"],
         "regime: base.batch_size is 2147483648; it must be a whole number from 1 to 2147483647"),
        (["regime.stride=7"], "regime: size 32 px is not a multiple of the stride 7"),
        (["regime.batch_multiple=7"], "regime.base.batch_size: must be a multiple of regime.batch_multiple 7, got 64"
         " (in packaged recipe cifar10/resnet44)"),
        (["regime.mode=B+", "regime.stride=8", "regime.sizes={32: 0.5, 20: 0.5}"],
         "regime: size 20 px is not a multiple of the stride 8"),
        (["regime.mode=table", "regime.batch_multiple=4", "regime.choices=[{size_px: 32, batch_size: 6, share: 1.0}]"],
         "regime.choices.0.batch_size: must be a multiple of regime.batch_multiple 4, got 6"),
        (["schedule.milestones=[81, 122]"], "schedule.factors: must have one factor for each of the 2 milestones,"
         " has 3, got [0.1, 0.01, 0.001] (in packaged recipe cifar10/resnet44)"),
        (["schedule.milestones=[81, 81, 90]"], "schedule.milestones: must increase, got [81, 81, 90]"),
        (["schedule.warmup_epochs=82"],
         "schedule.warmup_epochs: must end by the first milestone, epoch 81, got 82"),
        (["schedule={name: cosine, warmup_epochs: 2}", "max_duration=2ep"],
         "schedule.warmup_epochs: must be below max_duration, 2ep, got 2"),
        (["max_duration=600sec"], "schedule.name: has milestones in epochs, but max_duration 600sec has no known"),
        (["max_duration=600sec", "schedule={name: cosine, warmup_epochs: 5}"],
         "schedule.warmup_epochs: is in epochs, but max_duration 600sec has no known number of epochs"),
        (["max_duration=600sec", "schedule={name: step, every_epochs: 2.4, factor: 0.97}"],
         "schedule.name: has steps in epochs, but max_duration 600sec has no known number of epochs"),
        (["max_duration=600sec", "schedule={name: one_cycle, follows: pixels}"],
         "schedule.follows: needs a known number of epochs, which max_duration 600sec has not; use epochs"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"],
         "optimizer.nesterov: needs optimizer.momentum above 0, got true"),
        (["model.pretrained=true", "model.checkpoint=x.pt"],
         "model.checkpoint: give either model.pretrained: true or a checkpoint, not both, got \"x.pt\""),
        (["data.augment.policy=rand-m9-x3"], "data.augment.policy: policy is 'rand-m9-x3', of which 'x3' is not known"),
        (["data.augment={name: resize, policy: cifar10}"], "data.augment.policy: policy is 'cifar10'; it must be"),
        (["data.augment={policy: rand-m9, magnitude: {32: 11}}"],
         "data.augment.magnitude: must be at most 10 with policy"
         " rand-m9; mmax in the policy's string, such as -mmax20, raises it, got {\"32\": 11}"),
        (["data.augment={policy: trivial, magnitude: 3}"], "data.augment.magnitude: has no effect with policy trivial"),
        (["data.augment={name: random_resized_crop, scale: [0.5, 0.1]}"],
         "data.augment.scale: must be [lowest, highest], got [0.5, 0.1]"),
        (["optimizer.train=head_and_batch_norm"], "optimizer.train: leaves random weights as they are: give"
         " model.checkpoint, or model.pretrained=true, got \"head_and_batch_norm\""),
        (["execution.network=cuda_graphs", "microbatch_images=8"], "execution.network: a graph overwrites"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(items, line):
    (given,) = refusal(RESNET, *items)
    assert given.startswith(line)


@pytest.mark.parametrize("schedule", ["{name: one_cycle}", "{name: cosine}", "{name: constant, warmup_epochs: 1}"])
def test_a_length_in_seconds_takes_schedules_that_need_no_epochs(schedule):
    assert compose([RESNET, f"schedule={schedule}", "max_duration=600sec"]).duration == (600, "sec")


# ---- refused keys ----


@pytest.mark.parametrize(
    ("item", "line", "hint"),
    [
        ("lr=0.1", "lr: unknown key", "optimizer.lr"),
        ("optimiser.lr=0.1", "optimiser: unknown key", "optimizer"),
        ("data.augment.pading=1", "data.augment.pading: unknown key", "data.augment.padding"),
        ("regime.sise=null", "regime.sise: unknown key", "regime.sizes"),
        ("zzzzzz=1", "zzzzzz: unknown key", None),
        ("precision=bf16", 'precision: must be one of fp32, amp_bf16, amp_fp16, got "bf16"', "amp_bf16"),
        ("optimizer.name=adam", 'optimizer.name: must be one of sgd, adamw, timm, got "adam"', "adamw"),
        ("regime.mode=b+", 'regime.mode: must be one of fixed, B+, D+, table, progressive, got "b+"', None),
        ("regime={mode: B+, sizes: s29}",
         'regime.sizes: must be one of s28, s144, s208, s224, or a mapping of pixels to shares, got "s29"', "s28"),
        ("regime.sizes=s28", "regime.sizes: has no effect with mode: fixed, only with B+, D+", None),
        ("regime.draw=epoch", "regime.draw: has no effect with mode: fixed, only with B+, D+, table", None),
        ("regime={mode: table, choices: [{size_px: 8, batch_size: 4, share: 1}], rounding: pow2}",
         "regime.rounding: has no effect with mode: table, only with B+, D+, progressive", None),
        ("optimizer.betas=[0.9, 0.99]", "optimizer.betas: has no effect with name: sgd, only with adamw", None),
        ("schedule={name: cosine, milestones: [1]}",
         "schedule.milestones: has no effect with name: cosine, only with multistep", None),
        ("data.eval_transform.fraction=0.5",
         "data.eval_transform.fraction: has no effect with name: resize, only with center_crop", None),
        ("loader.threads=2", "loader.threads: is named loader.num_workers now", None),
        ("loader.prefetch=2", "loader.prefetch: is named loader.batches_ahead now", None),
        ("loader.threshold=null", "loader.threshold: is named loader.min_oversampling now", None),
        ("evaluation.threshold=1.5", "evaluation.threshold: is named evaluation.min_oversampling now", None),
    ],
)  # fmt: skip
def test_a_key_or_name_without_effect_is_refused_with_the_nearest_that_has_one(item, line, hint):
    assert refusal(RESNET, item) == [line + HERE + (f"; did you mean {hint}?" if hint else "")]


def test_renamed_keys_lead_to_keys_that_exist():
    assert set(keys.RENAMED.values()) <= set(keys.all_keys())
    assert not set(keys.RENAMED) & set(keys.all_keys())


def test_missing_keys_are_all_listed():
    missing = [line.partition(":")[0] for line in refusal("regime/s28_bplus")]
    assert " ".join(missing) == (
        "name max_duration model.name data.train data.eval data.augment.name data.eval_transform.name"
        " regime.base.size_px regime.base.batch_size optimizer.name optimizer.lr schedule.name evaluation.sizes"
    )
    assert [line.partition(":")[0] for line in refusal()] == missing
    name = "optimizer.name: required, but not given; it is one of sgd, adamw, timm"
    assert refusal(RESNET, "optimizer=null") == [name, "optimizer.lr: required, but not given"]
    assert refusal(RESNET, "optimizer=null", "optimizer.lr=0.1") == refusal(RESNET, "optimizer.name=null") == [name]


def test_all_faults_are_listed_with_the_item_that_gave_each(write):
    file = write("seed: yes\noptimizer: {lr: -1}\n")
    assert refusal(RESNET, file, "optimizer.momentum=2") == [
        f'seed: must be a whole number, got "yes" (in {file})',
        f"optimizer.lr: must be greater than 0, got -1 (in {file})",
        f"optimizer.momentum: must be in [0, 1), got 2{HERE}",
    ]
    assert refusal(RESNET, write("model: 5\n")) == [f"model: must be a mapping, got 5 (in {file})"]
    assert refusal(*MIXED, "regime.sizes.40=0.5", write("regime: {sizes: {40: 2.0}}\n")) == [
        f"regime.sizes.40: must be in (0, 1], got 2.0 (in {file})"
    ]


def test_keys_that_are_not_text_are_unknown(write):
    lines = refusal(RESNET, write("5: 1\nloss: {7: 1}\n"))
    assert [line.partition(" (")[0] for line in lines] == ["loss.7: unknown key", "5: unknown key"]
    assert refusal(RESNET, "model.kwargs.~=1")[0].startswith("model.kwargs.None: the key must be text")
    assert refusal(RESNET, "output.wandb.[key]=null")[1].startswith("output.wandb.[key]: unknown key")
    # Twice, in a section without a key that selects its variant.
    assert refusal(RESNET, "calibration.~=false", "calibration.~=false")[0].startswith("calibration.~: unknown key")


def test_long_values_are_cut():
    (line,) = refusal(RESNET, f"seed={'x' * 500}")
    assert len(line) < 140


# ---- items that cannot be read ----


@pytest.mark.parametrize(
    ("item", "ending"),
    [
        ("resnet44", "did you mean cifar10/resnet44 or cifar100/resnet44?"),
        ("cifar10/resnet4", "did you mean cifar10/resnet44?"),
        ("regime/s28_bpls", "did you mean regime/s28_bplus?"),
        ("dem", "did you mean demo?"),
        ("cifar100", "is a folder of packaged recipes: cifar100/resnet44, cifar100/wrn28_10"),
        ("../recipes/demo", "did you mean demo?"),
        ("", f"the packaged recipes are {', '.join(packaged_recipes())}"),
    ],
)
def test_an_unknown_recipe_name_suggests_the_nearest(item, ending):
    (line,) = refusal(item)
    assert line.startswith(f"{item!r}: ")
    assert line.endswith(ending)


def test_a_missing_file_says_so_and_knows_the_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("none.yaml") == ["none.yaml: no such file"]
    assert refusal("cifar10/resnet44.yaml") == [
        "cifar10/resnet44.yaml: no such file; the packaged recipe is named cifar10/resnet44"
    ]


def test_the_faults_of_all_items_are_listed_before_the_recipe_is_checked(write):
    file = write("a: [")
    lines = refusal("none.yaml", "zzzzzz", file, "=3", "seed=x")
    assert [line.split(":")[0] for line in lines] == ["none.yaml", "'zzzzzz'", file, "'=3' on the command line"]


@pytest.mark.parametrize("item", ["=3", "a..b=3", ".a=3", "a.=3", "a b=3"])
def test_a_malformed_override_says_how_one_is_written(item):
    assert refusal(RESNET, item) == [f"{item!r} on the command line: an override is written dotted.key=value"]


@pytest.mark.parametrize("value", ["[1", "a: b: c", "!!python/name:os.system x", "*a", "9" * 5000])
def test_an_override_whose_value_is_not_yaml_names_its_key(value):
    (line,) = refusal(RESNET, f"optimizer.lr={value}")
    assert line.startswith(f"optimizer.lr: '{value[:57]}")
    assert " is not a YAML value: " in line
    assert line.endswith(HERE)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# only a comment\n", "is empty; a recipe is a mapping of keys to values"),
        ("- seed\n", "a recipe is a mapping of keys to values, this is a list"),
        ("optimizer:\n  lr: 1\n  lr: 2\n", 'line 3: found duplicate key "lr"'),
        ("seed: 1\n---\nseed: 2\n", "line 2: expected a single document in the stream, but found another document"),
        ("seed: !!python/object/apply:os.system ['true']\n", "line 1: tags such as tag:yaml.org,2002:python/object"),
        ("\n\nseed: !!int x\n", "line 3: tags such as tag:yaml.org,2002:int are not allowed"),
        (f"seed: {'9' * 5000}\n", "Exceeds the limit"),
        ("seed: [1\n", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\tb: 1\n", "line 2: found character '\\t' that cannot start any token"),
        ("a: \0\n", "unacceptable character"),
        ('name: "\\ud800"\n', "'utf-8' codec can't encode character"),
        ("a: &a [1]\nb: *a\n", "line 2: aliases such as *a are not allowed"),
        ("%YAML 1.9\n---\nseed: 1\n", "declares a version of YAML that is not known; leave %YAML out"),
        ("a:\n%YAML 9.9\n---\n  - {b: 1}\n", "declares a version of YAML that is not known; leave %YAML out"),
        ("[" * 1000, "is nested more than 32 deep"),
        (f"a: {list(range(2000))}", "line 1: holds more than 2000 values"),
        (b"name: \xff\n", "is not UTF-8 text (byte 6)"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused_by_name(write, text, complaint):
    file = write(text)
    (line,) = refusal(RESNET, file)
    assert line.startswith(f"{file}: {complaint}")


def test_a_directory_or_an_unreadable_file_is_refused(tmp_path):
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert refusal(str(folder)) == [f"{folder}: is a directory, not a recipe file"]
    assert refusal(str(tmp_path)) == [f"{str(tmp_path)!r}: is a directory, not a recipe file"]
    loop = tmp_path / "loop.yaml"
    os.symlink(loop, loop)
    for item in (str(loop), "a\0b.yaml"):
        assert ": cannot be read: " in refusal(item)[0]


def test_anchors_have_no_effect(write):
    assert compose([RESNET, write("&a seed: &a 3\n&a name: &b x\n")]).seed == 3


def test_a_byte_order_mark_is_read(write):
    assert compose([RESNET, write(b"\xef\xbb\xbfloader: {num_workers: 3}\n")]).loader.num_workers == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001), ("1E5", 100000.0), (".5", 0.5), ("5.", 5.0), ("-3", -3), ("010", 10), ("0x10", 16),
        ("true", True), ("False", False), ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("=", "="), ("1e", "1e"), ("'1e-4'", "1e-4"),
        ("${HOME}", "${HOME}"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2_reads_them(text, value):
    read = compose([RESNET, f"model.kwargs.x={text}"]).model.kwargs["x"]
    assert (read, type(read)) == (value, type(value))


def test_a_string_in_place_of_a_sequence_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="'demo'"):
        compose("demo")


# ---- the schema itself ----


def fields():
    for path in keys.all_keys():
        for section in keys.sections_at(path[:-1]):
            if path[-1] in section.model_fields:
                yield path, section.model_fields[path[-1]]


def test_every_key_is_described():
    assert [path for path, field in fields() if not field.description] == []


def test_no_key_is_typed_as_a_bare_container_or_as_anything():
    def leaves(annotation):
        parts = get_args(annotation)
        return [leaf for part in parts for leaf in leaves(part)] if parts else [annotation]

    bare = {Any, object, dict, list, tuple}
    assert [path for path, field in fields() if bare & set(filter(callable, leaves(field.annotation)))] == []


def test_recipes_are_frozen():
    recipe = compose([RESNET])
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.optimizer.lr = 3.0
