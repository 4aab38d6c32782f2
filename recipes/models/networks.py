"""CIFAR networks that timm lacks, registered with timm when this module is imported.

`cifar_resnet20` and `cifar_resnet44` follow He et al. 2016, "Deep residual learning for image recognition", section
4.2; `wrn16_2` and `wrn28_10` follow Zagoruyko and Komodakis 2016, "Wide residual networks". They are fully
convolutional with a stride of 4 and take any input size; a size that is not a multiple of 4 rounds its feature maps up.

    >>> import timm
    >>> import mixsize.recipes.models.networks
    >>> model = timm.create_model("cifar_resnet44", num_classes=10)
    >>> [stage["reduction"] for stage in model.feature_info]
    [1, 1, 2, 4]
"""

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

__all__ = ["CifarResNet", "WideResNet", "cifar_resnet20", "cifar_resnet44", "wrn16_2", "wrn28_10"]

# Zagoruyko and Komodakis write WRN-(6n+4)-k, He et al. ResNet-(6n+2): n blocks of two convolutions in each of 3 stages.
STAGES = 3
RESNET_WIDTHS = (16, 32, 64)

CIFAR_CFG = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "conv1",
    "classifier": "fc",
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet20.untrained": CIFAR_CFG,
        "cifar_resnet44.untrained": CIFAR_CFG,
        "wrn16_2.untrained": CIFAR_CFG,
        "wrn28_10.untrained": CIFAR_CFG,
    }
)


