"""Splits of Hugging Face's ``datasets``: the columns of images and labels, and the split as pairs (image, label)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Split(Protocol):
    """``datasets.Dataset``, as far as it is used here."""

    @property
    def features(self) -> Mapping[str, Any]: ...  # noqa: D102 (datasets documents it)

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class Columns:
    """The columns that a split is read by, and its class names."""

    image: str
    label: str
    classes: tuple[str, ...]


def is_split(data: object) -> bool:
    """Whether this is a ``datasets.Dataset``. Imports nothing: whoever has one has imported ``datasets``."""
    module = sys.modules.get("datasets.arrow_dataset")
    return module is not None and isinstance(data, module.Dataset)


def find_columns(split: Split, image: str | None = None, label: str | None = None) -> Columns:
    """The columns of images and of class labels, by the types of the features.

    Args:
        split: the split.
        image: name of the column of images; None for the only one.
        label: name of the column of class labels; None for the only one.

    Raises:
        ValueError: no column of a kind, several where none is named, or a named one of another kind.
    """
    # The feature's class is told by its name, so that this needs no import of seconds.
    label = _only(split, "ClassLabel", "label_column", label, "which class_encode_column makes of other columns")
    image = _only(split, "Image", "image_column", image, "which cast_column makes of others")
    return Columns(image, label, tuple(split.features[label].names))


def _only(split: Split, kind: str, option: str, name: str | None, advice: str) -> str:
    listed = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in split.features.items())
    found = [column for column, feature in split.features.items() if type(feature).__name__ == kind]
    if name is not None:
        if name not in found:
            raise ValueError(f"{option} is {name}; expected a column of the type {kind}, {advice}; there are {listed}")
        return name
    if len(found) != 1:
        number = "several columns" if found else "no column"
        choose = f"name one by {option}, or keep one by select_columns" if found else f"expected one, {advice}"
        raise ValueError(f"the data set has {number} of the type {kind}; {choose}; there are {listed}")
    return found[0]


class HuggingFaceImages:
    """A split as a map-style data set of (image, label).

    Args:
        split: with one column of images and one of class labels; others are left aside.

    Raises:
        ValueError: other columns, or a label that is missing or names no class.
    """

    def __init__(self, split: Any) -> None:
        self._columns = find_columns(split)
        self._split = split.select_columns([self._columns.image, self._columns.label]).with_format(None)
        self.classes = self._columns.classes
        labels = list(self._split[self._columns.label])
        for index, label in enumerate(labels):
            if label is None or not 0 <= label < len(self.classes):
                raise ValueError(
                    f"the label of sample {index} is {label} ({self._columns.label}); it must be from 0 to "
                    f"{len(self.classes) - 1}"
                )
        self.targets = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self._split[index]
        return row[self._columns.image], row[self._columns.label]
