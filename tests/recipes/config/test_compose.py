import os
import re
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import RecipeError, compose, digest, packaged_recipes, to_yaml

RESNET = "cifar10/resnet44"
MIXED = (RESNET, "regime/s28_bplus")


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


def test_the_documented_example_composes():
    recipe = compose([RESNET, "regime/s28_bplus", "max_duration=2ep"])
    assert recipe.model.name == "cifar_resnet44"
    assert recipe.regime.mode == "B+"
    assert recipe.regime.sizes == "s28"
    assert recipe.duration == (2, "ep")


def test_items_apply_from_left_to_right(write):
    file = write("seed: 5\n")
    assert compose([RESNET, "seed=4", file]).seed == 5
    assert compose([RESNET, file, "seed=4"]).seed == 4
    assert compose(["seed=4", RESNET]).seed == 17


def test_mappings_merge_deep_and_lists_are_replaced(write):
    file = write("evaluation: {sizes: [20]}\nregime: {base: {size_px: 28}}\n")
    recipe = compose([RESNET, file])
    assert recipe.evaluation.sizes == (20,)
    assert recipe.evaluation.batch_size == 256
    assert recipe.regime.base == schema.Base(size_px=28, batch_size=64)


def test_a_file_replaces_leaf_mappings_as_a_whole(write):
    file = write("model: {kwargs: {drop_rate: 0.1}}\nregime: {sizes: {16: 1.0}}\n")
    recipe = compose([*MIXED, "regime.sizes={32: 0.5, 24: 0.5}", file])
    assert recipe.model.kwargs == {"drop_rate": 0.1}
    assert recipe.regime.sizes == {16: 1.0}
    assert compose([*MIXED, "model.kwargs={drop_rate: 0.1}"]).model.kwargs == {"drop_rate": 0.1}


def test_a_dotted_override_sets_one_key_of_a_leaf_mapping():
    recipe = compose([*MIXED, "model.kwargs.drop_rate=0.1", "regime.sizes={32: 0.5, 24: 0.5}", "regime.sizes.24=0.2",
                      "regime.sizes.16=0.3"])  # fmt: skip
    assert recipe.model.kwargs == {"zero_init_last": True, "drop_rate": 0.1}
    assert recipe.regime.sizes == {32: 0.5, 24: 0.2, 16: 0.3}
    assert compose([*MIXED, "model.kwargs.zero_init_last=null"]).model.kwargs == {}


def test_sizes_are_kept_in_one_order_whatever_order_they_are_given_in():
    up = compose([*MIXED, "regime.sizes={16: 0.5, 32: 0.3, 24: 0.2}"])
    down = compose([*MIXED, "regime.sizes={32: 0.3, 24: 0.2, 16: 0.5}"])
    assert list(up.regime.sizes) == list(down.regime.sizes) == [32, 24, 16]


def test_an_override_of_the_name_keeps_what_the_new_variant_also_has():
    recipe = compose([RESNET, "optimizer.name=adamw"])
    assert recipe.optimizer == schema.AdamW(name="adamw", lr=0.1, weight_decay=1e-4)
    assert compose([RESNET, "optimizer.name=adamw", "optimizer.lr=0.001"]).optimizer.lr == 0.001


def test_a_section_given_under_a_new_name_replaces_the_section(write):
    file = write("optimizer: {name: adamw, lr: 0.002}\n")
    assert compose([RESNET, file]).optimizer == schema.AdamW(name="adamw", lr=0.002)
    assert compose([RESNET, "schedule={name: cosine}"]).schedule == schema.Cosine(name="cosine")
    nested = compose([RESNET, "data.augment={name: resize}"]).data
    assert nested.augment == schema.Resize(name="resize")
    assert nested.train_images == 50000


def test_a_section_given_under_the_same_name_merges(write):
    file = write("optimizer: {name: sgd, lr: 0.002}\n")
    assert compose([RESNET, file]).optimizer == schema.Sgd(name="sgd", lr=0.002, weight_decay=1e-4)


def test_a_changed_mode_keeps_the_base_and_drops_what_no_longer_applies():
    fixed = compose([*MIXED, "regime.mode=fixed"])
    assert fixed.regime == schema.FixedRegime(base=schema.Base(size_px=32, batch_size=64))
    assert compose([*MIXED, "regime/fixed"]).regime == fixed.regime
    assert compose([*MIXED, "regime.mode=D+"]).regime.sizes == "s28"
    assert compose([*MIXED, "regime.mode=null"]).regime == fixed.regime