def _conv(in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel, stride=stride, padding=kernel // 2, bias=False)


class SubsamplePad(nn.Module):
    """Shortcut "option A" of He et al.: every `stride`-th pixel, zeros for the new channels, no parameters.

    Maps `(N, C, H, W)` to `(N, C + extra_chs, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, extra_chs: int, stride: int):
        super().__init__()
        self.extra_chs = extra_chs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the subsampled and zero-padded maps."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_chs))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm after each, added to the shortcut before the last ReLU."""

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        same = in_chs == out_chs and stride == 1
        self.conv1 = _conv(in_chs, out_chs, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.conv2 = _conv(out_chs, out_chs, 3)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.shortcut = nn.Identity() if same else SubsamplePad(out_chs - in_chs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in_chs, H, W)` to `(N, out_chs, ceil(H / stride), ceil(W / stride))`."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each 3 x 3 convolution, dropout between them, 1 x 1 shortcut where the shape changes.

    The 1 x 1 convolution sees the activated input, as in the authors' code.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_rate: float):
        super().__init__()
        same = in_chs == out_chs and stride == 1
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = _conv(in_chs, out_chs, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = _conv(out_chs, out_chs, 3)
        self.shortcut = None if same else _conv(in_chs, out_chs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in_chs, H, W)` to `(N, out_chs, ceil(H / stride), ceil(W / stride))`."""
        y = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        return x + self.conv2(self.drop(y))


def _stage(block: Callable[..., nn.Module], in_chs: int, out_chs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [block(out_chs, out_chs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(in_chs, out_chs, stride), *rest)


class CifarNet(nn.Module):
    """A network for CIFAR with stages at strides 1, 2 and 4 and timm's pooling and classifier interface.

    Subclasses set `conv1` first, so that timm's `features_only` finds the modules in the order of their use, then
    call `_add_stages`, then `_add_head`.
    """

    conv1: nn.Conv2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    global_pool: SelectAdaptivePool2d
    fc: nn.Module
    num_features: int

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = []

    def _add_stages(self, block: Callable[..., nn.Module], stem_chs: int, widths: tuple[int, ...], blocks: int) -> None:
        in_chs = stem_chs
        for index, width in enumerate(widths):
            name = f"layer{index + 1}"
            self.add_module(name, _stage(block, in_chs, width, blocks, stride=1 if index == 0 else 2))
            self.feature_info.append({"num_chs": width, "reduction": 2**index, "module": name})
            in_chs = width
        self.num_features = in_chs

    def _add_head(self, global_pool: str) -> None:
        head = create_classifier(self.num_features, self.num_classes, pool_type=global_pool)
        self.global_pool, self.fc = cast(tuple[SelectAdaptivePool2d, nn.Module], head)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def _init_convolutions(self) -> None:
        """Draw the convolutions from Kaiming's normal distribution (fan out)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the last layer, or its attribute name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one with `num_classes` outputs; 0 returns the pooled features.

        Args:
            num_classes: outputs of the new layer.
            global_pool: timm's pooling type, `""` for none; None keeps the current one.
        """
        self.num_classes = num_classes
        weight = self.conv1.weight
        self._add_head(self.global_pool.pool_type if global_pool is None else global_pool)
        self.fc.to(device=weight.device, dtype=weight.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def _forward_stages(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool `(N, num_features, h, w)` and classify; `pre_logits` stops before the last layer.

        Returns:
            `(N, num_classes)`, or `(N, head_hidden_size)` with `pre_logits`.
        """
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images to the last feature maps, before pooling."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(N, in_chans, H, W)` to logits `(N, num_classes)`."""
        return self.forward_head(self.forward_features(x))


class CifarResNet(CifarNet):
    """The 6n+2 layer ResNet of He et al. 2016 for CIFAR: 16, 32 and 64 channels, parameter-free shortcuts.

    Args:
        blocks: n, the residual blocks in each of the three stages.
        num_classes: outputs; 0 for pooled features.
        in_chans: image channels.
        global_pool: timm's pooling type.
        drop_rate: dropout before the last layer, in training.
        zero_init_last: start the last batch norm of each block at gamma = 0, so that every block begins as its
            shortcut. The MixSize paper trains this way; He et al. did not.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        zero_init_last: bool = True,
    ):
        super().__init__(num_classes, in_chans, drop_rate)
        stem_chs = RESNET_WIDTHS[0]
        self.conv1 = _conv(in_chans, stem_chs, 3)
        self.bn1 = nn.BatchNorm2d(stem_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info.append({"num_chs": stem_chs, "reduction": 1, "module": "act1"})
        self._add_stages(ResidualBlock, stem_chs, RESNET_WIDTHS, blocks)
        self._add_head(global_pool)
        self._init_convolutions()
        for module in self.modules():
            if zero_init_last and isinstance(module, ResidualBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `(N, in_chans, H, W)` to `(N, 64, ceil(H / 4), ceil(W / 4))`."""
        return self._forward_stages(self.act1(self.bn1(self.conv1(x))))


class WideResNet(CifarNet):
    """The pre-activation wide residual network WRN-(6n+4)-k of Zagoruyko and Komodakis 2016.

    It has no `zero_init_last`: the last batch norm of a pre-activation block is followed by a ReLU, and with gamma and
    beta at zero neither would receive a gradient.

    Args:
        blocks: n, the residual blocks in each of the three stages.
        widen: k, the factor on the widths 16, 32 and 64.
        num_classes: outputs; 0 for pooled features.
        in_chans: image channels.
        global_pool: timm's pooling type.
        drop_rate: dropout before the last layer, in training.
        block_drop_rate: dropout between the two convolutions of each block, in training (the paper's dropout).
    """

    def __init__(
        self,
        blocks: int,
        widen: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        block_drop_rate: float = 0.0,
    ):
        super().__init__(num_classes, in_chans, drop_rate)
        stem_chs = RESNET_WIDTHS[0]
        self.conv1 = _conv(in_chans, stem_chs, 3)
        self.feature_info.append({"num_chs": stem_chs, "reduction": 1, "module": "conv1"})

        def block(in_chs: int, out_chs: int, stride: int) -> PreActivationBlock:
            return PreActivationBlock(in_chs, out_chs, stride, block_drop_rate)

        self._add_stages(block, stem_chs, tuple(widen * width for width in RESNET_WIDTHS), blocks)
        self.norm = nn.BatchNorm2d(self.num_features)
        self._add_head(global_pool)
        self._init_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `(N, in_chans, H, W)` to `(N, 64 * widen, ceil(H / 4), ceil(W / 4))`."""
        return F.relu(self.norm(self._forward_stages(self.conv1(x))))


def _create(network: type[CifarNet], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    # timm's default of five feature maps assumes a stride of 32.
    features = {"out_indices": tuple(range(STAGES + 1))}
    return build_model_with_cfg(network, variant, pretrained, feature_cfg=features, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for CIFAR, 0.27 M parameters."""
    return _create(CifarResNet, "cifar_resnet20", pretrained, **{"blocks": 3, **kwargs})


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-44 for CIFAR, 0.66 M parameters."""
    return _create(CifarResNet, "cifar_resnet44", pretrained, **{"blocks": 7, **kwargs})


@register_model
def wrn16_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-16-2, 0.69 M parameters: a wide network small enough for a CPU."""
    return _create(WideResNet, "wrn16_2", pretrained, **{"blocks": 2, "widen": 2, **kwargs})


@register_model
def wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10, 36.5 M parameters."""
    return _create(WideResNet, "wrn28_10", pretrained, **{"blocks": 4, "widen": 10, **kwargs})
