"""How each of Composer's algorithms and callbacks goes with changing sizes, batches and duplicates.

`docs/composer-algorithms.md` is written from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["works", "works, with a caveat", "refused"]


@dataclass(frozen=True)
class Part:
    """What a recipe may do with an algorithm or a callback.

    Attributes:
        verdict: refused ones are refused when the recipe is read.
        words: what it does here; of a refused one the reason, and what to use instead.
        surgery: the function of `composer.functional` that changes the network; the network is built with it, for
            training and evaluation.
        adds_weights: whether the changed network has new weights, which start from random values or an approximation.
        resumes: whether a run goes on exactly from a checkpoint.
        eager_only: whether it needs `execution.network: eager`.
        choices: argument -> its values, where Composer looks at them after the first step only.
    """

    verdict: Verdict
    words: str
    surgery: str | None = None
    adds_weights: bool = False
    resumes: bool = True
    eager_only: bool = False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_NO_PICTURES = (
    "it needs a torchvision data set of Pillow images in a PyTorch DataLoader; data.augment transforms images in the"
    " loader"
)
_PAIRS = (
    "it would pair the duplicates of one image, which stand in one batch; the section mixing mixes images of different"
    " samples"
)
_HALF = "needs precision amp_bf16 or amp_fp16; the weights keep their names"

ALGORITHMS: dict[str, Part] = {
    "alibi": Part("refused", "it replaces the position embeddings of language models"),
    "augmix": Part("refused", _NO_PICTURES),
    "blurpool": Part("works", "blurs before strided convolutions and max pooling", surgery="apply_blurpool"),
    "channels_last": Part("refused", "set channels_last: true"),
    "colout": Part(
        "refused", "it changes the side of images behind the plan, so steps would have other sizes than the regime's"
    ),
    "cutmix": Part("refused", _PAIRS),
    "cutout": Part(
        "works, with a caveat",
        "one square for all images of a step, duplicates included; data.augment.cutout_px draws one for each view",
    ),
    "ema": Part(
        "works",
        "the average is evaluated, calibrated, saved and exported; an update counts a step or an epoch, whatever the"
        " step's batch",
    ),
    "factorize": Part(
        "works", "splits wide convolutions and linear layers in two", surgery="apply_factorization", adds_weights=True
    ),
    "gated_linear_units": Part("refused", "it replaces the feed-forward layers of BERT"),
    "ghost_batchnorm": Part(
        "refused",
        "the network would take no batch of fewer images than ghost_batch_size: no single image, and no short last"
        " batch of an evaluation",
    ),
    "gradient_clipping": Part(
        "works",
        "clips after gradient smoothing",
        choices={"clipping_type": ("norm", "value", "adaptive")},
    ),
    "gyro_dropout": Part(
        "refused", "its masks are made for batches of one size and are not in checkpoints; set model.kwargs.drop_rate"
    ),
    "label_smoothing": Part("refused", "set loss.label_smoothing"),
    "layer_freezing": Part(
        "works, with a caveat",
        "a checkpoint cannot be saved with it, so it needs output.save_every: never; layers freeze between epochs",
        resumes=False,
        eager_only=True,
    ),
    "low_precision_groupnorm": Part("works, with a caveat", _HALF, surgery="apply_low_precision_groupnorm"),
    "low_precision_layernorm": Part("works, with a caveat", _HALF, surgery="apply_low_precision_layernorm"),
    "mixup": Part("refused", _PAIRS),
    "no_op_model": Part("refused", "its network has no accuracy; mixsize bench loader measures the loader alone"),
    "progressive_resizing": Part(
        "refused", "it resizes batches behind the plan; regime.mode: progressive reads images at growing sizes"
    ),
    "randaugment": Part("refused", _NO_PICTURES),
    "sam": Part(
        "works, with a caveat",
        "a run cannot go on from a checkpoint, so it needs output.save_every: never; it computes two gradients a step,"
        " which smoothing would average as two steps",
        resumes=False,
        eager_only=True,
    ),
    "selective_backprop": Part(
        "refused", "it drops images of a step behind the plan, so batches and duplicates would not be the regime's"
    ),
    "seq_length_warmup": Part("refused", "it shortens sequences of language models"),
    "squeeze_excite": Part(
        "works", "adds squeeze-excite blocks behind convolutions", surgery="apply_squeeze_excite", adds_weights=True
    ),
    "stochastic_depth": Part(
        "refused", "it replaces torchvision's Bottleneck, which no timm network has; set model.kwargs.drop_path_rate"
    ),
    "swa": Part(
        "works, with a caveat",
        "the average replaces the weights at swa_end, and the steps after it measure its batch-norm statistics; without"
        " such steps, use calibration",
        eager_only=True,
    ),
    "weight_standardization": Part(
        "works", "standardises the weights of convolutions", surgery="apply_weight_standardization"
    ),
}

CALLBACKS: dict[str, Part] = {
    "activation_monitor": Part("works", "logs norms of activations"),
    "checkpoint_saver": Part("refused", "set output.save_every and output.keep_checkpoints"),
    "early_stopper": Part(
        "works, with a caveat",
        "monitor is MulticlassAccuracy or CrossEntropy, dataloader_label eval_{size}px; a run that goes on forgets the"
        " best value",
    ),
    "export_for_inference": Part("refused", "mixsize export writes the network with its batch-norm statistics"),
    "free_outputs": Part("refused", "the accuracy of training is computed from the outputs that it frees"),
    "generate": Part("refused", "it writes text with a language model"),
    "image_visualizer": Part("works", "logs images of training and evaluation to Weights & Biases"),
    "load_checkpoint": Part("refused", "set model.checkpoint; a stopped run goes on by itself"),
    "lr_monitor": Part("works", "logs the learning rate"),
    "memory_monitor": Part("works", "logs the memory of the GPU"),
    "memory_snapshot": Part("works", "writes the history of the GPU's memory"),
    "mlperf": Part("refused", "it needs a PyTorch DataLoader of one batch size"),
    "nan_monitor": Part("works", "ends a run with a loss that is not a number, as every run ends here"),
    "oom_observer": Part("works", "writes the GPU's memory where it is exhausted"),
    "optimizer_monitor": Part("works", "logs norms of gradients and of the optimiser's state"),
    "runtime_estimator": Part(
        "works, with a caveat", "its estimate takes the steps to come to be like those before, of whatever size"
    ),
    "speed_monitor": Part(
        "works, with a caveat", "its images per second are those of the sizes in its window; duplicates are not counted"
    ),
    "system_metrics_monitor": Part("works", "logs the use of processors and memory"),
    "threshold_stopper": Part(
        "works, with a caveat", "monitor is MulticlassAccuracy or CrossEntropy, dataloader_label eval_{size}px"
    ),
}
