"""A recipe for images and a network that no packaged recipe names: each value with its reason.

The values are the field's common ones, not tuned. They are a start that trains, to change from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.recipes.models.network import check_sizes, network_stride

_SMALL_PX = 64
#: Fewer images do not fill the larger batches of smaller sizes.
_FEW = 128


@dataclass(frozen=True)
class Images:
    """What a recipe depends on in a training file.

    Attributes:
        count: number of images.
        median_px: median of their shorter sides.
        one_size: whether all are stored at one size.
    """

    count: int
    median_px: int
    one_size: bool


@dataclass(frozen=True)
class Chosen:
    """A recipe's value, and why; ``reason`` is empty for what speaks for itself."""

    key: str
    value: Any
    reason: str = ""


def choose(
    network: nn.Module, name: str, images: Images, *, on_gpu: bool, pretrained: bool, instructions: Sequence[str] = ()
) -> list[Chosen]:
    """Values for the keys of a recipe that depend on network, images and device.

    Args:
        network: a timm network, on any device.
        name: its timm name.
        images: the training images.
        on_gpu: whether a GPU trains.
        pretrained: whether training starts from timm's weights.
        instructions: the processor's for bfloat16, see :func:`~mixsize.system.machine.bfloat16_instructions`.
    """
    sizes, reason = _sizes(network, name, images)
    if images.count < _FEW:
        sizes = sizes[:1]
    base_px = sizes[0]
    batch = _batch(base_px, images.count, on_gpu)
    mixed = len(sizes) > 1
    regime: list[Chosen] = [
        Chosen("regime.mode", "B+" if mixed else "fixed", "smaller images in larger batches: fewer steps"),
        Chosen("regime.base.size_px", base_px, reason),
        Chosen("regime.base.batch_size", *batch),
    ]
    if mixed:
        share = round(1 / len(sizes), 4)
        shares = dict.fromkeys(sizes[1:], share)
        shares = {base_px: round(1 - sum(shares.values()), 4), **shares}
        regime.append(Chosen("regime.sizes", shares, "the base and smaller, in equal shares of the images"))
    else:
        regime[0] = Chosen("regime.mode", "fixed", reason)
    return [
        *_data(images),
        *regime,
        *_optimizer(network, batch[0], images.count, pretrained),
        Chosen("evaluation.sizes", _evaluation_sizes(network, name, sizes), "trained sizes, and one beyond"),
        Chosen("precision", *_precision(network, on_gpu, instructions)),
        Chosen("channels_last", on_gpu, "faster on GPUs" if on_gpu else ""),
    ]


def _precision(network: nn.Module, on_gpu: bool, instructions: Sequence[str]) -> tuple[str, str]:
    if on_gpu:
        return "amp_bf16", "a GPU trains"
    if "amx_bf16" not in instructions:
        return "fp32", "a CPU without amx_bf16 trains"
    # Depthwise convolutions took longer in bfloat16 than in float32.
    if any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in network.modules()):
        return "fp32", "a CPU trains, and the network has grouped convolutions"
    return "amp_bf16", "the CPU has amx_bf16"


def _sizes(network: nn.Module, name: str, images: Images) -> tuple[list[int], str]:
    """Sides in pixels, the base first, and the reason for the base."""
    config: Any = network.pretrained_cfg
    own, stride = config["input_size"][-1], network_stride(network)
    # Some networks' own size is no multiple of their stride: 176 px of resnet10t.
    most = max(1, round(own / stride)) * stride
    least = min(most, 2 * stride)
    rounded = -(-images.median_px // stride) * stride
    base = max(least, min(most, rounded))
    if base == most:
        reason = f"{name}'s own size" + (
            "" if most == own else f" of {own} px, to a multiple of its stride of {stride}"
        )
    elif base == rounded:
        reason = f"the images' median shorter side is {images.median_px} px, the network's stride {stride}"
    else:
        reason = f"two steps of the network's stride of {stride}; the images' median shorter side is {images.median_px}"
    sizes = sorted({max(1, round(part * base / stride)) * stride for part in (1, 0.75, 0.5)}, reverse=True)
    try:
        check_sizes(network, name, sizes)
    except ValueError:
        return [own], f"{name} takes this size only"
    return sizes, reason


def _evaluation_sizes(network: nn.Module, name: str, sizes: list[int]) -> list[int]:
    beyond = sizes[0] + max(network_stride(network), sizes[0] // 4 // network_stride(network) * network_stride(network))
    try:
        check_sizes(network, name, [beyond])
    except ValueError:
        return sizes
    return sorted([*sizes, beyond])


def _batch(base_px: int, count: int, on_gpu: bool) -> tuple[int, str]:
    """A power of 2: at most the pixels of 256 images of 224 px on a GPU or 32 of 128 px on a CPU; 16 steps an epoch."""
    most, pixels = (256, 256 * 224**2) if on_gpu else (64, 32 * 128**2)
    fitting = max(8, min(most, pixels // base_px**2, count // 16))
    return 2 ** (fitting.bit_length() - 1), "at most that many pixels on this device, and 16 steps an epoch or more"


def _data(images: Images) -> list[Chosen]:
    if images.one_size and images.median_px <= _SMALL_PX:
        padding = max(1, images.median_px // 8)
        crop = {"name": "pad_crop", "padding": padding, "flip": True}
        whole = "small images of one size, as CIFAR's"
        return [Chosen("data.augment", crop, whole), Chosen("data.eval_transform", {"name": "resize"}, whole)]
    low = 0.08 if images.count >= 500_000 else 0.35
    crop = {"name": "random_resized_crop", "scale": [low, 1.0], "ratio": [0.75, 1.3333], "flip": True}
    return [
        Chosen("data.augment", crop, f"crops of {100 * low:.0f} % of the area or more, for {images.count:,} images"),
        Chosen("data.eval_transform", {"name": "center_crop"}, "the network's own crop"),
    ]


def _optimizer(network: nn.Module, batch: int, count: int, pretrained: bool) -> list[Chosen]:
    divisor, words = (10, ", a tenth from pretrained weights") if pretrained else (1, "")
    if batch_norm_layers(network):
        lr, decay = 0.1 * batch / 256 / divisor, 1e-4 if count >= 500_000 else 5e-4
        optimizer = {"name": "sgd", "lr": lr, "momentum": 0.9, "nesterov": True, "weight_decay": decay}
        reason = f"with batch norm: 0.1 for a batch of 256{words}"
    else:
        lr = 1e-3 * batch / 256 / divisor
        optimizer = {"name": "adamw", "lr": lr, "weight_decay": 0.05}
        reason = f"without batch norm: AdamW, 0.001 for a batch of 256{words}"
    return [
        Chosen("optimizer", optimizer, reason),
        Chosen("schedule", {"name": "one_cycle", "peak_fraction": 0.2}, "rises for a fifth of the run, then falls"),
        Chosen("loss.label_smoothing", 0.1),
    ]
