"""Loaders of other libraries, each in its fastest documented configuration.

Each function makes one loader for all cases that it can serve, see :data:`mixsize.bench.loader.process.LOADERS`. All
read the same images in random order, with random resized crops and mirroring. Libraries are imported in the functions:
each loader has a process of its own, which does not load the others' libraries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from mixsize.bench.loader.cases import BATCHES_AHEAD, Case, Setting
from mixsize.bench.loader.process import Epoch
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def ffcv(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """FFCV's loader in its documented CPU pipeline: fixed sizes, no duplicates; with pad-and-crop the stored size."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    from mixsize.ffcv_loaders.beton.reader import Beton

    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    with Beton.open(setting.data) as beton:
        num_samples = beton.num_samples
        stored = {*beton.heights.tolist(), *beton.widths.tolist()}

    def loader(size_px: int, batch_size: int) -> Loader:
        if setting.pad_crop:
            head = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=4, fill=(0, 0, 0))]
        else:
            head = [RandomResizedCropRGBImageDecoder((size_px, size_px)), RandomHorizontalFlip()]
        return Loader(
            str(setting.data),
            batch_size=batch_size,
            num_workers=setting.threads,
            order=OrderOption.RANDOM,
            indices=(np.arange(setting.epoch_images) % num_samples).tolist(),
            drop_last=True,
            batches_ahead=BATCHES_AHEAD,
            os_cache=True,
            pipelines={
                "image": [*head, NormalizeImage(mean, std, np.dtype(np.float32)), ToTensor(), ToTorchImage()],
                "label": [IntDecoder(), ToTensor()],
            },
        )

    return {
        case.name: partial(_images, loader(case.plain.size_px, case.plain.batch_size))
        for case in cases
        if case.plain is not None and (not setting.pad_crop or stored == {case.plain.size_px})
    }


def torchvision(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """torchvision's ``ImageFolder`` and ``transforms.v2`` behind PyTorch's ``DataLoader``: fixed sizes, no duplicates.

    Of the four ways in its documentation, the fastest. In images a core-second at 128 and 224 px, median of 4 epochs of
    300 ImageNet images read three times: decoding to uint8 tensors, normalising whole batches, 315 and 263; with Pillow
    308 and 257; normalising single images in the workers 303 and 241, with Pillow 282 and 212.
    """
    return {
        case.name: _torchvision_loader(setting, case.plain.size_px, case.plain.batch_size)
        for case in cases
        if case.plain is not None
    }


def composer(setting: Setting, cases: Sequence[Case]) -> dict[str, Epoch]:
    """Composer's ``ProgressiveResizing``: every batch is loaded at the base's size, then scaled down as a whole.

    torchvision's loader makes the batches; the algorithm's functional form scales them. It cannot enlarge, mix or
    duplicate, and keeps the batch size.
    """
    from composer.algorithms.progressive_resizing import resize_batch

    base = setting.base
    full_size = _torchvision_loader(setting, base.size_px, base.batch_size)

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


def _torchvision_loader(setting: Setting, size_px: int, batch_size: int) -> Epoch:
    from torchvision.transforms import v2

    from mixsize.bench.loader.torchvision_loader import normalisation, torchvision_loader

    assert setting.images is not None
    augment = v2.Compose([v2.RandomResizedCrop(size_px, antialias=True), v2.RandomHorizontalFlip()])
    loader = torchvision_loader(setting.images, augment, batch_size, setting.threads, setting.epoch_images)
    normalise = normalisation(IMAGENET_MEAN, IMAGENET_STD)
    return lambda: (normalise(batch)[0] for batch in loader)


def _images(loader: Batches) -> Iterator[torch.Tensor]:
    for images, _ in loader:
        yield images
