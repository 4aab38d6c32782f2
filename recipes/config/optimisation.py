"""The sections of a recipe that say what a training step minimises and how: mixing, loss and optimiser."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixsize.recipes.config.section import (
    LIST,
    Fraction,
    FractionBelowOne,
    InnerFraction,
    NaturalFloat,
    PositiveFloat,
    PositiveFraction,
    Section,
    Text,
    Value,
    fault,
)

#: Learning-rate scalings that need one mean batch for the whole run.
BY_MEAN_BATCH = ("linear", "linear_by_sample", "sqrt")
# Arguments of timm's optimisers that have a key of their own.
_RESERVED_KWARGS = {
    "params": "set optimizer.train",
    "lr": "set optimizer.lr",
    "weight_decay": "set optimizer.weight_decay",
}


class Mixing(Section):
    """Mixup and CutMix: each view is mixed with a view of another image, with one draw for a batch of a rank."""

    mixup: NaturalFloat = Field(
        0.2, description="alpha of the Beta(alpha, alpha) that the shares of Mixup are drawn from; 0: no Mixup"
    )
    cutmix: NaturalFloat = Field(1.0, description="the same for CutMix; 0: no CutMix")
    prob: PositiveFraction = Field(1.0, description="probability that a batch is mixed")
    switch_prob: Fraction = Field(0.5, description="probability of CutMix where mixup and cutmix are both above 0")

    @model_validator(mode="after")
    def _mixes(self) -> "Mixing":
        if not (self.mixup or self.cutmix):
            raise fault("has no effect: give mixing.mixup or mixing.cutmix above 0")
        return self


class _AnyLoss(Section):
    name: str  # Each variant narrows it; declared here so that it is written first.
    label_smoothing: FractionBelowOne = Field(0.0, description="probability mass spread evenly over all classes")


class CrossEntropy(_AnyLoss):
    """Cross-entropy of the softmax over classes."""

    name: Literal["cross_entropy"] = Field("cross_entropy", description="variant")


class BinaryCrossEntropy(_AnyLoss):
    """Binary cross-entropy of each class on its own, averaged over images and classes."""

    name: Literal["bce"] = Field(description="variant")
    target_threshold: InnerFraction | None = Field(
        None, description="targets above it count as 1 and others as 0, after mixing and smoothing; null: as they are"
    )
    sum_classes: bool = Field(False, description="sum over classes in place of the average")


Loss = Annotated[CrossEntropy | BinaryCrossEntropy, Field(discriminator="name")]


class _AnyOptimizer(Section):
    name: str  # Each variant narrows it; declared here so that it is written first.
    train: Literal["all", "head_and_batch_norm"] = Field(
        "all",
        description="parameters that are trained: all, or those of the last layer and of batch norm only; batch norm's"
        " running statistics are updated with both",
    )
    lr: PositiveFloat = Field(description="peak learning rate, before lr_scaling")
    weight_decay: NaturalFloat = Field(0.0, description="coefficient of the optimiser's weight decay")
    decay: Literal["weights", "all"] = Field(
        "weights", description="parameters that decay: all except biases and normalisation layers, or all"
    )
    layer_decay: PositiveFraction | None = Field(
        None,
        description="factor of the learning rate from each layer to the one before it, in timm's groups of layers; the"
        " last layer has the full rate; null: one rate for all",
    )
    lr_scaling: Literal["none", "linear", "linear_by_sample", "sqrt", "linear_by_step", "sqrt_by_step"] = Field(
        "none",
        description="multiply lr by a batch / regime.base.batch_size, or by the square root of that; linear, sqrt: the"
        " batch of the mean step, linear_by_sample: that of the mean sample; linear_by_step, sqrt_by_step: each step's"
        " own",
    )
    clip_norm: PositiveFloat | None = Field(
        None, description="largest L2 norm over all gradients, after gradient smoothing; null: no limit"
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


class TimmOptimizer(_AnyOptimizer):
    """An optimiser of timm or PyTorch, by its name in timm (`timm.optim.list_optimizers()`)."""

    name: Literal["timm"] = Field(description="variant")
    opt: Text = Field(description="timm's name of the optimiser, such as lamb")
    kwargs: dict[Text, Value] = Field({}, description="further arguments of the optimiser, as YAML writes them")

    @model_validator(mode="after")
    def _own_keys(self) -> "TimmOptimizer":
        for key, advice in _RESERVED_KWARGS.items():
            if key in self.kwargs:
                raise fault(f"cannot be given here: {advice}", ("kwargs", key))
        return self


Optimizer = Annotated[Sgd | AdamW | TimmOptimizer, Field(discriminator="name")]
