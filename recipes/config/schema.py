"""The recipe: everything that decides a training run, typed to the leaves.

A recipe file is a mapping with the keys of `Recipe`. Unknown keys are refused, and so are keys that have no effect in
their section's variant (`betas` with `name: sgd`). A key whose value is null counts as not given. `compose` reads
files and overrides and puts errors into words; this module only says what is allowed.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from mixsize.algorithms.regime.checks import MAX_SIZE_PX
from mixsize.algorithms.regime.regime import SHARE_TOLERANCE, SIZE_DISTRIBUTIONS

Path = tuple[str | int, ...]

# timm arguments that belong to other keys of the recipe, or would return something that cannot be trained.
RESERVED_KWARGS = {
    "num_classes": "set model.num_classes",
    "pretrained": "set model.pretrained",
    "checkpoint_path": "set model.checkpoint",
    "model_name": "set model.name",
    "features_only": "a recipe trains a classifier",
}


def fault(message: str, at: Path = ()) -> PydanticCustomError:
    """Return the error to raise from a validator; `at` is the path below the validated mapping that is to blame."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "at": at})


def _within(low: float, high: float, ends: str) -> AfterValidator:
    """Return a validator for a number in the interval; `ends` is its brackets, as in `"[)"`."""
    assert ends in ("[]", "[)", "(]", "()")
    allowed = f"{ends[0]}{low:.12g}, {high:.12g}{ends[1]}"
    if math.isinf(high):
        allowed = f"{'at least' if ends[0] == '[' else 'greater than'} {low:g}"

    def check(value: float) -> float:
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[1] == "]" else value < high
        if not (above and below):
            raise fault(f"must be {allowed if math.isinf(high) else 'in ' + allowed}")
        return value

    return AfterValidator(check)


def _at_most(limit: int) -> AfterValidator:
    """Return a validator for a whole number that is not above the limit."""

    def check(value: int) -> int:
        if value > limit:
            raise fault(f"must be at most {limit}")
        return value

    return AfterValidator(check)


# A YAML list becomes a tuple: only the container's type is converted, its items stay strict.
LIST = Field(strict=False)


def _not_empty(items: Any) -> Any:
    if not items:
        raise fault("must not be empty")
    return items


# Not pydantic's min_length, which also complains of a list whose only item is faulty.
NOT_EMPTY = AfterValidator(_not_empty)
# What floats, which many of these numbers meet, can count one by one.
_COUNTABLE = _at_most(2**53)
PositiveInt = Annotated[int, _within(1, math.inf, "[)"), _COUNTABLE]
NaturalInt = Annotated[int, _within(0, math.inf, "[)"), _COUNTABLE]
Pixels = Annotated[int, _within(1, math.inf, "[)"), _at_most(MAX_SIZE_PX)]
PositiveFloat = Annotated[float, _within(0, math.inf, "()")]
NaturalFloat = Annotated[float, _within(0, math.inf, "[)")]
Fraction = Annotated[float, _within(0, 1, "[]")]
FractionBelowOne = Annotated[float, _within(0, 1, "[)")]
PositiveFraction = Annotated[float, _within(0, 1, "(]")]
Seed = Annotated[int, _within(0, 2**32 - 1, "[]")]
Text = Annotated[str, Field(min_length=1)]


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise fault("must be a number, text, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise fault("must be a finite number")
    return value


Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]


class Section(BaseModel):
    """A mapping of the recipe: frozen, strict about types, closed to unknown keys and to NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Model(Section):
    """The network, by its timm name."""

    name: Text = Field(description="timm model name; the CIFAR networks of this package are registered too")
    num_classes: PositiveInt | None = Field(None, description="outputs of the network; null: the data's class count")
    pretrained: bool = Field(False, description="start from timm's pretrained weights")
    checkpoint: Text | None = Field(None, description="path of weights to start from; null: none")
    kwargs: dict[Text, Scalar] = Field({}, description="further scalar arguments of timm.create_model")

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if self.pretrained and self.checkpoint is not None:
            raise fault("give either model.pretrained: true or a checkpoint, not both", ("checkpoint",))
        for key, advice in RESERVED_KWARGS.items():
            if key in self.kwargs:
                raise fault(f"cannot be given here: {advice}", ("kwargs", key))
        return self


class PadCrop(Section):
    """Zero-pad the stored image, crop its own size at random, then resize to the step's size."""

    name: Literal["pad_crop"] = Field(description="variant")
    padding: NaturalInt = Field(4, description="zero pixels added on each side of the stored image")
    flip: bool = Field(True, description="mirror left and right with probability one half")
    policy: Literal["none", "cifar10"] = Field(
        "none", description="AutoAugment's policy, after the flip and before the resize; images of one stored size only"
    )
    cutout_px: NaturalInt = Field(
        0, description="side in stored pixels of the square that cutout fills with the mean colour; 0: no cutout"
    )


