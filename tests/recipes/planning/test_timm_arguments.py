"""``mixsize plan --as timm``: against arguments written by hand, and against what timm makes of them."""

from __future__ import annotations

import argparse
import shlex

import pytest
import timm
import torch
from timm.data.scheduled_sampler import ScheduledBatchSampler
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ParseKwargs

from mixsize.cli import main
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.optimizer import build_optimizer
from mixsize.recipes.models.weights import save_weights
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.planning.schedule import build_schedule

#: Options of timm's train.py, which no wheel holds: with one number, several, one text, several, and none.
NUMBER = [
    "--num-classes", "--img-size", "--crop-pct", "--batch-size", "--validation-batch-size", "--lr", "--weight-decay",
    "--momentum", "--opt-eps", "--epochs", "--warmup-epochs", "--warmup-lr", "--min-lr", "--decay-rate", "--hflip",
    "--color-jitter", "--smoothing", "--seed", "--workers", "--val-interval", "--drop", "--drop-path", "--drop-block",
    "--bn-momentum", "--bn-eps", "--in-chans", "--train-size-schedule-spread", "--train-size-random-mix", "--mixup",
    "--cutmix", "--mixup-prob", "--mixup-switch-prob", "--bce-target-thresh", "--reprob", "--layer-decay",
    "--clip-grad", "--model-ema-decay", "--decay-epochs",
]  # fmt: skip
NUMBERS = [
    "--mean", "--std", "--scale", "--ratio", "--opt-betas", "--decay-milestones", "--train-img-sizes",
    "--train-batch-sizes", "--train-size-probs",
]  # fmt: skip
TEXT = [
    "--model", "--initial-checkpoint", "--opt", "--sched", "--interpolation", "--train-interpolation", "--amp-dtype",
    "--device", "--output", "--experiment", "--train-size-schedule", "--gp", "--aa", "--remode",
    "--variable-batch-loss-scale",
]  # fmt: skip
TEXTS = ["--device-modules"]
FLAGS = [
    "--pretrained", "--channels-last", "--amp", "--sched-on-updates", "--warmup-prefix", "--no-aug", "--bce-loss",
    "--bce-sum", "--model-ema",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option in NUMBER:
        parser.add_argument(option, type=float)
    for option in NUMBERS:
        parser.add_argument(option, type=float, nargs="+")
    for option in TEXT:
        parser.add_argument(option)
    for option in TEXTS:
        parser.add_argument(option, nargs="+")
    for option in FLAGS:
        parser.add_argument(option, action="store_true")
    for option in ("--model-kwargs", "--opt-kwargs"):
        parser.add_argument(option, nargs="*", default={}, action=ParseKwargs)
    parser.add_argument("--torchcompile", nargs="?", const="inductor")
    parser.set_defaults(momentum=0.9)
    return parser


@pytest.fixture
def told(capsys, monkeypatch):
    """Runs the command; returns its words behind the script's name, and the lines on stderr."""

    def run(*items, ranks=1):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        assert main(["plan", *items, "--as", "timm"]) == 0
        captured = capsys.readouterr()
        words = shlex.split(captured.out.replace("\\\n", ""))
        return words[words.index("train.py") + 1 :], captured.err.splitlines()

    return run


IMAGENET = ["imagenet/resnet50", "evaluation.sizes=[224]"]
SMALL = [*IMAGENET, "model={name: resnet14t}"]


def test_a_recipe_of_several_sizes_as_written_by_hand(told):
    words, lines = told(*IMAGENET, "regime/s144_bplus", "regime.rounding=pow2", "smoothing=null", ranks=4)
    # S(144): shares .1, .1, .6, .2 of the samples. Steps: .1 / 256, .1 / 256, .6 / 1024, .2 / 2048 of each sample, that
    # is 4 : 4 : 6 : 1 of 15. The mean batch is 2048 / 3, and the rate 0.1 * 2048 / 768.
    assert words == shlex.split(
        "--model resnet50 --num-classes 1000 --model-kwargs zero_init_last=True"
        " --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --train-interpolation bilinear"
        " --scale 0.08 1.0 --ratio 0.75 1.3333 --hflip 0.5 --color-jitter 0.0"
        " --img-size 224 --batch-size 64"
        " --train-img-sizes 256 224 128 96 --train-batch-sizes 64 64 256 512"
        " --train-size-probs 0.266667 0.266667 0.4 0.066667"
        " --opt momentum --momentum 0.9 --lr 0.26666666666666666 --weight-decay 0.0001"
        " --sched multistep --decay-milestones 30 60 80 --decay-rate 0.1 --epochs 90 --warmup-epochs 0 --warmup-lr 0.0"
        " --sched-on-updates --smoothing 0.0"
        " --interpolation bilinear --crop-pct 0.875 --validation-batch-size 64 --val-interval 1"
        " --amp --amp-dtype bfloat16 --channels-last --seed 17 --output runs --experiment imagenet-resnet50"
    )
    assert [line.partition(";")[0] for line in lines] == [
        "timm approximates:",
        "  regime.sizes: timm draws the steps of each size by their share, once for all epochs",
        "timm cannot express:",
        "  data.train: data/imagenet/train.beton is no source of timm's",
    ]


def test_a_rate_that_follows_pixels_is_named(told):
    for follows, named in {"epochs": False, "pixels": True}.items():
        _, lines = told("imagenet/resnet50", f"schedule={{name: cosine, follows: {follows}}}")
        assert any(line.startswith("  schedule.follows: pixels") for line in lines) == named


def test_what_timm_cannot_express_is_named_by_its_key(told, tmp_path):
    save_weights(timm.create_model("cifar_resnet44", num_classes=10), tmp_path / "a.safetensors")
    _, lines = told(
        "cifar10/resnet44", "regime/s28_dplus", "calibration={batches: 3}", "data.augment.cutout_px=8",
        "data.augment.policy=cifar10", "schedule.factors=[0.5, 0.1, 0.01]", "max_duration=1000ba",
        "optimizer.train=head_and_batch_norm", f"model.checkpoint={tmp_path}/a.safetensors", "microbatch_images=32",
    )  # fmt: skip
    missing = lines[lines.index("timm cannot express:") + 1 :]
    assert [line.partition(":")[0].strip() for line in missing] == [
        "data.train", "data.augment.policy", "data.augment.padding", "data.augment.cutout_px", "regime",
        "schedule.factors", "evaluation.sizes", "microbatch_images", "optimizer.train", "smoothing", "calibration",
    ]  # fmt: skip
    assert "up to 4 duplicates" in missing[4]
    assert missing[7] == "  microbatch_images: 32"
    approximated = lines[1 : lines.index("timm cannot express:")]
    assert [line.partition(":")[0].strip() for line in approximated] == [
        "model.name", "model.checkpoint", "data.augment.name", "regime.sizes", "max_duration",
        "data.eval_transform.name",
    ]  # fmt: skip
    assert "max_duration: 1000ba are 1.282 epochs" in approximated[4]  # 780 steps of 64 of 50,000 images in four sizes.


def test_strong_training_as_written_by_hand(told):
    words, lines = told(
        *SMALL, "regime/s144_bplus", "smoothing=null", "mixing={mixup: 0.1, cutmix: 1.0, prob: 0.8}",
        "loss={name: bce, target_threshold: 0.2, label_smoothing: 0.1}",
        "optimizer={name: timm, opt: lamb, lr: 0.008, clip_norm: 1.0, lr_scaling: sqrt_by_step}",
        "data.augment.policy=rand-m9-n3-mstd0.5-inc1", "data.augment.magnitude=6", "data.augment.erasing=0.25",
        "algorithms={ema: {half_life: 100ba}, blurpool: {}}",
    )  # fmt: skip
    given = " ".join(words)
    for expected in (
        "--aa rand-n3-mstd0.5-inc1-m6 --color-jitter 0.0 --reprob 0.25 --remode const",
        "--variable-batch-loss-scale sqrt --opt lamb",
        "--clip-grad 1.0",
        "--smoothing 0.1 --bce-loss --bce-target-thresh 0.2 --mixup 0.1 --cutmix 1.0 --mixup-prob 0.8",
        f"--model-ema --model-ema-decay {0.5**0.01}",
    ):
        assert expected in given
    parser().parse_args(words)
    missing = [line.partition(":")[0].strip() for line in lines[lines.index("timm cannot express:") + 1 :]]
    assert missing == ["data.train", "algorithms.blurpool"]


def test_a_magnitude_by_size_and_jitter_beside_a_policy_are_not_timms(told):
    _, lines = told(
        *SMALL,
        "data.augment.policy=rand-m9",
        "data.augment.magnitude={128: 5, 224: 9}",
        "data.augment.color_jitter=0.4",
    )
    missing = [line.partition(":")[0].strip() for line in lines[lines.index("timm cannot express:") + 1 :]]
    assert missing == ["data.train", "data.augment.magnitude", "data.augment.color_jitter"]


def test_networks_of_this_package_are_imported_by_timms_script(told):
    words, _ = told("cifar10/resnet20")
    module = parser().parse_args(words).device_modules
    assert module == ["mixsize.recipes.models.networks"]


def test_phases_are_timms_progressive_sizes(told):
    words, lines = told(*SMALL, "regime/progressive", "regime.batch_multiple=8")
    args = parser().parse_args(words)
    sizes, batches = args.train_img_sizes, args.train_batch_sizes
    assert (sizes, batches) == ([128, 192, 224], [512, 256, 256])
    assert args.train_size_schedule == "progressive"
    sampler = ScheduledBatchSampler(
        range(12800), [int(batch) for batch in batches], choice_schedule="progressive", schedule_epochs=90,
        schedule_spread=args.train_size_schedule_spread, schedule_random_mix=args.train_size_random_mix,
    )  # fmt: skip
    drawn = [{choice for choice, _ in sampler._create_schedule(epoch)} for epoch in range(90)]
    assert all(len(choices) == 1 for choices in drawn)
    # The words say so: the first and the last half as long as the one between.
    assert [sum(choices == {index} for choices in drawn) for index in range(3)] == pytest.approx(
        [22.5, 45, 22.5], abs=1
    )
    told_of = {line.partition(":")[0].strip() for line in lines}
    assert {"regime.phases", "regime.phases[].lr_factor", "regime.warmup_epochs"} <= told_of


SCHEDULES = [
    "{name: cosine, warmup_epochs: 3.0, final_factor: 0.1}",
    "{name: cosine}",
    "{name: one_cycle, peak_fraction: 0.25, start_factor: 0.2, final_factor: 0.05}",
    "{name: constant, warmup_epochs: 2.0}",
    "{name: multistep, milestones: [6, 9], factors: [0.2, 0.04], warmup_epochs: 1.0}",
    "{name: step, every_epochs: 2.44, factor: 0.9, warmup_epochs: 3.0}",
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timms_learning_rate_is_the_recipes_at_every_step(schedule, told):
    epochs, updates = 12, 10
    items = [*SMALL, f"schedule={schedule}", f"max_duration={epochs}ep"]
    words, _ = told(*items)
    args = parser().parse_args(words)
    expected = build_schedule(compose(items), epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler, length = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    assert length == epochs
    for step in range(epochs * updates):
        scheduler.step_update(step)
        if "multistep" in schedule and step + 1 in (60, 90):
            continue  # timm steps down one update early.
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * expected(step / updates), abs=1e-9), step


@pytest.mark.parametrize(
    "optimizer",
    [
        "{name: sgd, lr: 0.1, momentum: 0.8, nesterov: true, weight_decay: 0.001}",
        "{name: sgd, lr: 0.1, momentum: 0.8, weight_decay: 0.001, decay: all}",
        "{name: adamw, lr: 0.1, weight_decay: 0.01, betas: [0.8, 0.9], eps: 1.0e-6}",
        "{name: timm, opt: lamb, lr: 0.1, weight_decay: 0.01, kwargs: {always_adapt: true}}",
    ],
)
def test_timms_optimiser_takes_the_recipes_steps(optimizer, told):
    items = [*SMALL, f"optimizer={optimizer}"]
    recipe = compose(items)
    args = parser().parse_args(told(*items)[0])
    networks = []
    for make in (
        lambda network: build_optimizer(recipe.optimizer, network, build_regime(recipe, 32, 1)),
        lambda network: create_optimizer_v2(network, **optimizer_kwargs(cfg=args), **args.opt_kwargs),
    ):
        torch.manual_seed(0)
        network = timm.create_model("resnet14t", num_classes=3)
        updater = make(network)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            updater.step()
        networks.append(network)
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(theirs, ours)


def test_the_arguments_of_create_model_that_the_script_gives_itself_have_their_own_options(told):
    items = [
        *IMAGENET,
        "model.name=resnet14t",
        "model.kwargs={drop_path_rate: 0.1, output_stride: 16, act_layer: gelu}",
    ]
    args = parser().parse_args(told(*items)[0])
    assert args.drop_path == 0.1
    assert args.model_kwargs == {"output_stride": 16, "act_layer": "gelu"}


@pytest.mark.parametrize("name", ["cifar100/wrn28_10", "imagenet/efficientnet_b0"])
def test_packaged_recipes_give_options_that_timms_script_has(name, told):
    words, lines = told(name)
    parser().parse_args(words)
    assert lines
    assert not any("PydanticUndefined" in line for line in lines)


def test_options_that_exclude_it_are_refused(capsys):
    assert main(["plan", "cifar10/resnet20", "--as", "timm", "--json"]) == 2
    assert "--as timm: prints a command alone" in capsys.readouterr().err
    assert main(["plan", "cifar10/resnet20", "--as", "timm", "data.normalization=file"]) == 2
    assert "data.normalization: file, and there is no file data/cifar10/train.beton" in capsys.readouterr().err
