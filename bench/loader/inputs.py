"""Checks and description of the files that loaders are timed on."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixsize.bench.loader.cases import Setting
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.sources import open_folder
from mixsize.system.ranks import default_threads


def check_inputs(setting: Setting) -> None:
    """Check that the machine can serve a setting and that its files hold the same images.

    Raises:
        ValueError: an option out of range, or files of different images.
    """
    cores = default_threads()
    if not 1 <= setting.threads <= cores:
        raise ValueError(f"--threads is {setting.threads}; it must lie between 1 and {cores}, the number of cores")
    if setting.epoch_images < 1:
        raise ValueError(f"--epoch-images is {setting.epoch_images}; it must be at least 1")
    if setting.pad_crop and setting.images is not None:
        raise ValueError("--images with --pad-crop: loaders of image files are timed with random resized crops only")
    with Beton.open(setting.data) as beton:
        if beton.num_levels > 1:
            raise ValueError(
                f"{setting.data}: holds {beton.num_levels} stored resolutions; give it as --levels-file, beside a "
                "file of the same images with one"
            )
        if setting.levels_file is not None:
            with Beton.open(setting.levels_file) as other:
                if other.num_levels < 2:
                    raise ValueError(f"{setting.levels_file}: holds one stored resolution, must hold several")
                same = all(
                    np.array_equal(getattr(other, name), getattr(beton, name))
                    for name in ("labels", "heights", "widths")
                )
                if not same:
                    raise ValueError(f"{setting.levels_file}: holds other images than {setting.data}")
        if setting.images is not None and not np.array_equal(open_folder(setting.images).labels, beton.labels):
            raise ValueError(
                f"{setting.images}: holds other images than {setting.data}; give the folder that the file was made of"
            )


def describe_inputs(setting: Setting) -> dict[str, Any]:
    """The facts about the images in a result file."""
    with Beton.open(setting.data) as beton:
        facts: dict[str, Any] = {
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
