"""DALI on the CPU, which the benches of loaders and of the time to start share. Imports nothing of mixsize."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def


class DaliLoader:
    """DALI's pipeline for ImageNet, as in its documentation: fused random crop and decode, antialiased resize.

    ``DALIGenericIterator`` starts the next epoch's first batches while it serves the last ones of this. Here an epoch
    starts and ends with nothing in the pipeline, so that no work is done outside of the timed epoch; otherwise batches
    are started and handed over as there.

    Args:
        folder: of class folders.
        size_px: side of the views.
        batch_size: images in every batch; an incomplete last batch is dropped.
        threads: that decode.
        mean: of each channel on the 0..1 scale.
        std: standard deviation of each channel on the same scale.
        epoch_images: images in an epoch; fewer stored ones are read several times.
    """

    def __init__(
        self,
        folder: Path,
        size_px: int,
        batch_size: int,
        threads: int,
        mean: Sequence[float],
        std: Sequence[float],
        epoch_images: int,
    ) -> None:
        self._batches = epoch_images // batch_size

        @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None)
        def pipeline():
            jpegs, labels = fn.readers.file(file_root=str(folder), random_shuffle=True)
            images = fn.decoders.image_random_crop(jpegs, device="cpu", output_type=types.RGB)
            images = fn.resize(images, size=(size_px, size_px), antialias=True)
            images = fn.crop_mirror_normalize(
                images,
                dtype=types.FLOAT,
                output_layout="CHW",
                mean=[255 * value for value in mean],
                std=[255 * value for value in std],
                mirror=fn.random.coin_flip(),
            )
            return images, labels

        self._pipeline: Any = pipeline()
        self._pipeline.build()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pipeline = self._pipeline
        pipeline.schedule_run()
        for left in reversed(range(self._batches)):
            if left:
                pipeline.schedule_run()
            images, labels = (torch.from_dlpack(output.as_tensor()) for output in pipeline.share_outputs())
            yield images, labels
            pipeline.release_outputs()
        while not pipeline.empty():  # Its first call ever starts one more.
            pipeline.share_outputs()
            pipeline.release_outputs()
