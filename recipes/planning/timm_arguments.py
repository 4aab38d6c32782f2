"""A recipe in the arguments of timm's own ``train.py``, and what of it they cannot say.

Each function below reads one part of the recipe. A key that none of them reads, and that has another value than its
default, is named as missing: a new key needs no line here until timm has an argument for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import timm

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.recipes.config import schema
from mixsize.recipes.config.optimisation import AdamW, BinaryCrossEntropy, Optimizer, Sgd, TimmOptimizer
from mixsize.recipes.config.section import Section
from mixsize.recipes.models import networks
from mixsize.recipes.models.optimizer import learning_rate

#: Keys, or sections, that the functions below read.
_READ = (
    "algorithms",
    "channels_last",
    "data.augment",
    "data.eval",
    "data.eval_transform",
    "data.mean",
    "data.normalization",
    "data.std",
    "data.train",
    "device",
    "evaluation",
    "execution.network",
    "loader.interpolation",
    "loader.num_workers",
    "loss",
    "max_duration",
    "mixing",
    "model",
    "name",
    "optimizer.betas",
    "optimizer.clip_norm",
    "optimizer.decay",
    "optimizer.eps",
    "optimizer.kwargs",
    "optimizer.layer_decay",
    "optimizer.lr",
    "optimizer.lr_scaling",
    "optimizer.momentum",
    "optimizer.name",
    "optimizer.nesterov",
    "optimizer.opt",
    "optimizer.weight_decay",
    "output.folder",
    "precision",
    "regime",
    "schedule",
    "seed",
)
#: Keys without a say over what is trained.
_ASIDE = ("data.classes", "data.train_images", "execution.preflight", "loader", "output", "progress_bar")
#: What is missing with some sections, in place of their keys.
_MISSING = {
    "smoothing": "gradients are not scaled to the running average of their norm",
    "calibration": "batch-norm statistics are not measured at the size of the evaluation",
}
#: Arguments of timm.create_model that its script gives by itself.
_OF_THE_SCRIPT = {
    "drop_rate": "--drop",
    "drop_path_rate": "--drop-path",
    "drop_block_rate": "--drop-block",
    "global_pool": "--gp",
    "in_chans": "--in-chans",
    "bn_momentum": "--bn-momentum",
    "bn_eps": "--bn-eps",
}


@dataclass
class TimmArguments:
    """A recipe as timm's training script takes it.

    Attributes:
        arguments: each option with its values, in the order of the recipe.
        approximated: what the script does almost as the recipe says, a line each, by recipe key.
        missing: what it cannot do, a line each, by recipe key.
    """

    arguments: list[tuple[str, ...]] = field(default_factory=list)
    approximated: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, option: str, *values: object) -> None:
        """Append an option; floats are written in full precision."""
        self.arguments.append((option, *map(str, values)))


def timm_arguments(recipe: schema.Recipe, regime: Regime | Progression, epochs: float, ranks: int) -> TimmArguments:
    """Express a recipe by the arguments of timm's ``train.py`` (timm 1.0.31, with sizes drawn by step).

    Args:
        recipe: with the mean, the deviation, the crop and the interpolation filled in.
        regime: the recipe's, for this network and number of processes.
        epochs: length of the run.
        ranks: number of processes; timm's batches are those of one.
    """
    told = TimmArguments()
    _model(recipe, told)
    _data(recipe, told)
    if isinstance(regime, Progression):
        _phases(recipe, regime, ranks, told)
    else:
        _regime(regime, ranks, told)
    lr = _learning_rate(recipe.optimizer, regime, told)
    _optimizer(recipe.optimizer, lr, told)
    _schedule(recipe, lr, _whole_epochs(recipe, epochs, told), told)
    _loss(recipe, told)
    _algorithms(recipe, told)
    _evaluation(recipe, ranks, told)
    _execution(recipe, told)
    _rest(recipe, told)
    return told


def _model(recipe: schema.Recipe, told: TimmArguments) -> None:
    model = recipe.model
    told.add("--model", model.name)
    assert networks.__all__  # Importing them registers the CIFAR networks with timm.
    module = timm.models.model_entrypoint(model.name).__module__ if timm.models.is_model(model.name) else "timm."
    if not module.startswith("timm."):
        told.add("--device-modules", module)
        told.approximated.append(f"model.name: {model.name} is not timm's; --device-modules imports {module} first")
    classes = model.num_classes or recipe.data.classes
    if classes is None:
        told.missing.append("model.num_classes: not known without the training file; timm takes the network's own")
    else:
        told.add("--num-classes", classes)
    if model.pretrained:
        told.add("--pretrained")
    if model.checkpoint is not None:
        told.add("--initial-checkpoint", model.checkpoint)
        told.approximated.append(
            "model.checkpoint: timm refuses weights for other classes here; --pretrained --pretrained-path takes them"
        )
    rest = []
    for name, value in model.kwargs.items():
        if name in _OF_THE_SCRIPT:
            told.add(_OF_THE_SCRIPT[name], value)
        else:
            rest.append(f"{name}={value!r}")
    if rest:
        told.add("--model-kwargs", *rest)


def _data(recipe: schema.Recipe, told: TimmArguments) -> None:
    data = recipe.data
    told.missing.append(f"data.train: {data.train} is no source of timm's; give the folder of images by --data-dir")
    assert data.mean is not None
    assert data.std is not None
    told.add("--mean", *data.mean)
    told.add("--std", *data.std)
    told.add("--train-interpolation", recipe.loader.interpolation)
    augment = data.augment
    if isinstance(augment, schema.CenterCrop):
        told.add("--no-aug")
        if augment.fraction != 1:
            told.missing.append(f"data.augment.fraction: {augment.fraction}; timm crops the whole shorter side")
        return
    if isinstance(augment, schema.RandomResizedCrop):
        told.add("--scale", *augment.scale)
        told.add("--ratio", *augment.ratio)
    else:
        # Crops of the whole of a square image.
        told.add("--scale", 1.0, 1.0)
        told.add("--ratio", 1.0, 1.0)
        told.approximated.append(
            f"data.augment.name: {augment.name}; timm crops the centre of images that are not square"
        )
    told.add("--hflip", 0.5 if augment.flip else 0.0)
    _changes(augment, told)
    if isinstance(augment, schema.PadCrop):
        if augment.padding:
            told.missing.append(f"data.augment.padding: {augment.padding}; timm does not shift images")
        if augment.cutout_px:
            told.missing.append(
                f"data.augment.cutout_px: {augment.cutout_px}; timm's --reprob erases areas of other sizes"
            )


def _changes(augment: schema.PadCrop | schema.RandomResizedCrop | schema.Resize, told: TimmArguments) -> None:
    """Policy, colour jitter and erasing."""
    policy, magnitude = augment.policy, augment.magnitude
    has_policy = policy not in ("none", "cifar10", "trivial")
    if has_policy:
        if isinstance(magnitude, int | float) and magnitude == int(magnitude):
            policy = re.sub(r"-m[0-9.]+", "", policy) + f"-m{int(magnitude)}"
        elif magnitude is not None:
            told.missing.append(f"data.augment.magnitude: {magnitude}; timm has one whole number for all sizes")
        told.add("--aa", policy)
    elif policy != "none":
        told.missing.append(f"data.augment.policy: {policy}; timm's --aa has RandAugment and ImageNet's policies")
    jitter = augment.color_jitter or 0.0
    if has_policy and jitter:
        told.missing.append(f"data.augment.color_jitter: {jitter}; timm leaves it out beside --aa")
    elif isinstance(jitter, tuple):
        told.missing.append(f"data.augment.color_jitter: {list(jitter)}; timm has one for all three")
    told.add("--color-jitter", 0.0 if has_policy or isinstance(jitter, tuple) else jitter)
    if augment.erasing:
        told.add("--reprob", augment.erasing)
        told.add("--remode", "const")


def _regime(regime: Regime, ranks: int, told: TimmArguments) -> None:
    told.add("--img-size", regime.base.size_px)
    told.add("--batch-size", regime.base.batch_size // ranks)
    if len(regime.choices) > 1:
        told.add("--train-img-sizes", *(choice.size_px for choice in regime.choices))
        told.add("--train-batch-sizes", *(choice.batch_size // ranks for choice in regime.choices))
        told.add("--train-size-probs", *(round(share, 6) for share in regime.step_shares))
        told.approximated.append(
            "regime.sizes: timm draws the steps of each size by their share, once for all epochs; mixsize takes their"
            " exact number"
        )
        if regime.draw == "epoch":
            told.missing.append("regime.draw: epoch; timm draws a size for every step")
    _duplicates((regime,), told)


def _phases(recipe: schema.Recipe, regime: Progression, ranks: int, told: TimmArguments) -> None:
    choices = [choice for part in regime.regimes for choice in part.choices]
    told.add("--img-size", regime.base.size_px)
    told.add("--batch-size", regime.base.batch_size // ranks)
    told.add("--train-img-sizes", *(choice.size_px for choice in choices))
    told.add("--train-batch-sizes", *(choice.batch_size // ranks for choice in choices))
    if len(choices) > 1:
        told.add("--train-size-schedule", "progressive")
        told.add("--train-size-schedule-spread", 0.0)
        told.add("--train-size-random-mix", 0.0)
        told.approximated.append(
            "regime.phases: timm gives every size the same number of epochs, the first and the last half of it, and"
            " every epoch the same number of steps"
        )
    if len(choices) > len(regime.regimes):
        told.missing.append("regime.phases: several sizes in one phase; timm goes through all sizes one by one")
    for key, differs in (
        ("lr_factor", any(phase.lr_factor != 1 for phase in regime.phases)),
        ("crop_scale", any(phase.crop_scale is not None for phase in regime.phases)),
    ):
        if differs:
            told.missing.append(f"regime.phases[].{key}: timm has one for the whole run")
    for name in regime.strengths:
        told.missing.append(f"regime: {name} by phase or epoch; timm has one for the whole run")
    for key in ("warmup_epochs", "batch_norm"):
        value = getattr(recipe.regime, key)
        if value != type(recipe.regime).model_fields[key].default:
            told.missing.append(f"regime.{key}: {value}; timm does nothing between two sizes")
    _duplicates(regime.regimes, told)


def _duplicates(regimes: tuple[Regime, ...], told: TimmArguments) -> None:
    most = max(choice.duplicates for part in regimes for choice in part.choices)
    if most > 1:
        told.missing.append(
            f"regime: up to {most} duplicates; timm has no views of one image in a step (--aug-repeats gives them to"
            " different processes)"
        )


def _learning_rate(optimizer: Optimizer, regime: Regime | Progression, told: TimmArguments) -> float:
    kind = optimizer.lr_scaling.removesuffix("_by_step")
    if kind == optimizer.lr_scaling:
        return learning_rate(optimizer, regime)
    told.add("--variable-batch-loss-scale", kind)
    told.approximated.append(
        f"optimizer.lr_scaling: {optimizer.lr_scaling}; timm scales gradients, relative to the mean batch"
    )
    scale = regime.lr_scale if isinstance(regime, Regime) else 1.0
    return optimizer.lr * (scale if kind == "linear" else math.sqrt(scale))


def _optimizer(optimizer: Optimizer, lr: float, told: TimmArguments) -> None:
    if isinstance(optimizer, Sgd):
        told.add("--opt", "sgd" if optimizer.nesterov else "momentum")  # timm's "sgd" is Nesterov's.
        told.add("--momentum", optimizer.momentum)
    elif isinstance(optimizer, AdamW):
        told.add("--opt", optimizer.name)
        told.add("--opt-betas", *optimizer.betas)
        told.add("--opt-eps", optimizer.eps)
    else:
        told.add("--opt", optimizer.opt)
    told.add("--lr", lr)
    told.add("--weight-decay", optimizer.weight_decay)
    if optimizer.layer_decay is not None:
        told.add("--layer-decay", optimizer.layer_decay)
    if optimizer.clip_norm is not None:
        told.add("--clip-grad", optimizer.clip_norm)
    rest = optimizer.kwargs if isinstance(optimizer, TimmOptimizer) else {}
    rest = [f"{name}={value!r}" for name, value in rest.items()]
    if optimizer.decay == "all":
        rest.append("filter_bias_and_bn=False")
    if rest:
        told.add("--opt-kwargs", *rest)


def _loss(recipe: schema.Recipe, told: TimmArguments) -> None:
    loss, mixing = recipe.loss, recipe.mixing
    told.add("--smoothing", loss.label_smoothing)
    if isinstance(loss, BinaryCrossEntropy):
        told.add("--bce-loss")
        if loss.sum_classes:
            told.add("--bce-sum")
        if loss.target_threshold is not None:
            told.add("--bce-target-thresh", loss.target_threshold)
    if mixing is not None:
        told.add("--mixup", mixing.mixup)
        told.add("--cutmix", mixing.cutmix)
        told.add("--mixup-prob", mixing.prob)
        told.add("--mixup-switch-prob", mixing.switch_prob)


def _algorithms(recipe: schema.Recipe, told: TimmArguments) -> None:
    for name, arguments in recipe.algorithms.items():
        half_life = re.fullmatch(r"(\d+)ba", str(arguments.get("half_life")))
        if name == "ema" and half_life and len(arguments) == 1:
            told.add("--model-ema")
            told.add("--model-ema-decay", 0.5 ** (1 / int(half_life[1])))
        else:
            told.missing.append(f"algorithms.{name}: {dict(arguments)}")


def _whole_epochs(recipe: schema.Recipe, epochs: float, told: TimmArguments) -> int:
    if recipe.duration[1] == "ep":
        return recipe.duration[0]
    whole = max(1, round(epochs))
    told.approximated.append(f"max_duration: {recipe.max_duration} are {epochs:.4g} epochs; timm trains whole ones")
    return whole


def _schedule(recipe: schema.Recipe, lr: float, epochs: int, told: TimmArguments) -> None:
    schedule = recipe.schedule
    rise = epochs * schedule.peak_fraction if isinstance(schedule, schema.OneCycle) else schedule.warmup_epochs
    warmup = round(rise)
    if warmup != rise:
        key = "peak_fraction" if isinstance(schedule, schema.OneCycle) else "warmup_epochs"
        told.approximated.append(f"schedule.{key}: {rise:.4g} epochs of warm-up; timm takes whole ones")
    start = 0.0
    if isinstance(schedule, schema.Constant):
        told.add("--sched", "constant")
    elif isinstance(schedule, schema.Step):
        told.add("--sched", "step")
        told.add("--decay-epochs", schedule.every_epochs)
        told.add("--decay-rate", schedule.factor)
    elif isinstance(schedule, schema.MultiStep):
        told.add("--sched", "multistep")
        told.add("--decay-milestones", *schedule.milestones)
        rate = schedule.factors[0]
        told.add("--decay-rate", rate)
        if any(not math.isclose(factor, rate**power) for power, factor in enumerate(schedule.factors, 1)):
            told.missing.append(f"schedule.factors: {list(schedule.factors)}; timm multiplies by one rate, here {rate}")
    else:
        # A linear fall is timm's polynomial of power 1.
        told.add("--sched", "poly" if isinstance(schedule, schema.OneCycle) else "cosine")
        if isinstance(schedule, schema.OneCycle):
            told.add("--decay-rate", 1.0)
            start = schedule.start_factor
        told.add("--min-lr", lr * schedule.final_factor)
        if schedule.follows != "epochs":
            told.missing.append(f"schedule.follows: {schedule.follows}; timm's learning rate follows epochs")
        if warmup:
            # timm's own decay begins with the warm-up, unless it is a prefix, which its epochs do not count.
            told.add("--warmup-prefix")
            epochs -= warmup
    told.add("--epochs", epochs)
    told.add("--warmup-epochs", warmup)
    told.add("--warmup-lr", lr * start)
    told.add("--sched-on-updates")


def _evaluation(recipe: schema.Recipe, ranks: int, told: TimmArguments) -> None:
    evaluation, transform, base_px = recipe.evaluation, recipe.data.eval_transform, recipe.regime.base.size_px
    told.add("--interpolation", evaluation.interpolation)
    if isinstance(transform, schema.CenterCrop):
        told.add("--crop-pct", transform.fraction)
    else:
        told.add("--crop-pct", 1.0)
        told.approximated.append(
            "data.eval_transform.name: resize; timm crops the centre of images that are not square"
        )
    told.add("--validation-batch-size", max(1, evaluation.batch_size // ranks))
    told.add("--val-interval", evaluation.every_epochs)
    others = [size for size in evaluation.sizes if size != base_px]
    if others:
        told.missing.append(
            f"evaluation.sizes: {', '.join(map(str, others))} px; timm evaluates at {base_px} px, its --img-size"
        )


def _execution(recipe: schema.Recipe, told: TimmArguments) -> None:
    if recipe.precision != "fp32":
        told.add("--amp")
        told.add("--amp-dtype", {"amp_bf16": "bfloat16", "amp_fp16": "float16"}[recipe.precision])
    if recipe.device == "cpu":
        told.add("--device", "cpu")
    if recipe.channels_last:
        told.add("--channels-last")
    if recipe.execution.network == "compile":
        told.add("--torchcompile")
    elif recipe.execution.network != "eager":
        told.missing.append(f"execution.network: {recipe.execution.network}")
    if recipe.loader.num_workers is not None:
        told.add("--workers", recipe.loader.num_workers)
    told.add("--seed", recipe.seed)
    told.add("--output", recipe.output.folder)
    told.add("--experiment", recipe.name)


def _rest(recipe: schema.Recipe, told: TimmArguments) -> None:
    """Name the keys that nothing above reads."""
    for key, value in _given(recipe):
        if not any(key == known or key.startswith(f"{known}.") for known in (*_READ, *_ASIDE)):
            told.missing.append(f"{key}: {_MISSING.get(key, value)}")


def _given(section: Section, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys that are not the default, and their values; a section that is off by default is one of them."""
    for name, described in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section) and described.default is not None:
            yield from _given(value, f"{at}{name}.")
        elif value != described.default:
            yield f"{at}{name}", value.model_dump(exclude_defaults=True) if isinstance(value, Section) else value
