"""The examples in the docstrings of the public names run and print what they say."""

from __future__ import annotations

import doctest
import inspect

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import mixsize.algorithms
import mixsize.ffcv_loaders
from mixsize.ffcv_loaders import convert


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with ``train`` (8 images in 2 classes), ``train.beton`` and ``val.beton``."""
    folder = tmp_path_factory.mktemp("examples")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 70, 80, 3), np.uint8)
    for index, image in enumerate(pixels):
        (folder / "train" / ("cat", "dog")[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "train" / ("cat", "dog")[index % 2] / f"{index}.jpg")
    for name in ("train", "val"):
        convert(folder / "train", folder / f"{name}.beton", workers=1, progress=False)
    return folder


@pytest.mark.parametrize("name", mixsize.ffcv_loaders.__all__)
def test_the_example_of_a_public_name_runs(name, data, tmp_path, monkeypatch):
    for file in data.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mixsize.ffcv_loaders.conversion.encode.os, "sched_getaffinity", lambda _: {0})
    public = {key: getattr(room, key) for room in (mixsize.algorithms, mixsize.ffcv_loaders) for key in room.__all__}
    documentation = inspect.getdoc(public[name])
    assert documentation is not None
    example = doctest.DocTestParser().get_doctest(
        documentation, public | {"ImageFolder": ImageFolder}, name, None, None
    )
    assert example.examples
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(example, out=printed.append)
    assert not printed, "".join(printed)
