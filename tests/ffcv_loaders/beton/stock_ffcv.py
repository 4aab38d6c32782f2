"""Reads files with FFCV's own loader; as a program, in a process of its own::

    python stock_ffcv.py FILE OTHER_FILE OUT.npz

FFCV's reader of memory-mapped files changes numba's type of a uint8 array, and so spoils what was compiled before it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import ToTensor


def read(file: Path, other: Path, os_cache: bool) -> dict[str, np.ndarray]:
    """Labels and middle squares, resized to 48 px, of the first file; ``by_page``: the other's labels in page order."""
    found = _fields(file, os_cache, OrderOption.SEQUENTIAL, with_images=True)
    return found | {"by_page": _fields(other, os_cache, OrderOption.QUASI_RANDOM, with_images=False)["label"]}


def _fields(file: Path, os_cache: bool, order: OrderOption, with_images: bool) -> dict[str, np.ndarray]:
    pipelines = {
        name: [CenterCropRGBImageDecoder((48, 48), 1), ToTensor()] if with_images else None
        for name in Reader(str(file)).field_names
    }
    pipelines["label"] = [IntDecoder(), ToTensor()]
    options = {"batch_size": 4, "num_workers": 1, "seed": 0, "drop_last": False}
    loader = Loader(str(file), **options, os_cache=os_cache, order=order, pipelines=pipelines)
    batches = [[part.clone() for part in batch] for batch in loader]
    names = [name for name, pipeline in pipelines.items() if pipeline]
    return {name: torch.cat(parts).numpy() for name, *parts in zip(names, *batches, strict=True)}


if __name__ == "__main__":
    np.savez(sys.argv[3], **read(Path(sys.argv[1]), Path(sys.argv[2]), os_cache=True))
