"""The batch-norm layers of a network, and the mode in which they normalise by the batch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel


def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep running statistics, by name.

    ``BatchNorm1d/2d/3d``, ``SyncBatchNorm`` and their subclasses, such as timm's ``BatchNormAct2d``. Layers made with
    ``track_running_stats=False`` and the frozen layers of torchvision and timm keep none.
    """
    return {
        name: module
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


def running_statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The layer's own ``running_mean`` and ``running_var``, not copies."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def normalise_by_batch(network: nn.Module) -> None:
    """Put batch norm into training mode and everything else, such as dropout, into evaluation mode."""
    # Module by module: a network's own train() may do more, and children of a layer (drop, act) must not follow it.
    for module in network.modules():
        module.training = False
    for layer in batch_norm_layers(network).values():
        layer.training = True


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of DDP, ``DataParallel`` and ``torch.compile``."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model
