"""Loaders of other libraries, each in its fastest documented configuration.

Each function makes one loader for all cases that it can serve, see :data:`mixsize.bench.loader.loaders.LOADERS`. All
read the same images in random order, with random resized crops and mirroring. Libraries are imported in the functions:
each loader has a process of its own, which does not load the others' libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from mixsize.algorithms.regime.regime import Choice
from mixsize.bench.loader.cases import BATCHES_AHEAD, Case, Setting
from mixsize.bench.loader.process import Epoch
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
_STATISTICS = (IMAGENET_MEAN, IMAGENET_STD)


def ffcv(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """FFCV's loader in its documented CPU pipeline: fixed sizes, no duplicates; with pad-and-crop the stored size."""
    from mixsize.bench.loader.ffcv_loader import ffcv_loader

    with Beton.open(setting.data) as beton:
        indices = (np.arange(setting.epoch_images) % beton.num_samples).tolist()
        stored = {*beton.heights.tolist(), *beton.widths.tolist()}

    def loader(choice: Choice) -> Batches:
        size = (choice.size_px, choice.batch_size)
        options = {"indices": indices, "batches_ahead": BATCHES_AHEAD, "pad_crop": setting.pad_crop}
        return ffcv_loader(setting.data, *size, setting.threads, *_STATISTICS, **options)

    return {
        case.name: partial(_images, loader(case.plain))
        for case in cases
        if case.plain is not None and (not setting.pad_crop or stored == {case.plain.size_px})
    }


def dali(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """DALI's pipeline on the CPU: fixed sizes, no duplicates."""
    from mixsize.bench.loader.dali_loader import DaliLoader

    images = setting.images
    assert images is not None

    def loader(choice: Choice) -> DaliLoader:
        size = (choice.size_px, choice.batch_size)
        return DaliLoader(images, *size, setting.threads, *_STATISTICS, epoch_images=setting.epoch_images)

    return {case.name: partial(_images, loader(case.plain)) for case in cases if case.plain is not None}


def simplejpeg(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """simplejpeg's decoder behind PyTorch's ``DataLoader``, then torchvision: fixed sizes, no duplicates."""
    from torchvision.transforms import v2

    from mixsize.bench.loader.simplejpeg_loader import random_resized_crop

    return {
        case.name: _data_loader(
            setting, case.plain, v2.RandomHorizontalFlip(), partial(random_resized_crop, size_px=case.plain.size_px)
        )
        for case in cases
        if case.plain is not None
    }


def torchvision(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """torchvision's ``ImageFolder`` and ``transforms.v2`` behind PyTorch's ``DataLoader``: fixed sizes, no duplicates.

    Of the four ways in its documentation, the fastest. In images a core-second at 128 and 224 px, median of 4 epochs of
    300 ImageNet images read three times: decoding to uint8 tensors, normalising whole batches, 315 and 263; with Pillow
    308 and 257; normalising single images in the workers 303 and 241, with Pillow 282 and 212.
    """
    return {case.name: _torchvision(setting, case.plain) for case in cases if case.plain is not None}


def composer(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Composer's ``ProgressiveResizing``: every batch is loaded at the base's size, then scaled down as a whole.

    torchvision's loader makes the batches; the algorithm's functional form scales them. It cannot enlarge, mix or
    duplicate, and keeps the batch size.
    """
    from composer.algorithms.progressive_resizing import resize_batch

    base = setting.base
    full_size = _torchvision(setting, Choice(base.size_px, base.batch_size, 1, 1.0))

    def epoch(size_px: int) -> Iterator[torch.Tensor]:
        for images in full_size():
            yield resize_batch(images, images, scale_factor=size_px / base.size_px)[0]

    return {
        case.name: partial(epoch, case.plain.size_px)
        for case in cases
        if case.plain is not None and case.plain.size_px <= base.size_px
    }


def timm(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """timm's scheduled loader: fixed sizes and mixes, no duplicates.

    Sizes are drawn with the regime's shares of the steps. The prefetcher of timm's train script normalises whole
    batches and is faster than normalising in the workers (measured as above: 326 and 266 images a core-second against
    304 and 229).
    """
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    from mixsize.bench.loader.torchvision_loader import repeated

    assert setting.images is not None

    def loader(case: Case) -> Batches:
        data = ImageDataset(str(setting.images))
        assert isinstance(data.reader, ReaderImageFolder)
        data.reader.samples = repeated(data.reader.samples, setting.epoch_images)
        choices = case.regime.choices
        return create_loader(
            data,
            input_size=(3, setting.base.size_px, setting.base.size_px),
            batch_size=setting.base.batch_size,
            is_training=True,
            color_jitter=None,  # pyright: ignore[reportArgumentType]
            interpolation="bilinear",
            num_workers=setting.threads,
            device=torch.device("cpu"),
            input_size_choices=[choice.size_px for choice in choices],
            batch_size_choices=[choice.batch_size for choice in choices],
            batch_choice_weights=case.regime.step_shares,
        )

    return {
        case.name: partial(_images, loader(case))
        for case in cases
        if all(choice.duplicates == 1 for choice in case.regime.choices)
    }


def entropy_floor(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """The floor of decoding whole images, for the fixed sizes: see :mod:`mixsize.bench.loader.floor`.

    Images stored raw have none. Its batches hold no pixels.
    """
    from mixsize.bench.loader.floor import open_turbojpeg, read_entropy_code

    beton = Beton.open(setting.data)
    pool = ThreadPoolExecutor(setting.threads)
    library = open_turbojpeg()

    def read(sample: int) -> None:
        height, width = int(beton.heights[sample]), int(beton.widths[sample])
        read_entropy_code(library, beton.stored(sample), height, width)

    def epoch(batch_size: int) -> Iterator[torch.Tensor]:
        samples = np.random.default_rng().permutation(setting.epoch_images) % beton.num_samples
        done = pool.map(read, samples.tolist())
        for _ in range(len(samples) // batch_size):
            yield torch.empty(sum(1 for _ in islice(done, batch_size)), 0)

    if not beton.is_jpeg.all():
        return {}
    return {case.name: partial(epoch, case.plain.batch_size) for case in cases if case.plain is not None}


def _torchvision(setting: Setting, choice: Choice) -> Epoch:
    from torchvision.transforms import v2

    from mixsize.bench.loader.torchvision_loader import decode_rgb

    augment = v2.Compose([v2.RandomResizedCrop(choice.size_px, antialias=True), v2.RandomHorizontalFlip()])
    return _data_loader(setting, choice, augment, decode_rgb)


def _data_loader(setting: Setting, choice: Choice, augment: Transform, decode: Callable[[str], torch.Tensor]) -> Epoch:
    from mixsize.bench.loader.torchvision_loader import normalisation, torchvision_loader

    assert setting.images is not None
    loader = torchvision_loader(
        setting.images, augment, choice.batch_size, setting.threads, setting.epoch_images, decode
    )
    normalise = normalisation(*_STATISTICS)
    return lambda: (normalise(batch)[0] for batch in loader)


def _images(loader: Batches) -> Iterator[torch.Tensor]:
    for images, _ in loader:
        yield images
