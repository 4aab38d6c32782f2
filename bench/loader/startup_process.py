"""A process of the start-up bench: serves one batch by one library and prints when each part was done.

python -m mixsize.bench.loader.startup_process JSON

Imports what a user's script would, and only when it is timed. Times are of the clock that all processes share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What to serve.

    Attributes:
        loader: name in :data:`LIBRARIES`.
        data: ``.beton`` file.
        images: the same images in class folders; empty where the loader reads the file.
        size_px: side of the views.
        batch_size: images in the batch.
        threads: number of decoding threads or worker processes.
        mean: of each channel on the 0..1 scale.
        std: standard deviation of each channel on the same scale.
    """

    loader: str
    data: str
    images: str
    size_px: int
    batch_size: int
    threads: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


#: Makes a loader; its iterator gives normalised batches.
Make = Callable[[Request], Iterable]


def _ours() -> Make:
    from mixsize.algorithms import Base, Regime
    from mixsize.ffcv_loaders import MixSizeLoader

    def make(request: Request) -> Iterable:
        regime = Regime.fixed(Base(request.size_px, request.batch_size))
        options = {"mean": request.mean, "std": request.std, "num_workers": request.threads, "device": "cpu"}
        return MixSizeLoader(request.data, regime, **options)

    return make


def _ffcv() -> Make:
    from mixsize.bench.loader.ffcv_loader import ffcv_loader

    return lambda request: ffcv_loader(
        Path(request.data), request.size_px, request.batch_size, request.threads, request.mean, request.std
    )


def _torchvision() -> Make:
    from torchvision.transforms import v2

    from mixsize.bench.loader.torchvision_loader import normalisation, torchvision_loader

    def make(request: Request) -> Iterable:
        augment = v2.Compose([v2.RandomResizedCrop(request.size_px, antialias=True), v2.RandomHorizontalFlip()])
        loader = torchvision_loader(Path(request.images), augment, request.batch_size, request.threads)
        return map(normalisation(request.mean, request.std), loader)

    return make


def _dali() -> Make:
    from mixsize.bench.loader.dali_loader import DaliLoader

    return lambda request: DaliLoader(
        *(Path(request.images), request.size_px, request.batch_size, request.threads, request.mean, request.std),
        epoch_images=request.batch_size,
    )


#: Loader -> imports its library, and returns what makes it.
LIBRARIES: dict[str, Callable[[], Make]] = {"ours": _ours, "ffcv": _ffcv, "torchvision": _torchvision, "dali": _dali}


def main(argument: str) -> None:
    """Serve a batch and print four times as JSON, in seconds of ``time.monotonic``."""
    request = Request(**json.loads(argument))
    times = []
    import torch

    times.append(time.monotonic())
    make = LIBRARIES[request.loader]()
    times.append(time.monotonic())
    loader = make(request)
    times.append(time.monotonic())
    images = next(iter(loader))[0]
    times.append(time.monotonic())
    assert images.shape == (request.batch_size, 3, request.size_px, request.size_px)
    assert images.dtype == torch.float32
    print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1])
