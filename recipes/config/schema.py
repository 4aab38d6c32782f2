"""The recipe: every setting of a training run, typed to the leaves.

A recipe file is a mapping with the keys of `Recipe`. Unknown keys are refused, and so are keys without effect in the
chosen variant of their section (`betas` with `name: sgd`).
"""

import re
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mixsize.algorithms.regime.checks import MAX_EPOCHS
from mixsize.recipes.config.optimisation import BY_MEAN_BATCH, CrossEntropy, Loss, Mixing, Optimizer
from mixsize.recipes.config.regimes import ProgressiveRegime, Regime
from mixsize.recipes.config.section import (
    FILLED_LIST,
    LIST,
    Fraction,
    FractionBelowOne,
    InnerFraction,
    NaturalFloat,
    NaturalInt,
    Pixels,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Section,
    Seed,
    Text,
    Value,
    check_distinct,
    fault,
)
from mixsize.recipes.config.views import ColorJitter, Erasing, Magnitude, StoredPolicy, ViewPolicy, check_magnitude

# timm arguments that have a key of their own in the recipe, or return a network that cannot be trained.
RESERVED_KWARGS = {
    "num_classes": "set model.num_classes",
    "pretrained": "set model.pretrained",
    "checkpoint_path": "set model.checkpoint",
    "model_name": "set model.name",
    "features_only": "a recipe trains a classifier",
}


class Model(Section):
    """The network, by its timm name."""

    name: Text = Field(description="timm model name; the CIFAR networks of this package are registered too")
    num_classes: PositiveInt | None = Field(None, description="outputs of the network; null: the data's class count")
    pretrained: bool = Field(False, description="start from timm's pretrained weights")
    checkpoint: Text | None = Field(
        None,
        description="path of weights to start from; null: none. A last layer for other classes is made anew. A"
        " config.json beside the file gives the weights' own mean, std, crop and interpolation",
    )
    kwargs: dict[Text, Value] = Field({}, description="further arguments of timm.create_model, as YAML writes them")

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if self.pretrained and self.checkpoint is not None:
            raise fault("give either model.pretrained: true or a checkpoint, not both", ("checkpoint",))
        for key, advice in RESERVED_KWARGS.items():
            if key in self.kwargs:
                raise fault(f"cannot be given here: {advice}", ("kwargs", key))
        return self


class PadCrop(Section):
    """Zero-pad the stored image, crop a random window of the stored size, then resize to the step's size."""

    name: Literal["pad_crop"] = Field(description="variant")
    padding: NaturalInt = Field(4, description="zero pixels added on each side of the stored image")
    flip: bool = Field(True, description="mirror horizontally with probability 0.5")
    policy: StoredPolicy = "none"
    cutout_px: NaturalInt = Field(
        0, description="side in stored pixels of the cutout square, filled with the mean colour; 0: no cutout"
    )
    magnitude: Magnitude = None
    color_jitter: ColorJitter = None
    erasing: Erasing = 0.0


class RandomResizedCrop(Section):
    """Crop a window of random area and aspect ratio, resize it to the step's size."""

    name: Literal["random_resized_crop"] = Field(description="variant")
    scale: Annotated[tuple[PositiveFraction, PositiveFraction], LIST] = Field(
        (0.08, 1.0), description="lowest and highest area of the crop, as fractions of the stored image's area"
    )
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], LIST] = Field(
        (0.75, 1.3333), description="lowest and highest width / height of the crop"
    )
    flip: bool = Field(True, description="mirror horizontally with probability 0.5")
    policy: ViewPolicy = "none"
    magnitude: Magnitude = None
    color_jitter: ColorJitter = None
    erasing: Erasing = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> "RandomResizedCrop":
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise fault("must be [lowest, highest]", (key,))
        return self


class Resize(Section):
    """Resize the whole image to the step's size without keeping its aspect ratio."""

    name: Literal["resize"] = Field(description="variant")
    flip: bool = Field(False, description="mirror horizontally with probability 0.5")
    policy: ViewPolicy = "none"
    magnitude: Magnitude = None
    color_jitter: ColorJitter = None
    erasing: Erasing = 0.0


