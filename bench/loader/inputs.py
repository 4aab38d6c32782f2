"""The files that loaders are timed on: do they hold the same images, and what are they?"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mixsize.bench.loader.cases import Setting
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.sources import open_folder
from mixsize.system.ranks import default_threads

# Of a large folder, evenly spread.
_OPENED_IMAGES = 1_000


def check_inputs(setting: Setting) -> None:
    """Refuse a setting whose files do not hold the same images, or that the machine cannot serve.

    Raises:
        ValueError: what is wrong, with its option or file.
    """
    cores = default_threads()
    if not 1 <= setting.threads <= cores:
        raise ValueError(
            f"--threads is {setting.threads}; it must lie between 1 and {cores}, the number of cores: each gets one"
        )
    if setting.epoch_images < 1:
        raise ValueError(f"--epoch-images is {setting.epoch_images}; it must be at least 1")
    if setting.pad_crop and setting.images is not None:
        raise ValueError(
            "--images with --pad-crop: the loaders that read files are timed with random resized crops only"
        )
    with Beton.open(setting.data) as beton:
        if beton.num_levels > 1:
            raise ValueError(
                f"{setting.data}: holds {beton.num_levels} stored resolutions; give it as --levels-file, beside a "
                "file of the same images with one"
            )
        if setting.levels_file is not None:
            with Beton.open(setting.levels_file) as other:
                _check_levels(setting, beton, other)
        if setting.images is not None:
            _check_folder(setting, beton)


def _check_levels(setting: Setting, beton: Beton, other: Beton) -> None:
    if other.num_levels < 2:
        raise ValueError(f"{setting.levels_file}: holds one stored resolution; convert the images with several")
    if other.num_samples != beton.num_samples:
        raise ValueError(
            f"{setting.levels_file}: holds {other.num_samples} images, {setting.data} holds {beton.num_samples}; both "
            "must be made of the same images"
        )
    for name in ("labels", "heights", "widths"):
        if not np.array_equal(getattr(other, name), getattr(beton, name)):
            raise ValueError(
                f"{setting.levels_file}: the images' {name} differ from those of {setting.data}; both must be made of "
                "the same images"
            )


def _check_folder(setting: Setting, beton: Beton) -> None:
    folder = open_folder(setting.images)
    if len(folder.labels) != beton.num_samples:
        raise ValueError(
            f"{setting.images}: holds {len(folder.labels)} images, {setting.data} holds {beton.num_samples}; give the "
            "folder that the file was made of"
        )
    if not np.array_equal(folder.labels, beton.labels):
        raise ValueError(
            f"{setting.images}: has other numbers of images in its classes than {setting.data}; give the folder that "
            "the file was made of"
        )
    step = -(-beton.num_samples // _OPENED_IMAGES)
    for index in range(0, beton.num_samples, step):
        with Image.open(folder.item(index)) as image:
            pixels = image.width * image.height
        if pixels != beton.heights[index] * beton.widths[index]:
            raise ValueError(
                f"{setting.images}: {folder.name(index)} is {image.width} x {image.height} px, in {setting.data} it is "
                f"{beton.widths[index]} x {beton.heights[index]}; loaders can be compared on the same images only: "
                "convert the folder without --max-side"
            )


def describe_inputs(setting: Setting) -> dict[str, Any]:
    """What a result file says about the images."""
    with Beton.open(setting.data) as beton:
        facts = {
            "file": setting.data.name,
            "images": beton.num_samples,
            "mean_height": float(beton.heights.mean()),
            "mean_width": float(beton.widths.mean()),
            "jpeg": float(beton.is_jpeg.mean()),
            "bytes": setting.data.stat().st_size,
        }
    if setting.levels_file is not None:
        with Beton.open(setting.levels_file) as beton:
            facts["levels_file"] = {
                "file": setting.levels_file.name,
                "levels": beton.num_levels,
                "bytes": setting.levels_file.stat().st_size,
            }
    return facts