def test_a_table_regime_takes_rows():
    rows = "[{size_px: 32, batch_size: 64, share: 0.25}, {size_px: 16, batch_size: 64, duplicates: 4, share: 0.75}]"
    regime = compose([RESNET, "regime.mode=table", f"regime.choices={rows}", "regime.share_of=steps"]).regime
    assert isinstance(regime, schema.TableRegime)
    assert [(c.size_px, c.batch_size, c.duplicates, c.share) for c in regime.choices] == [
        (32, 64, 1, 0.25),
        (16, 64, 4, 0.75),
    ]
    assert regime.share_of == "steps"


def test_null_means_the_default_even_where_the_key_does_not_apply():
    assert compose([RESNET, "seed=4", "seed=null"]).seed == 17
    assert compose([RESNET, "optimizer.momentum=null"]).optimizer.momentum == 0.9
    assert compose([RESNET, "regime.sizes=null", "optimizer.betas=null"]) == compose([RESNET])
    assert compose([RESNET, "output.wandb={project: p}", "output.wandb=null"]).output.wandb is None
    assert compose([RESNET, "output.save_every=never", "output.save_every=null"]).output.save_every == "1ep"


def test_an_override_can_open_a_section_that_no_file_has():
    wandb = compose([RESNET, "output.wandb.project=p", "output.wandb.tags=[a, b]"]).output.wandb
    assert wandb == schema.Wandb(project="p", tags=("a", "b"))


def test_override_values_are_yaml():
    recipe = compose([RESNET, "optimizer.lr=1e-4", "evaluation.sizes=[16,32]", "name='7'", "loader.threads=2"])
    assert recipe.optimizer.lr == 0.0001
    assert recipe.evaluation.sizes == (16, 32)
    assert recipe.name == "7"
    assert recipe.loader.threads == 2
    assert compose([RESNET, "name=a=b"]).name == "a=b"


def test_a_path_may_hold_an_equals_sign(write, tmp_path):
    (tmp_path / "lr=1").mkdir()
    assert compose([RESNET, write("seed: 3", "lr=1/x.yml")]).seed == 3


