"""AmoebaNet-A for CIFAR, registered with timm when this module is imported.

The cell of Real et al. 2019, "Regularized evolution for image classifier architecture search", in the network around it
of Liu et al. 2019 (DARTS), which the released code of the MixSize paper uses too: a stem of three times the width,
`layers` cells of which two halve the maps and double the width, pooling and one linear layer. It is fully
convolutional with a stride of 4. Their auxiliary classifier, made for maps of 8 x 8, is left out.

    >>> import timm
    >>> import mixsize.recipes.models.amoebanet
    >>> sum(p.numel() for p in timm.create_model("cifar_amoebanet_a").parameters())
    3145078
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from mixsize.recipes.models.networks import CIFAR_CFG, CifarNet

__all__ = ["AmoebaNet", "cifar_amoebanet_a"]

# A node adds the results of two operations on earlier states; states 0 and 1 are the inputs of the cell.
Node = tuple[tuple[str, int], tuple[str, int]]
NORMAL: tuple[Node, ...] = (
    (("avg", 0), ("max", 1)),
    (("sep3", 0), ("sep5", 2)),
    (("sep3", 0), ("avg", 3)),
    (("sep3", 1), ("skip", 1)),
    (("skip", 0), ("avg", 1)),
)
REDUCTION: tuple[Node, ...] = (
    (("avg", 0), ("sep3", 1)),
    (("max", 0), ("sep7", 2)),
    (("sep7", 0), ("avg", 1)),
    (("max", 0), ("max", 1)),
    (("conv7", 0), ("sep3", 5)),
)
# States that are concatenated to the output of a cell.
NORMAL_OUTPUT, REDUCTION_OUTPUT = (4, 5, 6), (3, 4, 6)
_OUTPUTS = 3

default_cfgs = generate_default_cfgs({"cifar_amoebanet_a.untrained": {**CIFAR_CFG, "classifier": "fc"}})


def _relu_conv_norm(in_chs: int, out_chs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs))


def _separable(chs: int, kernel: int, stride: int) -> nn.Sequential:
    """Two depthwise convolutions, each followed by a pointwise one and batch norm."""
    layers: list[nn.Module] = []
    for step in (stride, 1):
        depthwise = nn.Conv2d(chs, chs, kernel, step, kernel // 2, groups=chs, bias=False)
        layers += [nn.ReLU(), depthwise, nn.Conv2d(chs, chs, 1, bias=False), nn.BatchNorm2d(chs)]
    return nn.Sequential(*layers)


def _one_by_seven(chs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(chs, chs, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(chs, chs, (7, 1), (stride, 1), (3, 0), bias=False),
        nn.BatchNorm2d(chs),
    )


def _operation(name: str, chs: int, stride: int) -> nn.Module:
    if name == "skip":
        assert stride == 1
        return nn.Identity()
    if name == "avg":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "max":
        return nn.MaxPool2d(3, stride, 1)
    if name == "conv7":
        return _one_by_seven(chs, stride)
    return _separable(chs, int(name.removeprefix("sep")), stride)


class Halving(nn.Module):
    """Halves maps without losing pixels: concatenates 1 x 1 convolutions of the even and of the odd pixels.

    Maps `(N, in_chs, H, W)` to `(N, out_chs, ceil(H / 2), ceil(W / 2))`.
    """

    def __init__(self, in_chs: int, out_chs: int):
        super().__init__()
        self.even = nn.Conv2d(in_chs, out_chs // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_chs, out_chs - out_chs // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the halved maps."""
        x = F.relu(x)
        # An odd side has one odd pixel less than even ones: pad the border with a zero.
        shifted = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


class Cell(nn.Module):
    """Five nodes on the outputs of the two previous cells; three of the nodes are its output.

    Args:
        before: output channels of the cell before the previous one.
        last: output channels of the previous cell.
        chs: channels of each node.
        reduce: halve the maps.
        last_reduced: the previous cell halved its maps, so the earlier output must be halved too.
        drop_path_rate: probability that an operation's result is dropped for a sample, in training.
    """

    def __init__(self, before: int, last: int, chs: int, reduce: bool, last_reduced: bool, drop_path_rate: float):
        super().__init__()
        self.before = Halving(before, chs) if last_reduced else _relu_conv_norm(before, chs)
        self.last = _relu_conv_norm(last, chs)
        self.nodes = REDUCTION if reduce else NORMAL
        self.output = REDUCTION_OUTPUT if reduce else NORMAL_OUTPUT
        self.operations = nn.ModuleList(
            _operation(name, chs, stride=2 if reduce and state < 2 else 1)
            for node in self.nodes
            for name, state in node
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of the two previous cells to `(N, 3 * chs, H, W)`, or half of H and W."""
        states = [self.before(before), self.last(last)]
        for index, node in enumerate(self.nodes):
            terms = []
            for operation, (name, state) in zip(self.operations[2 * index : 2 * index + 2], node, strict=True):
                term = operation(states[state])
                terms.append(term if name == "skip" else self.drop_path(term))
            states.append(terms[0] + terms[1])
        return torch.cat([states[state] for state in self.output], dim=1)


class AmoebaNet(CifarNet):
    """Cells of AmoebaNet-A for CIFAR.

    Args:
        layers: number of cells; the ones at a third and two thirds halve the maps.
        width: channels of a node in the first cells.
        num_classes: outputs; 0 for pooled features.
        in_chans: image channels.
        global_pool: timm's pooling type.
        drop_rate: dropout before the last layer, in training.
        drop_path_rate: see :class:`Cell`; the same in every cell and epoch.
    """

    def __init__(
        self,
        layers: int = 20,
        width: int = 36,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(num_classes, in_chans, drop_rate)
        before = last = _OUTPUTS * width
        self.conv1 = nn.Conv2d(in_chans, last, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(last)
        self.feature_info.append({"num_chs": last, "reduction": 1, "module": "bn1"})
        reductions = (layers // 3, 2 * layers // 3)
        last_reduced = False
        self.cells = nn.ModuleList()
        for index in range(layers):
            reduce = index in reductions
            width *= 2 if reduce else 1
            self.cells.append(Cell(before, last, width, reduce, last_reduced, drop_path_rate))
            before, last, last_reduced = last, _OUTPUTS * width, reduce
            if index + 1 in (*reductions, layers):
                stage = len(self.feature_info) - 1
                self.feature_info.append({"num_chs": last, "reduction": 2**stage, "module": f"cells.{index}"})
        self.num_features = last
        self._add_head(global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `(N, in_chans, H, W)` to `(N, 12 * width, ceil(H / 4), ceil(W / 4))`."""
        before = last = self.bn1(self.conv1(x))
        for cell in self.cells:
            before, last = last, cell(before, last)
        return last


@register_model
def cifar_amoebanet_a(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AmoebaNet-A (20 cells, 36 channels) for CIFAR, 3.1 M parameters."""
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "hook"}
    return build_model_with_cfg(AmoebaNet, "cifar_amoebanet_a", pretrained, feature_cfg=features, **kwargs)