class EvalResize(Section):
    """Resize the whole image to the evaluation size without keeping its aspect ratio."""

    name: Literal["resize"] = Field(description="variant")


class CenterCrop(Section):
    """Resize the shorter side to the size / fraction, then crop the centre square."""

    name: Literal["center_crop"] = Field(description="variant")
    fraction: PositiveFraction | None = Field(
        None,
        description="side of the crop as a fraction of the resized image's shorter side; null: the network's own, as"
        " timm or the folder of its weights says",
    )


Augment = Annotated[PadCrop | RandomResizedCrop | Resize | CenterCrop, Field(discriminator="name")]
EvalTransform = Annotated[EvalResize | CenterCrop, Field(discriminator="name")]


class Data(Section):
    """The images and their transforms."""

    train: Text = Field(description="path of the training .beton file")
    eval: Text = Field(description="path of the evaluation .beton file")
    train_images: PositiveInt | None = Field(
        None, description="number of training images, for plans without data; null: read from the file"
    )
    classes: PositiveInt | None = Field(
        None, description="number of classes, for plans without data; null: read from the file"
    )
    augment: Augment = Field(description="transform of the training images")
    eval_transform: EvalTransform = Field(description="transform of the evaluation images")
    mean: Annotated[tuple[Fraction, Fraction, Fraction], LIST] | None = Field(
        None, description="mean of red, green and blue on the 0..1 scale; null: as normalization says"
    )
    std: Annotated[tuple[PositiveFraction, PositiveFraction, PositiveFraction], LIST] | None = Field(
        None, description="standard deviation of red, green and blue on the 0..1 scale; null: as normalization says"
    )
    normalization: Literal["network", "file"] = Field(
        "network",
        description="mean and std that are null; network: those of the weights that training starts from, else of the"
        " network's timm configuration, which are ImageNet's for most; file: those of the training file",
    )

    @model_validator(mode="after")
    def _policy_has_magnitude(self) -> "Data":
        if not isinstance(self.augment, CenterCrop):
            check_magnitude(self.augment.magnitude, self.augment.policy, ("augment", "magnitude"))
        return self


class Smoothing(Section):
    """Gradient smoothing: rescales gradients to the running average of their norm."""

    alpha: FractionBelowOne = Field(0.9, description="weight of the previous average in the new one")
    eps: NaturalFloat = Field(1e-6, description="added to the norm that divides the gradients")
    per_size: bool = Field(False, description="one average for each image side")


class Calibration(Section):
    """Batch-norm statistics re-estimated for each evaluation size."""

    batches: PositiveInt = Field(200, description="forward passes over training images for each size, on each rank")
    when: Literal["each", "last"] = Field("last", description="before each evaluation, or before the last one only")
    transform: Literal["train", "eval"] = Field(
        "train",
        description="train: the crops and flips of data.augment, read as by loader; eval: data.eval_transform, read as"
        " by evaluation",
    )


_Warmup = Annotated[NaturalFloat, Field(description="epochs of linear rise from 0 to the base lr at the start")]