def test_nothing_is_interpolated(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    assert compose([RESNET, "output.folder=${HOME}/runs"]).output.folder == "${HOME}/runs"


def test_a_file_may_replace_a_mapping_by_null_or_by_a_name(write):
    sizes = [*MIXED, "regime.sizes={32: 1.0}", "output.wandb.project=p"]
    recipe = compose([*sizes, write("regime: {sizes: s144}\noutput: {wandb: null}\n")])
    assert recipe.regime.sizes == "s144"
    assert recipe.output.wandb is None
    file = write("model: 5\n")
    assert refusal(RESNET, file) == [f"model: must be a mapping, got 5 (in {file})"]


def test_a_section_that_names_no_variant_yet_merges_with_the_one_that_does(write):
    file = write("optimizer: {lr_scaling: linear}\n")
    assert compose([file, RESNET]).optimizer.lr_scaling == "linear"
    assert compose([file, RESNET]) == compose([RESNET, file])


def test_composing_leaves_no_trace_between_calls():
    compose([RESNET, "optimizer.lr=0.7", "model.kwargs.drop_rate=0.5"])
    assert compose([RESNET]).optimizer.lr == 0.1
    assert "drop_rate" not in compose([RESNET]).model.kwargs


# ---- writing ----


ROUND_TRIPS = [
    (RESNET,),
    (*MIXED, "regime.sizes={16: 0.5, 32: 0.5}", "optimizer.lr=1e-7"),
    (RESNET, "optimizer.name=adamw", "schedule={name: one_cycle}", "data.mean=[0.1, 0.2, 0.3]"),
    (RESNET, "regime.mode=table", "regime.choices=[{size_px: 8, batch_size: 4, share: 1}]"),
    (RESNET, "output.wandb={project: 'off', tags: ['1e-4', 'no', '010', 'é']}", "name='null'"),
    (RESNET, "model.kwargs={a: 1, b: 1.0, c: true, d: 'true', e: '1e3'}"),
]


@pytest.mark.parametrize("items", ROUND_TRIPS)
def test_a_written_recipe_composes_to_itself(items, write):
    recipe = compose(items)
    again = compose([write(to_yaml(recipe))])
    assert again == recipe
    assert repr(again) == repr(recipe)  # 1, 1.0 and true compare equal
    assert digest(again) == digest(recipe)
    assert to_yaml(again) == to_yaml(recipe)


def test_a_written_recipe_holds_the_defaults_and_starts_sections_with_their_variant():
    text = to_yaml(compose(MIXED))
    assert "seed: 17\n" in text
    assert "loss: {label_smoothing: 0.0}\n" in text
    assert "regime:\n  mode: B+\n" in text
    assert "optimizer: {name: sgd, " in text
    assert "wandb: null" in text


def test_the_digest_follows_the_recipe_not_the_items(write):
    plain = digest(compose([RESNET]))
    assert re.fullmatch("[0-9a-f]{64}", plain)
    assert digest(compose([RESNET, "seed=17", "optimizer.lr=0.1"])) == plain
    assert digest(compose([RESNET, "seed=18"])) != plain
    assert digest(compose([RESNET, "model.kwargs={a: 1, b: 2}"])) == digest(
        compose([RESNET, "model.kwargs={b: 2, a: 1}"])
    )
    assert digest(compose([*MIXED, "regime.sizes={16: 0.5, 32: 0.5}"])) == digest(
        compose([*MIXED, "regime.sizes={32: 0.5, 16: 0.5}"])
    )


# ---- what is refused, and in which words ----


def test_an_unknown_key_names_its_file_and_the_nearest_key(write):
    file = write("regime:\n  sise: 3\n")
    assert refusal(*MIXED, file) == [f"regime.sise: unknown key (in {file}); did you mean regime.sizes?"]


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ("lr=0.1", "lr: unknown key (on the command line); did you mean optimizer.lr?"),
        ("optimiser.lr=0.1", "optimiser: unknown key (on the command line); did you mean optimizer?"),
        ("data.augment.pading=1", "data.augment.pading: unknown key (on the command line); did you mean"
         " data.augment.padding?"),
        ("regime.sise=null", "regime.sise: unknown key (on the command line); did you mean regime.sizes?"),
        ("zzzzzz=1", "zzzzzz: unknown key (on the command line)"),
        ("seed=true", "seed: must be a whole number, got true (on the command line)"),
        ("seed=1.0", "seed: must be a whole number, got 1.0 (on the command line)"),
        ("seed=-1", "seed: must be in [0, 4294967295], got -1 (on the command line)"),
        ("seed=4294967296", "seed: must be in [0, 4294967295], got 4294967296 (on the command line)"),
        ("optimizer.lr=true", "optimizer.lr: must be a number, got true (on the command line)"),
        ("optimizer.lr=0", "optimizer.lr: must be greater than 0, got 0 (on the command line)"),
        ("optimizer.lr=.nan", "optimizer.lr: must be a finite number, got NaN (on the command line)"),
        ("optimizer.lr=-.inf", "optimizer.lr: must be a finite number, got -Infinity (on the command line)"),
        ("optimizer.lr.x=1", 'optimizer.lr: must be a number, got {"x": 1} (on the command line)'),
        ("optimizer.momentum=1", "optimizer.momentum: must be in [0, 1), got 1 (on the command line)"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: must be at least 0, got -1 (on the command line)"),
        ("optimizer.decay=bias", 'optimizer.decay: must be one of weights, all, got "bias" (on the command line)'),
        ("loss.label_smoothing=1", "loss.label_smoothing: must be in [0, 1), got 1 (on the command line)"),
        ("regime.base.size_px=0", "regime.base.size_px: must be at least 1, got 0 (on the command line)"),
        ("regime.base.batch_size=-4", "regime.base.batch_size: must be at least 1, got -4 (on the command line)"),
        ("regime.batch_multiple=0", "regime.batch_multiple: must be at least 1, got 0 (on the command line)"),
        ("evaluation.sizes=[]", "evaluation.sizes: must not be empty, got [] (on the command line)"),
        ("evaluation.sizes=[16, true]", "evaluation.sizes.1: must be a whole number, got true (on the command line)"),
        ("evaluation.sizes=[16, 16]", "evaluation.sizes: lists a size twice, got [16, 16] (on the command line)"),
        ("evaluation.sizes=16", "evaluation.sizes: must be a list, got 16 (on the command line)"),
        ("evaluation.sizes.0=16", "evaluation.sizes: is a list, give it as a whole (on the command line)"),
        ("data.mean=[0.5, 0.5, 125]", "data.mean.2: must be in [0, 1], got 125 (on the command line)"),
        ("data.mean=[0, 0, 0, 0]", "data.mean: must have at most 3 entries, got [0, 0, 0, 0] (on the command line)"),
        ("data.std=[0, 0.2, 0.2]", "data.std.0: must be in (0, 1], got 0 (on the command line)"),
        ("data.augment.cutout_px=-1", "data.augment.cutout_px: must be at least 0, got -1 (on the command line)"),
        ("data.augment.policy=cifar", "data.augment.policy: must be one of none, cifar10, got \"cifar\""
         " (on the command line); did you mean cifar10?"),
        ("optimizer.train=head", "optimizer.train: must be one of all, head_and_batch_norm, got \"head\""
         " (on the command line)"),
        ("optimizer.train=head_and_batch_norm", "optimizer.train: leaves random weights as they are: give"
         " model.checkpoint, or model.pretrained=true, got \"head_and_batch_norm\" (on the command line)"),
        ("data.augment.padding=-1", "data.augment.padding: must be at least 0, got -1 (on the command line)"),
        ("data.augment.flip=yes", 'data.augment.flip: must be true or false, got "yes" (on the command line)'),
        ("data.eval_transform={name: center_crop, fraction: 0}",
         "data.eval_transform.fraction: must be in (0, 1], got 0 (on the command line)"),
        ("data.train=", "data.train: no value after '=' (on the command line); write data.train=null for the default"),
        ("data.train=''", 'data.train: must not be empty, got "" (on the command line)'),
        ("name=5", "name: must be text, got 5 (on the command line)"),
        ("model=5", "model: must be a mapping, got 5 (on the command line)"),
        ("regime=5", "regime: must be a mapping, got 5 (on the command line)"),
        ("model.kwargs=5", "model.kwargs: must be a mapping, got 5 (on the command line)"),
        ("model.kwargs.a=[1]",
         "model.kwargs.a: must be a number, text, true or false, got [1] (on the command line)"),
        ("model.kwargs.a=.inf", "model.kwargs.a: must be a finite number, got Infinity (on the command line)"),
        ("model.kwargs.num_classes=3",
         "model.kwargs.num_classes: cannot be given here: set model.num_classes, got 3 (on the command line)"),
        ("precision=bf16", "precision: must be one of fp32, amp_bf16, amp_fp16, got \"bf16\" (on the command line);"
         " did you mean amp_bf16?"),
        ("optimizer.name=adam", 'optimizer.name: must be one of sgd, adamw, got "adam" (on the command line);'
         " did you mean adamw?"),
        ("regime.mode=b+",
         'regime.mode: must be one of fixed, B+, D+, table, progressive, got "b+" (on the command line)'),
        ("schedule.name=[1]", "schedule.name: must be one of multistep, cosine, one_cycle, constant, got [1]"
         " (on the command line)"),
        ("output.save_every=0",
         "output.save_every: must be a whole number of epochs ('1ep') or of batches ('500ba'), or never, "
         "got 0 (on the command line)"),
        ("loader.prefetch=0", "loader.prefetch: must be at least 1, got 0 (on the command line)"),
    ],
)  # fmt: skip
def test_a_faulty_override_of_a_good_recipe_gives_one_line(item, line):
    assert refusal(RESNET, item) == [line]