class RandomResizedCrop(Section):
    """Crop a random area of random shape, resize it to the step's size."""

    name: Literal["random_resized_crop"] = Field(description="variant")
    scale: Annotated[tuple[PositiveFraction, PositiveFraction], LIST] = Field(
        (0.08, 1.0), description="lowest and highest area of the crop, as fractions of the stored image's area"
    )
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], LIST] = Field(
        (0.75, 1.3333), description="lowest and highest width / height of the crop"
    )
    flip: bool = Field(True, description="mirror left and right with probability one half")

    @model_validator(mode="after")
    def _ordered(self) -> "RandomResizedCrop":
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise fault("must be [lowest, highest]", (key,))
        return self


class Resize(Section):
    """Resize the whole frame to the step's size, whatever its shape."""

    name: Literal["resize"] = Field(description="variant")
    flip: bool = Field(False, description="mirror left and right with probability one half")


class EvalResize(Section):
    """Resize the whole frame to the evaluation size, whatever its shape."""

    name: Literal["resize"] = Field(description="variant")


class CenterCrop(Section):
    """Resize the shorter side to the size / fraction, then crop the centre square."""

    name: Literal["center_crop"] = Field(description="variant")
    fraction: PositiveFraction = Field(
        0.875, description="side of the crop as a fraction of the resized image's shorter side"
    )


Augment = Annotated[PadCrop | RandomResizedCrop | Resize | CenterCrop, Field(discriminator="name")]
EvalTransform = Annotated[EvalResize | CenterCrop, Field(discriminator="name")]


class Data(Section):
    """The images, and how they become a network's input."""

    train: Text = Field(description="path of the training .beton file")
    eval: Text = Field(description="path of the evaluation .beton file")
    train_images: PositiveInt | None = Field(
        None, description="training images, for plans made without the data; null: read from the file"
    )
    classes: PositiveInt | None = Field(
        None, description="number of classes, where the data is not read; null: read from the file"
    )
    augment: Augment = Field(description="transform of the training images")
    eval_transform: EvalTransform = Field(description="transform of the evaluation images")
    mean: Annotated[tuple[Fraction, Fraction, Fraction], LIST] | None = Field(
        None, description="mean of red, green and blue on the 0..1 scale; null: from the data file"
    )
    std: Annotated[tuple[PositiveFraction, PositiveFraction, PositiveFraction], LIST] | None = Field(
        None, description="standard deviation of red, green and blue on the 0..1 scale; null: from the data file"
    )


class Base(Section):
    """The fixed-size training that a regime is measured against."""

    size_px: Pixels = Field(description="image side in pixels")
    batch_size: PositiveInt = Field(description="distinct samples in a step, over all ranks together")
    duplicates: PositiveInt = Field(1, description="augmented views of each sample in a step")


class Choice(Section):
    """One row of a regime table."""

    size_px: Pixels = Field(description="image side in pixels")
    batch_size: PositiveInt = Field(description="distinct samples in a step, over all ranks together")
    duplicates: PositiveInt = Field(1, description="augmented views of each sample in a step")
    share: PositiveFraction = Field(description="share of the samples or of the steps, see regime.share_of")


def _check_shares(shares: Iterable[float]) -> None:
    total = math.fsum(shares)
    if abs(total - 1) > SHARE_TOLERANCE:
        raise fault(f"shares must sum to 1, they sum to {total:.10g}")


