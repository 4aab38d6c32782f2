"""Fixtures of the loaders' tests."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def rows_first(monkeypatch):
    """Pillow resizes rows first and then columns, as the engine does.

    Pillow rounds and clips between its two passes. Releases before 13 take the rows first; later ones the cheaper axis,
    whereby bicubic clips elsewhere.
    """
    resize = Image.Image.resize

    def one_axis_a_call(image, size, resample=None, box=None, **kwargs):
        left, top, right, bottom = box or (0, 0, *image.size)
        rows = resize(image, (size[0], image.height), resample, (left, 0, right, image.height), **kwargs)
        return resize(rows, size, resample, (0, top, size[0], bottom), **kwargs)

    monkeypatch.setattr(Image.Image, "resize", one_axis_a_call)