@pytest.mark.parametrize("value", ["2h", "200", "0ep", "-1ep", "1.5ep", "ep", "2 ep", "2epochs", "[2ep]", "true"])
def test_a_duration_has_one_of_three_units(value):
    (line,) = refusal(RESNET, f"max_duration={value}")
    assert line.startswith(
        "max_duration: must be a whole number of epochs ('90ep'), of batches ('500ba') or of seconds ('600sec'); there "
        "is no other unit, got "
    )
    assert compose([RESNET, "max_duration=500ba"]).duration == (500, "ba")


def test_a_length_in_seconds_takes_schedules_that_need_no_epochs():
    for items in (
        ["schedule.name=one_cycle"],
        ["schedule.name=cosine"],
        ["schedule={name: constant, warmup_epochs: 1}"],
    ):
        assert compose([RESNET, *items, "max_duration=600sec"]).duration == (600, "sec")
    (line,) = refusal(RESNET, "max_duration=600sec")
    assert line.startswith(
        "schedule.name: has milestones in epochs, of which max_duration 600sec has no known number; "
    )
    (line,) = refusal(RESNET, "max_duration=600sec", "schedule={name: cosine, warmup_epochs: 5}")
    assert line.startswith("schedule.warmup_epochs: is in epochs, of which max_duration 600sec has no known number; ")
    (line,) = refusal(RESNET, "output.save_every=600sec")
    assert line.startswith("output.save_every: must be a whole number of epochs")


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ("regime.sizes=s28", "regime.sizes: has no effect with mode: fixed, only with B+, D+"),
        ("regime.rounding=pow2", "regime.rounding: has no effect with mode: fixed, only with B+, D+, progressive"),
        ("regime.choices=[]", "regime.choices: has no effect with mode: fixed, only with table"),
        ("regime.draw=epoch", "regime.draw: has no effect with mode: fixed, only with B+, D+, table"),
        ("optimizer.betas=[0.9, 0.99]", "optimizer.betas: has no effect with name: sgd, only with adamw"),
        ("schedule.final_factor=0",
         "schedule.final_factor: has no effect with name: multistep, only with cosine, one_cycle"),
        ("data.augment.scale=[0.1, 1.0]",
         "data.augment.scale: has no effect with name: pad_crop, only with random_resized_crop"),
        ("data.eval_transform.fraction=0.5",
         "data.eval_transform.fraction: has no effect with name: resize, only with center_crop"),
    ],
)  # fmt: skip
def test_a_key_of_another_variant_is_refused_with_the_variants_that_take_it(item, line):
    assert refusal(RESNET, item) == [f"{line} (on the command line)"]