def _sorted_shares(sizes: dict[int, float]) -> dict[int, float]:
    _check_shares(sizes.values())
    # The order of a mapping carries no meaning in a recipe, so it must not reach the drawing of sizes.
    return dict(sorted(sizes.items(), reverse=True))


def _check_choices(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    _check_shares(choice.share for choice in choices)
    return choices


SizeName = Literal[tuple(SIZE_DISTRIBUTIONS)]
SizeShares = Annotated[dict[Pixels, PositiveFraction], NOT_EMPTY, AfterValidator(_sorted_shares), Tag("shares")]
Sizes = Annotated[
    Annotated[SizeName, Tag("name")] | SizeShares,
    Discriminator(lambda value: "shares" if isinstance(value, Mapping) else "name"),
]


class _AnyRegime(Section):
    mode: str  # narrowed by each variant; declared here to come first when a recipe is written
    base: Base = Field(description="the fixed-size baseline: side, global batch and duplicates")
    batch_multiple: PositiveInt | None = Field(
        None, description="every global batch is a multiple of this many samples; null: the number of ranks"
    )
    stride: PositiveInt | None = Field(
        None, description="sizes must be multiples of this many pixels; null: the network's own stride"
    )

    def _check_step(self, size_px: int, batch_size: int | None, at: Path) -> None:
        """Check one (size, batch) of the regime against `stride` and `batch_multiple`."""
        if self.stride is not None and size_px % self.stride:
            raise fault(f"size {size_px} px is no multiple of regime.stride {self.stride}", (*at, "size_px"))
        if self.batch_multiple is not None and batch_size is not None and batch_size % self.batch_multiple:
            raise fault(
                f"batch of {batch_size} is no multiple of regime.batch_multiple {self.batch_multiple}",
                (*at, "batch_size"),
            )


class FixedRegime(_AnyRegime):
    """Every step at the base size and batch."""

    mode: Literal["fixed"] = Field("fixed", description="variant")

    @model_validator(mode="after")
    def _consistent(self) -> "FixedRegime":
        self._check_step(self.base.size_px, self.base.batch_size, ("base",))
        return self


class _DrawnRegime(_AnyRegime):
    share_of: Literal["samples", "steps"] = Field(
        "samples", description="what the shares divide: the samples of an epoch, or its steps"
    )
    draw: Literal["step", "epoch"] = Field("step", description="how often a size is drawn")


class MixedRegime(_DrawnRegime):
    """Sizes drawn at random; `B+` fills the budget of a smaller size with samples, `D+` with duplicates."""

    mode: Literal["B+", "D+"] = Field(description="variant")
    sizes: Sizes = Field(description="pixels -> share, or the name of one of the paper's tables")
    rounding: Literal["nearest", "pow2", "budget"] = Field(
        "nearest",
        description="how the batch or the duplicates are rounded: to the nearest integer, to a power of two (the"
        " paper's step counts), or down so that no step exceeds the baseline's pixels",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MixedRegime":
        self._check_step(self.base.size_px, None, ("base",))
        if not isinstance(self.sizes, str) and self.stride is not None:
            for size in self.sizes:
                if size % self.stride:
                    raise fault(f"size {size} px is no multiple of regime.stride {self.stride}", ("sizes", size))
        return self


class TableRegime(_DrawnRegime):
    """Sizes, batches and duplicates drawn from the rows given."""

    mode: Literal["table"] = Field(description="variant")
    choices: Annotated[tuple[Choice, ...], LIST, NOT_EMPTY, AfterValidator(_check_choices)] = Field(
        description="the rows that steps are drawn from"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TableRegime":
        for index, choice in enumerate(self.choices):
            self._check_step(choice.size_px, choice.batch_size, ("choices", index))
        return self


class Phase(Section):
    """Consecutive epochs at one size."""

    size_px: Pixels = Field(description="image side in pixels")
    epochs: PositiveInt = Field(description="how many epochs; the last phase goes on to the end of training")
    batch_size: PositiveInt | None = Field(None, description="distinct samples in a step; null: by the base's budget")
    lr_factor: PositiveFloat = Field(1.0, description="factor of the learning rate in this phase")
    crop_scale: Annotated[tuple[PositiveFraction, PositiveFraction], LIST] | None = Field(
        None, description="lowest and highest area of random resized crops in this phase; null: data.augment's"
    )


class Ramp(Section):
    """A size that grows in a line."""

    start_px: Pixels = Field(description="image side up to begin_epoch, in pixels")
    end_px: Pixels = Field(description="image side from end_epoch on, in pixels")
    begin_epoch: NaturalInt = Field(0, description="the last epoch at start_px")
    end_epoch: PositiveInt = Field(description="the first epoch at end_px")
    step_px: PositiveInt | None = Field(None, description="sizes are rounded to multiples of it; null: the stride")
    batch_size: PositiveInt | None = Field(
        None, description="distinct samples in a step at every size; null: by the base's budget"
    )


class ProgressiveRegime(_AnyRegime):
    """Sizes that grow during training, in phases or along a ramp."""

    mode: Literal["progressive"] = Field(description="variant")
    phases: Annotated[tuple[Phase, ...], LIST, NOT_EMPTY] | None = Field(
        None, description="phases in order; or give a ramp"
    )
    ramp: Ramp | None = Field(None, description="a linear ramp; or give phases")
    rounding: Literal["nearest", "pow2", "budget"] = Field("nearest", description="how batches are rounded, as for B+")
    warmup_epochs: NaturalFloat = Field(0.0, description="epochs of linear rise to a phase's learning rate")
    batch_norm: Literal["keep", "reset", "freeze"] = Field(
        "keep", description="running statistics at a transition: kept, re-estimated, or frozen for freeze_steps"
    )
    freeze_steps: NaturalInt = Field(0, description="steps that batch norm stays frozen after a transition")
    reset_batches: PositiveInt = Field(50, description="batches that a reset looks at")

    @model_validator(mode="after")
    def _consistent(self) -> "ProgressiveRegime":
        if (self.phases is None) == (self.ramp is None):
            raise fault("needs either regime.phases or regime.ramp")
        if (self.batch_norm == "freeze") != (self.freeze_steps > 0):
            raise fault("must be at least 1 with regime.batch_norm freeze, and 0 without", ("freeze_steps",))
        return self


Regime = Annotated[FixedRegime | MixedRegime | TableRegime | ProgressiveRegime, Field(discriminator="mode")]


class Smoothing(Section):
    """Gradient smoothing: gradients are rescaled to the running average of their norm."""

    alpha: FractionBelowOne = Field(0.9, description="weight of the average before in the new one")
    eps: NaturalFloat = Field(1e-6, description="added to the norm that gradients are divided by")
    per_size: bool = Field(False, description="one average for each image side")


class Calibration(Section):
    """Batch-norm statistics re-estimated for each evaluation size."""

    batches: PositiveInt = Field(200, description="forward passes over training images for each size, on each rank")
    when: Literal["each", "last"] = Field("last", description="before each evaluation, or the last only")


class _AnyOptimizer(Section):
    name: str  # narrowed by each variant; declared here to come first when a recipe is written
    train: Literal["all", "head_and_batch_norm"] = Field(
        "all",
        description="what is trained: every parameter, or those of the last layer and of batch norm alone, whose"
        " running statistics move with either",
    )
    lr: PositiveFloat = Field(description="peak learning rate, before lr_scaling")
    weight_decay: NaturalFloat = Field(0.0, description="coefficient of the optimiser's weight decay")
    decay: Literal["weights", "all"] = Field(
        "weights", description="what decays: all parameters but biases and normalisation layers, or all"
    )
    lr_scaling: Literal["none", "linear"] = Field(
        "none", description="linear: multiply lr by the regime's mean batch / regime.base.batch_size"
    )


class Sgd(_AnyOptimizer):
    """torch.optim.SGD; its weight decay is an L2 penalty."""

    name: Literal["sgd"] = Field(description="variant")
    momentum: FractionBelowOne = Field(0.9, description="factor on the running sum of gradients")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise fault("needs optimizer.momentum above 0", ("nesterov",))
        return self


class AdamW(_AnyOptimizer):
    """torch.optim.AdamW; its weight decay is decoupled from the gradient."""

    name: Literal["adamw"] = Field(description="variant")
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], LIST] = Field(
        (0.9, 0.999), description="factors of the running means of the gradient and of its square"
    )
    eps: PositiveFloat = Field(1e-8, description="added to the denominator")


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="name")]

