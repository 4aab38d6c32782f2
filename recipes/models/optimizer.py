"""The optimiser of a recipe for a network: its learning rate, its parameter groups, its arguments."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.recipes.config.optimisation import BY_MEAN_BATCH, AdamW, Optimizer, Sgd, TimmOptimizer


def build_optimizer(config: Optimizer, module: nn.Module, regime: Regime | Progression) -> torch.optim.Optimizer:
    """The optimiser, with the learning rate scaled and the weight decay applied as the recipe says.

    Args:
        config: of the recipe.
        module: a timm network on any device, the meta device included; it is not changed.
        regime: its mean batch scales the learning rate.

    Raises:
        ValueError: an optimiser that timm does not have, arguments that it does not take, or layer decay for a network
            whose layers timm does not group.
    """
    lr = learning_rate(config, regime)
    groups = _groups(config, module) if config.layer_decay is None else _groups_by_layer(config, module, lr)
    if isinstance(config, Sgd):
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
    if isinstance(config, AdamW):
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps)
    return _timm_optimizer(config, groups, lr)


def learning_rate(config: Optimizer, regime: Regime | Progression) -> float:
    """The peak learning rate: the recipe's, scaled by the regime's mean batch where it says so."""
    if config.lr_scaling not in BY_MEAN_BATCH:
        return config.lr
    assert isinstance(regime, Regime)  # The recipe refuses these for phases.
    if config.lr_scaling == "linear_by_sample":
        return config.lr * regime.lr_scale_by_sample
    return config.lr * (regime.lr_scale if config.lr_scaling == "linear" else math.sqrt(regime.lr_scale))


def _groups(config: Optimizer, module: nn.Module) -> list[dict[str, Any]]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.decay == "weights":
        # Biases and the scales and shifts of normalisation layers are the parameters of one dimension.
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    else:
        groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    return [group for group in groups if group["params"]]


def _groups_by_layer(config: Optimizer, module: nn.Module, lr: float) -> list[dict[str, Any]]:
    if not hasattr(module, "group_matcher"):
        raise ValueError(
            f"optimizer.layer_decay: timm does not say what the layers of a {type(module).__name__} are: its class has "
            "no group_matcher; leave out layer_decay, or choose another network"
        )
    assert config.layer_decay is not None
    groups = param_groups_layer_decay(
        module,
        weight_decay=config.weight_decay,
        weight_decay_exclude_1d=config.decay == "weights",
        layer_decay=config.layer_decay,
    )
    # timm's own schedulers apply the scale; ours multiply the rate that a group was made with.
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale")
    return groups


def _timm_optimizer(config: TimmOptimizer, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    kwargs = _checked(config.kwargs, _timm_class(config.opt))
    try:
        return create_optimizer_v2(groups, config.opt, lr=lr, weight_decay=config.weight_decay, **kwargs)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"optimizer.kwargs: {config.opt} cannot be made with {config.kwargs}: {error}") from error


def _timm_class(name: str) -> type[torch.optim.Optimizer]:
    """The class behind a name; those of Apex and bitsandbytes, and second-order ones, are left out."""
    known = {str(name): get_optimizer_info(str(name)) for name in list_optimizers()}
    classes = {
        name: info.opt_class
        for name, info in known.items()
        if not isinstance(info.opt_class, str) and not info.second_order
    }
    if name in classes:
        return classes[name]
    near = difflib.get_close_matches(name, classes, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"optimizer.opt is {name!r}; it must be one of timm.optim.list_optimizers(), without those of Apex and "
        f"bitsandbytes and without adahessian{hint}"
    )


def _checked(kwargs: dict[str, Any], cls: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """The arguments in the types that the class declares; a list becomes a tuple where it asks for one."""
    parameters = [key for key in inspect.signature(cls.__init__).parameters if key not in ("self", "params")]
    hints = get_type_hints(cls.__init__)
    return {key: _checked_value(key, value, hints.get(key, Any), parameters, cls) for key, value in kwargs.items()}


def _checked_value(key: str, value: Any, hint: Any, parameters: list[str], cls: type[torch.optim.Optimizer]) -> Any:
    if key not in parameters:
        raise ValueError(f"optimizer.kwargs.{key}: {cls.__name__} takes no such argument, but {', '.join(parameters)}")
    adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        asked = inspect.formatannotation(hint).replace("typing.", "")
        raise ValueError(f"optimizer.kwargs.{key} is {value!r}; {cls.__name__} takes {asked}") from error