def test_each_mixed_mode_refuses_the_other_modes_keys(write):
    assert refusal(*MIXED, "regime.choices=[]") == [
        "regime.choices: has no effect with mode: B+, only with table (on the command line)"
    ]
    table = "regime={mode: table, choices: [{size_px: 8, batch_size: 4, share: 1}], rounding: pow2}"
    assert refusal(RESNET, table) == [
        "regime.rounding: has no effect with mode: table, only with B+, D+, progressive (on the command line)"
    ]
    assert refusal(RESNET, "schedule={name: cosine, milestones: [1]}") == [
        "schedule.milestones: has no effect with name: cosine, only with multistep (on the command line)"
    ]


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ("{32: 0.5, 16: 0.4}", 'regime.sizes: shares must sum to 1, they sum to 0.9, got {"32": 0.5, "16": 0.4}'),
        ("{32: 0.5, 16: 0.500002}", "regime.sizes: shares must sum to 1, they sum to 1.000002, got"
         ' {"32": 0.5, "16": 0.500002}'),
        ("{0: 0.5, 16: 0.5}", "regime.sizes.0: the size in pixels must be at least 1"),
        ("{a: 1}", "regime.sizes.a: the size in pixels must be a whole number"),
        ("{1.5: 1}", "regime.sizes.1.5: the size in pixels must be a whole number"),
        ("{32: 1.5}", "regime.sizes.32: must be in (0, 1], got 1.5"),
        ("{32: 0, 16: 1}", "regime.sizes.32: must be in (0, 1], got 0"),
        ("{}", "regime.sizes: must not be empty, got {}"),
        ("7", "regime.sizes: must be one of s28, s144, s208, s224, or a mapping of pixels to shares, got 7"),
    ],
)  # fmt: skip
def test_faulty_sizes(sizes, line):
    assert refusal(*MIXED, f"regime.sizes={sizes}") == [f"{line} (on the command line)"]


@pytest.mark.parametrize("key", ["~", "null", "#"])
def test_a_key_that_means_null_in_yaml_is_refused_by_its_place(key):
    assert refusal(*MIXED, f"regime.sizes.{key}=0.5") == [
        "regime.sizes.None: the size in pixels must be a whole number (on the command line)"
    ]
    (line,) = refusal(*MIXED, f"model.kwargs.{key}=1")
    assert line.startswith("model.kwargs.None: the name must be text")


def test_shares_need_only_sum_to_one_within_a_millionth():
    shares = compose([*MIXED, "regime.sizes={32: 0.3333333, 24: 0.3333333, 16: 0.3333333}"]).regime.sizes
    assert list(shares) == [32, 24, 16]


def test_an_unknown_size_table_suggests_the_nearest():
    (line,) = refusal(*MIXED, "regime.sizes=s29")
    assert line.endswith('got "s29" (on the command line); did you mean s28?')


def test_faulty_rows_of_a_table_are_named_by_their_position():
    rows = "[{size_px: 32, batch_size: 64, share: 0.5}, {size_px: 0, batch_size: 64, shares: 0.5}]"
    assert refusal(RESNET, "regime.mode=table", f"regime.choices={rows}") == [
        "regime.choices.1.size_px: must be at least 1, got 0 (on the command line)",
        "regime.choices.1.share: missing from the list (on the command line)",
        "regime.choices.1.shares: unknown key (on the command line); did you mean regime.choices.1.share?",
    ]
    half = "[{size_px: 32, batch_size: 64, share: 0.5}]"
    (line,) = refusal(RESNET, "regime.mode=table", f"regime.choices={half}")
    assert line.startswith("regime.choices: shares must sum to 1, they sum to 0.5, got ")
    assert refusal(RESNET, "regime.mode=table") == ["regime.choices: required, but no item gives it"]


