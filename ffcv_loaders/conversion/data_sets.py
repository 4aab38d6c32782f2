"""Data sets of other libraries as sources: PyTorch's map-style data sets and splits of Hugging Face's ``datasets``."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Subset

from mixsize.ffcv_loaders.conversion.encode import Item, UnusableImage
from mixsize.ffcv_loaders.conversion.sources import numbered, printable, wrong_label
from mixsize.ffcv_loaders.decode.hugging_face import find_columns
from mixsize.ffcv_loaders.decode.samples import ImageDataset, read_sample


class MapStyleSource:
    """A map-style data set of (image, label). It is read in this process, in order.

    Its classes are named by its ``classes``, as torchvision names them, else by number.

    Args:
        data: see :class:`~mixsize.ffcv_loaders.decode.samples.ImageDataset`.
    """

    kind = "map-style data set"

    def __init__(self, data: ImageDataset) -> None:
        self._data = data
        self._named = _class_names(data)
        self._greatest = -1

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; without any, the numbers up to the greatest label that was read."""
        return numbered(self._greatest + 1) if self._named is None else self._named

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """As in ``sample 17``."""
        return f"sample {index}"

    def sample(self, index: int) -> tuple[Item, int]:
        """The sample's pixels, and the label.

        Raises:
            ValueError: the sample is not a pair of an image and a label.
        """
        try:
            image, label = read_sample(self._data, index)
        except OSError as error:
            return UnusableImage(f"cannot be read: {error.strerror or error}"), 0
        wrong = wrong_label(label, None if self._named is None else len(self._named))
        if wrong is not None:
            return UnusableImage(wrong), 0
        self._greatest = max(self._greatest, label)
        return np.asarray(image), label


def _class_names(data: Any) -> tuple[str, ...] | None:
    while isinstance(data, Subset):
        data = data.dataset
    names = getattr(data, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(printable, names))


class HuggingFaceSource:
    """A split of Hugging Face's ``datasets``, whose files are taken as they are, undecoded.

    Args:
        split: a ``datasets.Dataset``.
        image_column: name of the column of images; None for the only one.
        label_column: name of the column of class labels; None for the only one.

    Raises:
        ValueError: see :func:`~mixsize.ffcv_loaders.decode.hugging_face.find_columns`.
    """

    kind = "Hugging Face data set"

    def __init__(self, split: Any, image_column: str | None, label_column: str | None) -> None:
        from datasets import Image

        columns = find_columns(split, image_column, label_column)
        self.classes = tuple(map(printable, columns.classes))
        self._columns = columns
        chosen = split.select_columns([columns.image, columns.label])
        self._rows = chosen.cast_column(columns.image, Image(decode=False)).with_format(None)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """As in ``sample 17``."""
        return f"sample {index}"

    def sample(self, index: int) -> tuple[Item, int]:
        """The bytes of the image's file or its path, and the label."""
        row = self._rows[index]
        image, label = row[self._columns.image], row[self._columns.label]
        if label is None:
            return UnusableImage("has no label"), 0
        wrong = wrong_label(label, len(self.classes))
        if wrong is not None:
            return UnusableImage(wrong), 0
        if image is None or (image["bytes"] is None and image["path"] is None):
            return UnusableImage("has no image"), label
        return image["path"] if image["bytes"] is None else image["bytes"], label