_Warmup = Annotated[NaturalFloat, Field(description="epochs of linear rise from 0 to the base lr, at the start")]


class MultiStep(Section):
    """The base lr, multiplied by a factor from each milestone on."""

    name: Literal["multistep"] = Field(description="variant")
    milestones: Annotated[tuple[PositiveInt, ...], LIST, NOT_EMPTY] = Field(
        description="epochs after which a factor comes into force, increasing"
    )
    factors: Annotated[tuple[PositiveFloat, ...], LIST, NOT_EMPTY] = Field(
        description="lr / base lr in force from each milestone on; not cumulative"
    )
    warmup_epochs: _Warmup = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> "MultiStep":
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise fault("must increase", ("milestones",))
        if len(self.factors) != len(self.milestones):
            raise fault(
                f"must have one factor for each of the {len(self.milestones)} milestones, has {len(self.factors)}",
                ("factors",),
            )
        if self.warmup_epochs > self.milestones[0]:
            raise fault(f"must end by the first milestone, epoch {self.milestones[0]}", ("warmup_epochs",))
        return self


class Cosine(Section):
    """Half a cosine from the base lr down to `final_factor` of it at the end of training."""

    name: Literal["cosine"] = Field(description="variant")
    warmup_epochs: _Warmup = 0.0
    final_factor: Fraction = Field(0.0, description="lr / base lr at the end")


