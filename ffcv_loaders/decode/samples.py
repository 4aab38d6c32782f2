"""Samples of map-style data sets: pairs (image, label), checked one by one."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from mixsize.ffcv_loaders.decode.hugging_face import HuggingFaceImages, Split, is_split

_EXPECTED = (
    "a map-style data set of pairs (image, label): a Pillow image or a uint8 array (H, W, 3) or (H, W), and a class "
    "index, without transforms such as ToTensor, as the loader crops and normalises"
)


class ImageDataset(Protocol):
    """A map-style data set of (image, label): a Pillow image or a ``(H, W, 3)`` uint8 array, and a class index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


def as_images(data: ImageDataset | Split) -> ImageDataset:
    """A data set of pairs, for a split of Hugging Face's datasets too.

    Raises:
        ValueError: a data set without a length and numbered samples, or a split without a column of images or labels.
    """
    if is_split(data):
        return HuggingFaceImages(cast(Split, data))
    is_iterable = isinstance(data, IterableDataset)
    numbered = hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, Mapping)
    if is_iterable or not numbered:
        hint = "; for shards of WebDataset, give their names to mixsize convert" if is_iterable else ""
        raise ValueError(f"data is {_in_words(data)}; expected {_EXPECTED}{hint}")
    return cast(ImageDataset, data)


def read_sample(data: ImageDataset, index: int) -> tuple[Image.Image, int]:
    """A sample's image in RGB, and its label.

    Raises:
        ValueError: something else; the message says what is expected and what was found.
    """
    sample: Any = data[index]
    if not (isinstance(sample, tuple | list) and len(sample) == 2):
        raise ValueError(f"sample {index} is {_in_words(sample)}; expected {_EXPECTED}")
    image, label = sample
    if not isinstance(image, Image.Image):
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim > 1
        if not is_array or image.shape[2:] not in ((), (3,)):
            raise ValueError(f"the image of sample {index} is {_in_words(image)}; expected {_EXPECTED}")
        image = Image.fromarray(image)
    try:
        return image.convert("RGB"), operator.index(label)
    except TypeError as error:
        raise ValueError(f"the label of sample {index} is {_in_words(label)}; expected {_EXPECTED}") from error


def _in_words(value: object) -> str:
    """Type and shape of a value, and the keys of a mapping."""
    words = f"a {type(value).__name__}"
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{words} {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return f"{words} with the keys {', '.join(map(str, value))}"
    return f"{words} of length {len(value)}" if isinstance(value, tuple | list) else words
