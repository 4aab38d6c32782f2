"""``config.json`` beside a network's weights, as timm and the Hugging Face Hub write it: how its images are prepared.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads it, and so does every start from the weights here.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Gt, Interval
from pydantic import BaseModel, ConfigDict, ValidationError
from timm.models import save_for_hf
from torch import nn

from mixsize.recipes.records.run_folder import CONFIG_FILE, WEIGHTS_FILE

_Positive = Annotated[float, Gt(0)]
_Fraction = Annotated[float, Interval(gt=0, le=1)]


class Preparation(BaseModel):
    """How images are prepared for a network; None where a file does not say.

    Attributes:
        mean: of red, green and blue on the 0..1 scale.
        std: standard deviation on the same scale.
        interpolation: the resize's filter.
        crop_pct: side of the crop as a fraction of the resized image's shorter side.
        crop_mode: ``center`` crops the centre of the image resized by its shorter side; ``squash`` resizes both sides.
        input_size: channels, height and width in training, in pixels.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    mean: tuple[float, float, float] | None = None
    std: tuple[_Positive, _Positive, _Positive] | None = None
    interpolation: str | None = None
    crop_pct: _Fraction | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    input_size: tuple[int, int, int] | None = None


class _Config(BaseModel):
    pretrained_cfg: Preparation
    label_names: list[str] | dict[str, str] | None = None


def find_config(weights: Path) -> Path | None:
    """The ``config.json`` beside the weights, or one folder up for a run's checkpoints; None if there is none."""
    folder = weights.absolute().parent
    return next((path for path in (folder / CONFIG_FILE, folder.parent / CONFIG_FILE) if path.is_file()), None)


def adopt_config(network: nn.Module, weights: Path) -> None:
    """Give a network the preparation and the class names of its weights, in ``pretrained_cfg``; timm reads them there.

    Without a ``config.json`` the network keeps those of its timm configuration. Class names are left out where their
    number is not the network's number of classes.

    Raises:
        ValueError: a ``config.json`` of another form.
        OSError: it cannot be read.
    """
    path = find_config(weights)
    if path is None:
        return
    try:
        config = _Config.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {key or 'the file'}: {first['msg']}") from error
    own = cast(dict[str, Any], network.pretrained_cfg)
    for key in ("test_input_size", "test_crop_pct"):
        own.pop(key, None)  # Of timm's own weights.
    own.update(config.pretrained_cfg.model_dump(exclude_none=True))
    names = config.label_names
    if names and len(names) == network.num_classes:
        own["label_names"] = names


def config_text(network: nn.Module, preparation: Preparation, classes: Sequence[str] | None) -> str:
    """The text of ``config.json`` for a timm network.

    Args:
        network: on the CPU; it is not changed.
        preparation: all of it.
        classes: names in the order of the outputs; None leaves them out.
    """
    copied = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    names = {"label_names": list(classes)} if classes else {}
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(copied, folder, names, safe_serialization=True, data_config=preparation.model_dump())
        assert (Path(folder) / WEIGHTS_FILE).is_file()
        return (Path(folder) / CONFIG_FILE).read_text(encoding="utf-8")