class OneCycle(Section):
    """Linear rise from `start_factor` to the base lr, then linear fall to `final_factor`."""

    name: Literal["one_cycle"] = Field(description="variant")
    peak_fraction: Annotated[float, _within(0, 1, "()")] = Field(
        0.3, description="fraction of max_duration at which the base lr is reached"
    )
    start_factor: Fraction = Field(0.04, description="lr / base lr at the start")
    final_factor: Fraction = Field(0.0, description="lr / base lr at the end")


class Constant(Section):
    """The base lr throughout."""

    name: Literal["constant"] = Field(description="variant")
    warmup_epochs: _Warmup = 0.0


Schedule = Annotated[MultiStep | Cosine | OneCycle | Constant, Field(discriminator="name")]


class Loss(Section):
    """Cross-entropy."""

    label_smoothing: FractionBelowOne = Field(0.0, description="probability mass spread evenly over all classes")


class Loader(Section):
    """How training batches are decoded."""

    threads: PositiveInt | None = Field(None, description="decoding threads of a rank; null: cores / local ranks")
    prefetch: PositiveInt = Field(2, description="batches decoded ahead of the training step")
    threshold: PositiveFloat | None = Field(
        1.0,
        description="read a view from a smaller copy of its image where its window has this many times the view's side "
        "there; null: from the full image always",
    )
    window_mib: PositiveInt | None = Field(
        None,
        description="null: random order; a number: quasi-random order, page by page, mixed in windows of so many MiB",
    )


class Execution(Section):
    """How the passes of a training step run."""

    network: Literal["eager", "compile", "cuda_graphs"] = Field(
        "eager",
        description="eager; compile: by torch.compile, once for each shape; cuda_graphs: replayed from a CUDA graph of"
        " each shape, on one rank, in whole batches",
    )
    preflight: bool | None = Field(
        None, description="visit every shape once before training, which counts as set-up; null: on a GPU"
    )


def _distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(sizes)) < len(sizes):
        raise fault("lists a size twice")
    return sizes


class Evaluation(Section):
    """Accuracy at several sizes."""

    sizes: Annotated[tuple[Pixels, ...], LIST, NOT_EMPTY, AfterValidator(_distinct)] = Field(
        description="image sides in pixels to evaluate at"
    )
    batch_size: PositiveInt = Field(256, description="images in an evaluation batch, over all ranks together")
    every_epochs: PositiveInt = Field(1, description="epochs between evaluations")
    threshold: PositiveFloat | None = Field(
        1.1, description="as loader.threshold, for the images evaluated on and those that batch norm is calibrated on"
    )