class MultiStep(Section):
    """The base lr, multiplied by a factor from each milestone on."""

    name: Literal["multistep"] = Field(description="variant")
    milestones: Annotated[tuple[PositiveInt, ...], FILLED_LIST] = Field(
        description="epochs at which a new factor takes effect, increasing"
    )
    factors: Annotated[tuple[PositiveFloat, ...], FILLED_LIST] = Field(
        description="lr / base lr from each milestone on; not cumulative"
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


class Step(Section):
    """The base lr, multiplied by a factor after every so many epochs."""

    name: Literal["step"] = Field(description="variant")
    every_epochs: PositiveFloat = Field(description="epochs from one change to the next, whole or not")
    factor: InnerFraction = Field(description="of each change")
    warmup_epochs: _Warmup = 0.0


_Follows = Annotated[
    Literal["epochs", "pixels"],
    Field(
        description="the rate follows the part of the run's epochs that is done, or that of its pixels; the warm-up and"
        " the peak are counted in the same way"
    ),
]


class Cosine(Section):
    """Half a cosine from the base lr down to `final_factor` of it at the end of training."""

    name: Literal["cosine"] = Field(description="variant")
    warmup_epochs: _Warmup = 0.0
    final_factor: Fraction = Field(0.0, description="lr / base lr at the end")
    follows: _Follows = "epochs"


class OneCycle(Section):
    """Linear rise from `start_factor` to the base lr, then linear fall to `final_factor`."""

    name: Literal["one_cycle"] = Field(description="variant")
    peak_fraction: InnerFraction = Field(0.3, description="fraction of max_duration at which the base lr is reached")
    start_factor: Fraction = Field(0.04, description="lr / base lr at the start")
    final_factor: Fraction = Field(0.0, description="lr / base lr at the end")
    follows: _Follows = "epochs"


class Constant(Section):
    """The base lr throughout."""

    name: Literal["constant"] = Field(description="variant")
    warmup_epochs: _Warmup = 0.0


Schedule = Annotated[MultiStep | Step | Cosine | OneCycle | Constant, Field(discriminator="name")]


Interpolation = Literal["bilinear", "bicubic"]


class Loader(Section):
    """Decoding of the training batches."""

    num_workers: PositiveInt | None = Field(None, description="decoding threads of a rank; null: cores / local ranks")
    batches_ahead: PositiveInt = Field(2, description="batches decoded ahead of the training step")
    min_oversampling: PositiveFloat | None = Field(
        0.8,
        description="decode from a smaller copy of an image if the view's window there has at least this many times the"
        " view's side; null: always decode the full image",
    )
    interpolation: Interpolation = Field("bilinear", description="filter that views are resized with, antialiased")
    window_mib: PositiveInt | None = Field(
        None,
        description="null: random order; a number: quasi-random order, read page by page and mixed in windows of this"
        " many MiB",
    )


class Execution(Section):
    """Execution of the forward and backward pass."""

    network: Literal["eager", "compile", "cuda_graphs"] = Field(
        "eager",
        description="eager; compile: torch.compile, once for each shape; cuda_graphs: replay one CUDA graph for each"
        " shape, on one rank and without microbatches",
    )
    preflight: bool | None = Field(
        None, description="run every shape once before training, counted as set-up time; null: on a GPU only"
    )


class Evaluation(Section):
    """Accuracy at several sizes."""

    sizes: Annotated[tuple[Pixels, ...], FILLED_LIST, AfterValidator(check_distinct)] = Field(
        description="image sides in pixels to evaluate at"
    )
    batch_size: PositiveInt = Field(256, description="images in an evaluation batch, over all ranks together")
    every_epochs: PositiveInt = Field(1, description="epochs between evaluations")
    min_oversampling: PositiveFloat | None = Field(1.0, description="as loader.min_oversampling")
    interpolation: Interpolation | None = Field(
        None, description="as loader.interpolation; null: the network's own, as data.normalization: network"
    )


class Wandb(Section):
    """Logging to Weights & Biases."""

    project: Text = Field(description="project to log to")
    entity: Text | None = Field(None, description="user or team; null: the account's default")
    group: Text | None = Field(None, description="group of runs; null: none")
    tags: Annotated[tuple[Text, ...], LIST] = Field((), description="tags of the run")
    mode: Literal["online", "offline", "disabled"] = Field("online", description="W&B mode")


_COUNT = "[1-9][0-9]{0,11}"
_DURATION = re.compile(rf"({_COUNT})(ep|ba|sec)")


def _matching(pattern: str, allowed: str) -> BeforeValidator:
    def check(value: object) -> object:
        if not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise fault(f"must be {allowed}")
        return value

    return BeforeValidator(check)


Duration = Annotated[
    str,
    _matching(
        _DURATION.pattern,
        "a whole number of epochs ('90ep'), of batches ('500ba') or of seconds ('600sec') of at most 12 digits",
    ),
]
Interval = Annotated[
    str,
    _matching(
        rf"{_COUNT}(ep|ba)|never",
        "a whole number of epochs ('1ep') or of batches ('500ba') of at most 12 digits, or never",
    ),
]


class Output(Section):
    """Files and logs of a run."""

    folder: Text = Field("runs", description="folder that holds a folder for each run")
    save_every: Interval = Field("1ep", description="epochs ('1ep') or steps ('500ba') between checkpoints, or 'never'")
    keep_checkpoints: NaturalInt = Field(1, description="number of newest checkpoints to keep; 0: all")
    restart: bool = Field(
        False,
        description="start again if a run of this name exists, and delete its checkpoints and record; a run's own"
        " recipe.yaml says false",
    )
    log_batches: bool = Field(
        False, description="write a checksum of every batch to batches-rank*.csv, for comparing runs"
    )
    wandb: Wandb | None = Field(None, description="Weights & Biases logging; null: none")


class Recipe(Section):
    """Every setting of a training run."""

    name: Text = Field(description="stem of the run's name")
    max_duration: Duration = Field(
        description="length of training: '<int>ep' (epochs), '<int>ba' (batches, that is optimiser steps) or '<int>sec'"
        " (seconds of training without evaluations)"
    )
    seed: Seed = Field(17, description="seed of the initial weights, the epoch plans and the augmentation")
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = Field(
        "fp32",
        description="precision of the network's passes in training, evaluation and calibration; on a CPU amp_bf16 needs"
        " bfloat16 instructions, and amp_fp16 is refused",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU if there is one")
    channels_last: bool = Field(False, description="keep images and weights in channels-last memory order")
    microbatch_images: PositiveInt | None = Field(
        None, description="images of a rank in one forward pass, gradients are summed; null: the whole batch"
    )
    progress_bar: bool = Field(True, description="draw a progress bar on the terminal")
    model: Model = Field(description="the network")
    data: Data = Field(description="the images")
    regime: Regime = Field(description="image sizes, batch sizes and duplicates")
    optimizer: Optimizer = Field(description="the optimiser")
    schedule: Schedule = Field(description="the learning rate over time")
    mixing: Mixing | None = Field(None, description="Mixup and CutMix of the training images; null: none")
    loss: Loss = Field(CrossEntropy.model_validate({}), description="the loss")
    smoothing: Smoothing | None = Field(None, description="gradient smoothing; null: none")
    calibration: Calibration | None = Field(None, description="batch-norm calibration at evaluation; null: none")
    loader: Loader = Field(Loader.model_validate({}), description="the training loader")
    execution: Execution = Field(Execution.model_validate({}), description="execution of the forward and backward pass")
    algorithms: dict[Text, dict[Text, Value]] = Field(
        {}, description="Composer's algorithms by name, each with its arguments; {} for the defaults, null for none"
    )
    callbacks: dict[Text, dict[Text, Value]] = Field(
        {}, description="Composer's callbacks by name, each with its arguments; {} for the defaults, null for none"
    )
    evaluation: Evaluation = Field(description="when and at which sizes accuracy is measured")
    output: Output = Field(Output.model_validate({}), description="files and logs")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        self._check_duration()
        self._check_schedule()
        if self.execution.network == "cuda_graphs" and self.microbatch_images is not None:
            raise fault(
                "a graph overwrites the gradients of the previous microbatch: leave out microbatch_images, or choose "
                "compile",
                ("execution", "network"),
            )
        if self.optimizer.train != "all" and not self.model.pretrained and self.model.checkpoint is None:
            raise fault(
                "leaves random weights as they are: give model.checkpoint, or model.pretrained=true",
                ("optimizer", "train"),
            )
        if isinstance(self.regime, ProgressiveRegime):
            self._check_phases(self.regime)
            self._check_strengths(self.regime)
        if self.algorithms or self.callbacks:
            # It imports Composer, which recipes without these sections need not wait for.
            from mixsize.recipes.config.composer_checks import check_composer

            check_composer(self)
        return self

    def _check_phases(self, regime: ProgressiveRegime) -> None:
        if self.optimizer.lr_scaling in BY_MEAN_BATCH:
            raise fault(
                f"{self.optimizer.lr_scaling} needs one mean batch for the whole run, which phases do not have; use "
                "none and regime.phases[].lr_factor, or linear_by_step or sqrt_by_step",
                ("optimizer", "lr_scaling"),
            )
        for index, phase in enumerate(regime.phases or ()):
            if phase.crop_scale is not None and not isinstance(self.data.augment, RandomResizedCrop):
                raise fault(
                    f"needs data.augment.name random_resized_crop, it is {self.data.augment.name}",
                    ("regime", "phases", index, "crop_scale"),
                )

    def _check_strengths(self, regime: ProgressiveRegime) -> None:
        """Refuse a strength of a setting that the recipe does not have."""
        given = [(("phases", index), phase) for index, phase in enumerate(regime.phases or ())]
        policy = getattr(self.data.augment, "policy", "none")
        for place, part in [*given, (("strengths",), regime.strengths)]:
            for name, strength in part.given.items() if part is not None else ():
                lacking = self._lacking_for(name)
                if lacking is not None:
                    raise fault(lacking, ("regime", *place, name))
                if name == "magnitude":
                    highest = max(strength) if isinstance(strength, tuple) else strength
                    check_magnitude(highest, policy, ("regime", *place, name))

    def _lacking_for(self, strength: str) -> str | None:
        """What a strength would need to have an effect, or None.

        The one place that knows which sections the strengths belong to. Whether the network has dropout and stochastic
        depth is seen when it is made.
        """
        if strength in ("dropout", "drop_path"):
            engine = self.execution.network
            return None if engine == "eager" else f"needs execution.network eager; {engine} builds a rate in, once"
        if strength in ("mixup", "cutmix") and self.mixing is None:
            return "needs the section mixing"
        return None

    def _check_duration(self) -> None:
        length, unit = self.duration
        if unit == "ep" and length > MAX_EPOCHS:
            raise fault(f"is {self.max_duration}; it must be at most {MAX_EPOCHS} epochs", ("max_duration",))
        if isinstance(self.regime, ProgressiveRegime) and self.regime.follows_duration is not None:
            key, has = self.regime.follows_duration
            if unit != "ep":
                raise fault(
                    f"has {has}, which need a max_duration in epochs; it is {self.max_duration}", ("regime", key)
                )
            try:
                self.regime.build(self.regime.stride or 1, self.regime.batch_multiple or 1, length)
            except ValueError as error:
                raise fault(f"does not fit max_duration {self.max_duration}: {error}", ("regime", key)) from error

    def _check_schedule(self) -> None:
        """Refuse a schedule in epochs for a run whose number of epochs is unknown or too small."""
        length, unit = self.duration
        unknown = f"in epochs, but max_duration {self.max_duration} has no known number of epochs"
        if unit == "sec" and isinstance(self.schedule, MultiStep):
            raise fault(f"has milestones {unknown}; use cosine, one_cycle or constant", ("schedule", "name"))
        if unit == "sec" and isinstance(self.schedule, Step):
            raise fault(f"has steps {unknown}; use cosine, one_cycle or constant", ("schedule", "name"))
        if unit == "sec" and isinstance(self.schedule, Cosine | OneCycle) and self.schedule.follows == "pixels":
            raise fault(
                f"needs a known number of epochs, which max_duration {self.max_duration} has not; use epochs",
                ("schedule", "follows"),
            )
        if isinstance(self.schedule, Cosine) and self.schedule.warmup_epochs:
            if unit == "sec":
                raise fault(f"is {unknown}; it must be 0", ("schedule", "warmup_epochs"))
            if unit == "ep" and self.schedule.warmup_epochs >= length:
                raise fault(f"must be below max_duration, {self.max_duration}", ("schedule", "warmup_epochs"))

    @property
    def duration(self) -> tuple[int, Literal["ep", "ba", "sec"]]:
        """`max_duration` as (count, unit)."""
        match = _DURATION.fullmatch(self.max_duration)
        assert match is not None
        return int(match[1]), cast(Literal["ep", "ba", "sec"], match[2])
