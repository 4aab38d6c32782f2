"""The network of a recipe, without its data or Trainer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import timm
import torch
from timm.models import get_model_input_config
from torch import nn

from mixsize.recipes import networks, schema

# What a name of a parameter or buffer says about why a network is tied to one size, the most telling first.
_TIES = (
    ("relative_position", "attention windows and relative position biases"),
    ("rel_pos", "relative position biases"),
    ("attention_bias", "attention biases"),
    ("pos_embed", "learned position embeddings"),
    ("mlp_tokens", "token mixing layers"),
    ("spatial", "token mixing layers"),
)
# timm's arguments that make such a network take other sizes, the best first.
_FLEXIBLE = {"dynamic_img_size": True, "strict_img_size": False}


def create_network(model: schema.Model, num_classes: int) -> torch.nn.Module:
    """The timm network of a recipe.

    Raises:
        ValueError: an unknown name, arguments that the network does not take, or a checkpoint that cannot be read.
    """
    assert networks  # Importing it registers the CIFAR networks with timm.
    architecture = model.name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists the names"
        raise ValueError(f"model.name: unknown timm model {model.name!r}{hint}")
    if model.checkpoint is not None and not Path(model.checkpoint).is_file():
        raise ValueError(f"model.checkpoint: no file {model.checkpoint}")
    try:
        return timm.create_model(
            model.name,
            pretrained=model.pretrained,
            num_classes=num_classes,
            checkpoint_path=model.checkpoint or "",
            **model.kwargs,
        )
    except TypeError as error:
        raise ValueError(f"model.kwargs: {model.name} cannot be made with {model.kwargs}: {error}") from error


def network_stride(module: torch.nn.Module) -> int:
    """Pixels of the input to one position of the network's last feature map; 1 where timm does not know.

    A vision transformer's is the side of its patches.
    """
    info = getattr(module, "feature_info", None)
    reductions = [stage["reduction"] for stage in info or () if "reduction" in stage]
    if reductions:
        return max(reductions)
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", 1)
    return patch if isinstance(patch, int) else max(patch)


def planned_stride(recipe: schema.Recipe) -> int:
    """The network's stride, without allocating its weights."""
    if recipe.regime.stride is not None:
        return recipe.regime.stride
    with torch.device("meta"):
        return network_stride(
            create_network(recipe.model.model_copy(update={"pretrained": False, "checkpoint": None}), 2)
        )


def fixed_size(module: nn.Module) -> tuple[int, int] | None:
    """The one input size (height, width) in pixels that timm allows the network; None where it allows several."""
    config = get_model_input_config(module)
    return tuple(config["input_size"][-2:]) if config["fixed_input_size"] else None


def check_sizes(module: nn.Module, name: str, sizes_px: Iterable[int]) -> None:
    """Refuse square inputs that the network cannot take, before any of them is trained on.

    A network that timm marks as made for one size is refused at any other. Every other network is passed through
    once at each size on the meta device, which costs milliseconds and neither memory nor random numbers; where that
    fails even at the network's own size it proves nothing, and the sizes are accepted.

    Args:
        module: the network, on any device, the meta device included; left as it was.
        name: timm's name of the network, for messages.
        sizes_px: sides of the images in pixels; repeated ones count once.

    Raises:
        ValueError: a size that the network cannot take; the message says why, and which of timm's arguments helps.

    Example:
        >>> import timm
        >>> check_sizes(timm.create_model("resnet18"), "resnet18", [64, 96])
        >>> check_sizes(timm.create_model("vit_tiny_patch16_224"), "vit_tiny_patch16_224", [192, 224])
        Traceback (most recent call last):
            ...
        ValueError: vit_tiny_patch16_224 takes 224 px only, not 192 px: ...
    """
    sizes = sorted(set(sizes_px))
    fixed = fixed_size(module)
    if fixed is not None:
        others = [size for size in sizes if (size, size) != fixed]
        if others:
            raise ValueError(_fixed_message(module, name, fixed, sizes, others))
        return
    own = get_model_input_config(module)["input_size"][-2:]
    for size in sizes:
        problem = _forward_problem(module, (size, size))
        if problem and not _forward_problem(module, own):
            raise ValueError(f"{name} cannot take {size} px: {problem}; its own size is {own[0]} px")


def _fixed_message(
    module: nn.Module, name: str, fixed: tuple[int, int], sizes: list[int], others: list[int]
) -> str:
    own = f"{fixed[0]} px" if fixed[0] == fixed[1] else f"{fixed[0]} x {fixed[1]} px"
    names = [key for key, _ in chain(module.named_parameters(), module.named_buffers())]
    tie = next((text for part, text in _TIES if any(part in key for key in names)), "layers")
    arguments = _arguments(type(module))
    helps = [f"{{{key}: {str(value).lower()}}}" for key, value in _FLEXIBLE.items() if key in arguments][:1]
    if len(sizes) == 1 and "img_size" in arguments:
        helps.append(f"{{img_size: {sizes[0]}}}")
    advice = f"model.kwargs: {' or '.join(helps)} lifts this" if helps else (
        "none of its arguments lifts this, choose a network that takes any size"
    )
    return f"{name} takes {own} only, not {', '.join(map(str, others))} px: its {tie} are made for {own}; {advice}"


def _arguments(network: type) -> set[str]:
    """Names that the constructor takes, those that it hands on to the constructors above it included."""
    names: set[str] = set()
    for cls in network.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls).parameters.values()
        names.update(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break
    return names


def _forward_problem(module: nn.Module, size: tuple[int, int]) -> str:
    """What the network raises on two images of this height and width, "" where it takes them."""
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    meta = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
    images = torch.empty(2, get_model_input_config(module)["input_size"][0], *size, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(module, meta, (images,))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return ""