class Wandb(Section):
    """Weights & Biases logging."""

    project: Text = Field(description="project to log to")
    entity: Text | None = Field(None, description="user or team; null: the account's default")
    group: Text | None = Field(None, description="group of runs; null: none")
    tags: Annotated[tuple[Text, ...], LIST] = Field((), description="tags of the run")
    mode: Literal["online", "offline", "disabled"] = Field("online", description="where the log goes")


_DURATION = re.compile(r"([1-9][0-9]*)(ep|ba|sec)")
_INTERVAL = re.compile(r"([1-9][0-9]*)(ep|ba)|never")
_MAX_DIGITS = 12


def _check_digits(match: re.Match[str]) -> None:
    if len(match[1] or "") > _MAX_DIGITS:
        raise fault(f"must be a number of at most {_MAX_DIGITS} digits")


def _duration(value: object) -> object:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise fault(
            "must be a whole number of epochs ('90ep'), of batches ('500ba') or of seconds ('600sec'); there is no "
            "other unit"
        )
    _check_digits(match)
    return value


def _interval(value: object) -> object:
    match = _INTERVAL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise fault("must be a whole number of epochs ('1ep') or of batches ('500ba'), or never")
    _check_digits(match)
    return value


class Output(Section):
    """What a run leaves behind."""

    folder: Text = Field("runs", description="folder that holds a folder for each run")
    save_every: Annotated[str, BeforeValidator(_interval)] = Field(
        "1ep", description="epochs ('1ep') or steps ('500ba') between checkpoints, from which a run goes on; or 'never'"
    )
    keep_checkpoints: NaturalInt = Field(1, description="how many checkpoints to keep; 0: all")
    restart: bool = Field(
        False, description="start anew where a run of this name exists, removing its checkpoints and record"
    )
    log_batches: bool = Field(
        False, description="write a checksum of every batch to batches-rank*.csv, to compare runs by"
    )
    wandb: Wandb | None = Field(None, description="Weights & Biases logging; null: none")


class Recipe(Section):
    """Everything that decides a training run."""

    name: Text = Field(description="stem of the run's name")
    max_duration: Annotated[str, BeforeValidator(_duration)] = Field(
        description="length of training: '<int>ep' (epochs), '<int>ba' (batches, that is optimiser steps) or '<int>sec'"
        " (seconds of training, evaluations not counted)"
    )
    seed: Seed = Field(17, description="seed of the initial weights, the epoch plans and the augmentation")
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = Field("fp32", description="arithmetic of the training step")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where there is one")
    channels_last: bool = Field(False, description="keep images and weights in channels-last memory order")
    microbatch_images: PositiveInt | None = Field(
        None, description="images of a rank in one forward pass, gradients being summed; null: the whole batch"
    )
    progress_bar: bool = Field(True, description="draw a progress bar on the terminal")
    model: Model = Field(description="the network")
    data: Data = Field(description="the images")
    regime: Regime = Field(description="what image sizes, batches and duplicates are drawn")
    optimizer: Optimizer = Field(description="the optimiser")
    schedule: Schedule = Field(description="the learning rate over time")
    loss: Loss = Field(Loss(), description="the loss")
    smoothing: Smoothing | None = Field(None, description="gradient smoothing; null: none")
    calibration: Calibration | None = Field(None, description="batch-norm calibration at evaluation; null: none")
    loader: Loader = Field(Loader(), description="the training loader")
    execution: Execution = Field(Execution(), description="how the passes of a training step run")
    evaluation: Evaluation = Field(description="when and at which sizes accuracy is measured")
    output: Output = Field(Output(), description="what is written, and where")

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        return without_nulls(data)

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Recipe":
        length, unit = self.duration
        if isinstance(self.schedule, Cosine) and unit == "ep" and self.schedule.warmup_epochs >= length:
            raise fault(f"must be below max_duration, {self.max_duration}", ("schedule", "warmup_epochs"))
        return self

    @model_validator(mode="after")
    def _schedule_fits_the_unit(self) -> "Recipe":
        if self.duration[1] == "sec":
            if isinstance(self.schedule, MultiStep):
                raise fault(
                    f"has milestones in epochs, of which max_duration {self.max_duration} has no known number; use "
                    "cosine, one_cycle or constant",
                    ("schedule", "name"),
                )
            if isinstance(self.schedule, Cosine) and self.schedule.warmup_epochs:
                raise fault(
                    f"is in epochs, of which max_duration {self.max_duration} has no known number; must be 0",
                    ("schedule", "warmup_epochs"),
                )
        return self

    @model_validator(mode="after")
    def _graphs_take_whole_batches(self) -> "Recipe":
        if self.execution.network == "cuda_graphs" and self.microbatch_images is not None:
            raise fault(
                "a graph writes gradients over those of the microbatch before: leave out microbatch_images, or choose "
                "compile",
                ("execution", "network"),
            )
        return self

    @model_validator(mode="after")
    def _starts_from_trained_weights(self) -> "Recipe":
        started = self.model.pretrained or self.model.checkpoint is not None
        if self.optimizer.train != "all" and not started:
            raise fault(
                "leaves random weights as they are: give model.checkpoint, or model.pretrained=true",
                ("optimizer", "train"),
            )
        return self

    @property
    def duration(self) -> tuple[int, Literal["ep", "ba", "sec"]]:
        """`max_duration` as (count, unit)."""
        match = _DURATION.fullmatch(self.max_duration)
        assert match is not None
        return int(match[1]), match[2]


