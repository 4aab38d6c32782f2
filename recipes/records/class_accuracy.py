"""Accuracy by class, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: Rows of a table; records hold all classes.
MOST_CLASSES = 20


class ClassRow(NamedTuple):
    """A class: its name, its number of images, and its top-1 as a fraction in each column."""

    name: str
    images: int
    top1: list[float]


def worst_classes(class_images: Mapping[str, int], hits: Sequence[Sequence[float]]) -> list[ClassRow]:
    """Return the classes of lowest accuracy, at most ``MOST_CLASSES``; the mean over the columns orders them.

    Args:
        class_images: images of each class, by its name, in the order of the labels; classes without images are left
            out.
        hits: for each column, images of each class that were classified correctly, in that order.
    """
    rows = [
        ClassRow(name, images, [column[label] / images for column in hits])
        for label, (name, images) in enumerate(class_images.items())
        if images
    ]
    return sorted(rows, key=lambda row: sum(row.top1))[:MOST_CLASSES]


def class_caption(size_px: int, rows: Sequence[ClassRow], class_images: Mapping[str, int]) -> str:
    """The caption of a table of :func:`worst_classes` at an image size."""
    known = sum(images > 0 for images in class_images.values())
    which = "all classes" if len(rows) == known else f"the {len(rows)} worst of {known:,} classes"
    return f"Top-1 by class at {size_px} px, %: {which}"