def test_sizes_and_batches_must_be_multiples_where_the_recipe_asks_for_it():
    assert refusal(RESNET, "regime.stride=7") == [
        "regime.base.size_px: size 32 px is no multiple of regime.stride 7, got 32"
        " (in packaged recipe cifar10/resnet44)"
    ]
    assert refusal(RESNET, "regime.batch_multiple=7") == [
        "regime.base.batch_size: batch of 64 is no multiple of regime.batch_multiple 7, got 64"
        " (in packaged recipe cifar10/resnet44)"
    ]
    assert refusal(*MIXED, "regime.stride=5")[0].startswith("regime.base.size_px: size 32 px is no multiple")
    assert refusal(*MIXED, "regime.stride=8", "regime.sizes={32: 0.5, 20: 0.5}") == [
        "regime.sizes.20: size 20 px is no multiple of regime.stride 8, got 0.5 (on the command line)"
    ]
    rows = "[{size_px: 32, batch_size: 6, share: 1.0}]"
    assert refusal(RESNET, "regime.mode=table", "regime.batch_multiple=4", f"regime.choices={rows}") == [
        "regime.choices.0.batch_size: batch of 6 is no multiple of regime.batch_multiple 4, got 6 (on the command line)"
    ]


@pytest.mark.parametrize(
    ("items", "line"),
    [
        (["schedule.milestones=[81, 122]"], "schedule.factors: must have one factor for each of the 2 milestones,"
         " has 3, got [0.1, 0.01, 0.001] (in packaged recipe cifar10/resnet44)"),
        (["schedule.milestones=[81, 81, 90]"],
         "schedule.milestones: must increase, got [81, 81, 90] (on the command line)"),
        (["schedule.warmup_epochs=82"],
         "schedule.warmup_epochs: must end by the first milestone, epoch 81, got 82 (on the command line)"),
        (["schedule={name: cosine, warmup_epochs: 2}", "max_duration=2ep"],
         "schedule.warmup_epochs: must be below max_duration, 2ep, got 2 (on the command line)"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"],
         "optimizer.nesterov: needs optimizer.momentum above 0, got true (on the command line)"),
        (["model.pretrained=true", "model.checkpoint=x.pt"],
         "model.checkpoint: give either model.pretrained: true or a checkpoint, not both, got \"x.pt\""
         " (on the command line)"),
        (["data.augment={name: random_resized_crop, scale: [0.5, 0.1]}"],
         "data.augment.scale: must be [lowest, highest], got [0.5, 0.1] (on the command line)"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other(items, line):
    assert refusal(RESNET, *items) == [line]


def test_missing_keys_are_all_listed():
    keys = [line.partition(":")[0] for line in refusal("regime/s28_bplus")]
    assert keys == [
        "name",
        "max_duration",
        "model.name",
        "data.train",
        "data.eval",
        "data.augment.name",
        "data.eval_transform.name",
        "regime.base.size_px",
        "regime.base.batch_size",
        "optimizer.name",
        "optimizer.lr",
        "schedule.name",
        "evaluation.sizes",
    ]
    assert refusal(RESNET, "optimizer=null") == [
        "optimizer.name: required, but no item gives it; it is one of sgd, adamw",
        "optimizer.lr: required, but no item gives it",
    ]
    assert refusal(RESNET, "optimizer=null", "optimizer.lr=0.1") == [
        "optimizer.name: required, but no item gives it; it is one of sgd, adamw"
    ]
    assert refusal(RESNET, "optimizer.name=null") == [
        "optimizer.name: required, but no item gives it; it is one of sgd, adamw"
    ]
    assert [line.partition(":")[0] for line in refusal()] == keys


def test_all_faults_are_listed_with_the_item_that_gave_each(write):
    file = write("seed: yes\noptimizer: {lr: -1}\n")
    assert refusal(RESNET, file, "optimizer.momentum=2") == [
        f'seed: must be a whole number, got "yes" (in {file})',
        f"optimizer.lr: must be greater than 0, got -1 (in {file})",
        "optimizer.momentum: must be in [0, 1), got 2 (on the command line)",
    ]


def test_a_replaced_value_is_blamed_on_the_item_that_replaced_it(write):
    file = write("regime: {sizes: {40: 2.0}}\n")
    assert refusal(*MIXED, "regime.sizes.40=0.5", file) == [f"regime.sizes.40: must be in (0, 1], got 2.0 (in {file})"]


def test_long_values_are_cut():
    (line,) = refusal(RESNET, f"seed={'x' * 500}")
    assert len(line) < 140


# ---- items that cannot be read ----


@pytest.mark.parametrize(
    ("item", "ending"),
    [
        ("resnet44", "did you mean cifar10/resnet44 or cifar100/resnet44?"),
        ("densenet169", "did you mean imagenet/densenet169?"),
        ("cifar10/resnet4", "did you mean cifar10/resnet44?"),
        ("regime/s28_bpls", "did you mean regime/s28_bplus?"),
        ("dem", "did you mean demo?"),
        ("cifar100", "is a folder of packaged recipes: cifar100/resnet44, cifar100/wrn28_10"),
        ("../recipes/demo", "did you mean demo?"),
        ("zzzzzz", f"the packaged recipes are {', '.join(packaged_recipes())}"),
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


def test_the_faults_of_all_items_are_listed_before_anything_is_checked(write):
    file = write("a: [")
    lines = refusal("none.yaml", "zzzzzz", file, "=3", "seed=x")
    assert [line.split(":")[0] for line in lines] == ["none.yaml", "'zzzzzz'", file, "'=3' on the command line"]


@pytest.mark.parametrize("item", ["=3", "a..b=3", ".a=3", "a.=3", "a b=3"])
def test_a_malformed_override_says_how_one_is_written(item):
    assert refusal(RESNET, item) == [f"{item!r} on the command line: an override is written dotted.key=value"]


@pytest.mark.parametrize("value", ["[1", "{a: 1", "'", "a: b: c", "!!python/name:os.system x", "*a"])
def test_an_override_that_is_no_yaml_names_its_key(value):
    (line,) = refusal(RESNET, f"optimizer.lr={value}")
    assert line.startswith(f"optimizer.lr: {value!r} is not a YAML value: line 1: ")
    assert line.endswith("(on the command line)")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; a recipe is a mapping of keys to values"),
        ("# only a comment\n", "is empty; a recipe is a mapping of keys to values"),
        ("- seed\n", "a recipe is a mapping of keys to values, this is a list"),
        ("seed\n", "a recipe is a mapping of keys to values, this is a str"),
        ("seed: 1\nseed: 2\n", "line 2: key 'seed' is given twice"),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "line 3: key 'lr' is given twice"),
        ("regime: {sizes: {32: 0.5, 32: 0.5}}\n", "line 1: key '32' is given twice"),
        ("seed: 1\n---\nseed: 2\n", "line 2: expected a single document in the stream, but found another document"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor for the tag"),
        ("seed: !!timestamp x\n", "line 1: could not determine a constructor for the tag"),
        ("\n\nseed: !!int x\n", "line 3: this is no whole number"),
        (f"seed: {'9' * 5000}\n", "line 1: this is no whole number"),
        ("seed: [1\n", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\tb: 1\n", "line 2: found character '\\t' that cannot start any token"),
        ("a: \0\n", "unacceptable character"),
        ("? [a]\n: 1\n", "line 1: found unhashable key"),
        ("a: &a [*a]\n", "an alias refers to the value that holds it"),
        ("a: &a {b: *a}\n", "an alias refers to the value that holds it"),
        ("[" * 1000, "line 1: is nested too deeply"),
        ("a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in ["ab", "bc", "cd", "de", "ef", "fg"]
         ), "holds more than 2000 values"),
        (b"name: \xff\n", "is not UTF-8 text (byte 6)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused_by_name(write, text, complaint):
    file = write(text)
    (line,) = refusal(RESNET, file)
    assert line.startswith(f"{file}: {complaint}")


def test_a_directory_or_an_unreadable_file_is_refused(tmp_path, write):
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert refusal(str(folder)) == [f"{folder}: is a directory, not a recipe file"]
    assert refusal(str(tmp_path)) == [f"{str(tmp_path)!r}: is a directory, not a recipe file"]
    loop = tmp_path / "loop.yaml"
    os.symlink(loop, loop)
    (line,) = refusal(str(loop))
    assert line.startswith(f"{loop}: cannot be read: ")
    (line,) = refusal("a\0b.yaml")
    assert "cannot be read" in line


def test_anchors_merge_keys_and_a_byte_order_mark_are_read(write):
    file = write(b"\xef\xbb\xbfloader: &l {threads: 3}\nevaluation: {sizes: &s [16, 20]}\nloss: {}\n")
    recipe = compose([RESNET, file, write("output: {<<: {folder: a, save_every: 3ep}, folder: b}", "y.yaml")])
    assert recipe.loader.threads == 3
    assert (recipe.output.folder, recipe.output.save_every) == ("b", "3ep")


def test_keys_that_are_no_text_are_unknown(write):
    file = write("5: 1\nloss: {7: 1}\n")
    lines = refusal(RESNET, file)
    assert lines[0].startswith("loss.7: unknown key")
    assert lines[1].startswith("5: unknown key")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001), ("1E5", 100000.0), ("+1.5e+3", 1500.0), (".5", 0.5), ("5.", 5.0), ("1_000", 1000),
        ("-3", -3), ("true", True), ("False", False), ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"),
        ("y", "y"), ("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("0x10", "0x10"), ("=", "="),
        ("1e", "1e"), ("e4", "e4"), ("'1e-4'", "1e-4"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2_reads_them(text, value):
    read = compose([RESNET, f"model.kwargs.x={text}"]).model.kwargs["x"]
    assert (read, type(read)) == (value, type(value))


def test_a_string_in_place_of_a_sequence_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="'demo'"):
        compose("demo")


# ---- the schema itself ----


def test_every_key_is_described():
    for path in schema.all_keys():
        for section in schema.sections_at(path[:-1]):
            field = section.model_fields.get(path[-1])
            assert field is None or field.description, f"{section.__name__}.{path[-1]}"


def test_no_key_is_typed_as_a_bare_container_or_as_anything():
    def leaves(annotation):
        parts = get_args(annotation)
        return [leaf for part in parts for leaf in leaves(part)] if parts else [annotation]

    for path in schema.all_keys():
        for section in schema.sections_at(path[:-1]):
            field = section.model_fields.get(path[-1])
            assert field is None or not {Any, object, dict, list, tuple} & set(leaves(field.annotation)), path


def test_recipes_are_frozen():
    recipe = compose([RESNET])
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.optimizer.lr = 3.0


def test_a_written_recipe_is_read_by_other_yaml_readers():
    assert yaml.safe_load(to_yaml(compose(MIXED)))["regime"]["sizes"] == "s28"


def test_a_line_break_of_old_machines_is_written_so_that_it_is_read_back(write):
    recipe = compose([RESNET, r'data.train="a\x85b.beton"'])
    assert recipe.data.train == "a\x85b.beton"
    assert compose([write(to_yaml(recipe), "whole.yaml")]) == recipe


def test_phases_or_a_ramp_make_a_progressive_regime():
    phases = "regime={mode: progressive, phases: [{size_px: 16, epochs: 2, lr_factor: 0.5}, {size_px: 32, epochs: 1}]}"
    regime = compose([RESNET, phases, "regime.batch_norm=reset"]).regime
    assert [(phase.size_px, phase.epochs, phase.lr_factor) for phase in regime.phases] == [(16, 2, 0.5), (32, 1, 1.0)]
    assert compose([RESNET, "regime={mode: progressive, ramp: {start_px: 16, end_px: 32, end_epoch: 4}}"]).regime.ramp
    assert refusal(RESNET, "regime.mode=progressive")[0].startswith("regime: needs either regime.phases or regime.ramp")
    frozen = refusal(RESNET, phases, "regime.batch_norm=freeze")
    assert frozen[0].startswith("regime.freeze_steps: must be at least 1 with regime.batch_norm freeze")
    misspelt = "regime={mode: progressive, phases: [{size: 16, epochs: 2}]}"
    assert "regime.phases.0.size: unknown key (on the command line); did you mean regime.phases.0.size_px?" in refusal(
        RESNET, misspelt
    )


def test_another_network_drops_the_arguments_of_the_one_before(write):
    assert compose([RESNET]).model.kwargs == {"zero_init_last": True}
    assert compose([RESNET, "model.name=wrn28_10"]).model.kwargs == {}
    assert compose([RESNET, "model.name=cifar_resnet44"]).model.kwargs == {"zero_init_last": True}
    assert compose([RESNET, "model.name=wrn28_10", "model.kwargs.drop_rate=0.1"]).model.kwargs == {"drop_rate": 0.1}
    file = write("model: {kwargs: {drop_rate: 0.2}, name: wrn28_10}", "network.yaml")
    assert compose([RESNET, file]).model.kwargs == {"drop_rate": 0.2}
    assert compose([RESNET, write("model: {name: wrn28_10}", "other.yaml")]).model.kwargs == {}