# ---- the shape of a recipe, for whoever merges files and words errors ----

# Sections with variants: path -> the key that selects one, and the variant of a section that does not say.
VARIANT_KEYS: dict[Path, str] = {
    ("data", "augment"): "name",
    ("data", "eval_transform"): "name",
    ("regime",): "mode",
    ("optimizer",): "name",
    ("schedule",): "name",
}
DEFAULT_VARIANTS: dict[Path, str] = {("regime",): "fixed"}
# Mappings from free keys to scalars: a file gives them as a whole.
LEAF_MAPPINGS: frozenset[Path] = frozenset({("model", "kwargs"), ("regime", "sizes")})


def sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """Return the section classes that a type annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(section for part in get_args(annotation) for section in sections_in(part))


def sections_at(path: Path) -> tuple[type[Section], ...]:
    """Return the classes that the mapping at a dotted path may have; none where no mapping is known.

    List positions are skipped: `("regime", "choices", 0)` gives `(Choice,)`.
    """
    found: tuple[type[Section], ...] = (Recipe,)
    for key in path:
        if isinstance(key, int):
            continue
        fields = [section.model_fields[key] for section in found if key in section.model_fields]
        found = tuple(section for field in fields for section in sections_in(field.annotation))
    return tuple(dict.fromkeys(found))


@cache
def keys_at(path: Path) -> frozenset[str]:
    """Return the keys of the mapping at a dotted path, those of all its variants together."""
    return frozenset(key for section in sections_at(path) for key in section.model_fields)


def variants_at(path: Path) -> dict[str, type[Section]]:
    """Return variant name -> class for a section with variants."""
    key = VARIANT_KEYS[path]
    return {name: section for section in sections_at(path) for name in get_args(section.model_fields[key].annotation)}


def variant_of(path: Path, data: Mapping[str, Any]) -> type[Section] | None:
    """Return the class that a section's data selects, or None where it selects none."""
    name = data.get(VARIANT_KEYS[path]) or DEFAULT_VARIANTS.get(path)
    return variants_at(path).get(name) if isinstance(name, str) else None


def without_nulls(data: Any, path: Path = ()) -> Any:
    """Return a recipe's data without the known keys that are null, and with absent default variants filled in.

    Unknown keys stay, null or not, for validation to refuse.
    """
    if isinstance(data, list | tuple):
        return [without_nulls(item, (*path, index)) for index, item in enumerate(data)]
    if not isinstance(data, Mapping):
        return data
    known = keys_at(path)
    kept = {
        key: without_nulls(value, (*path, key))
        for key, value in data.items()
        if value is not None or not (key in known or path in LEAF_MAPPINGS)
    }
    if path in DEFAULT_VARIANTS:
        kept.setdefault(VARIANT_KEYS[path], DEFAULT_VARIANTS[path])
    return kept


def all_keys(path: Path = ()) -> Iterator[Path]:
    """Yield the path of every key that a recipe may hold, list positions left out."""
    for key in sorted(keys_at(path)):
        yield (*path, key)
        yield from all_keys((*path, key))
