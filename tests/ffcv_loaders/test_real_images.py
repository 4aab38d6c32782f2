"""Real photographs of all sizes, greyscale ones among them, from their files to batches."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders import Beton, EvalLoader, MixSizeLoader, Resize
from mixsize.ffcv_loaders.conversion.convert import convert

pytestmark = pytest.mark.data


def test_imagenet_files_keep_their_bytes_and_come_out_at_every_size(real_images, tmp_path):
    folder = real_images / "imagenet-sample"
    info = convert(folder, tmp_path / "whole.beton", progress=False)
    files = sorted(folder.glob("*/*"))
    beton = Beton.open(tmp_path / "whole.beton")
    assert beton.num_samples == len(files) == 300
    assert len(info.classes) == 300
    for sample in range(0, 300, 37):
        assert beton.stored(sample) == files[sample].read_bytes()

    regime = Regime.from_sizes("s144", Base(224, 8), "D+")
    loader = MixSizeLoader(beton, regime, seed=1, num_workers=2, device="cpu")
    seen = set()
    for images, labels in loader:
        assert bool(images.isfinite().all())
        assert images.std() > 0.5
        seen.add((images.shape[-1], len(labels)))
    assert seen == {(256, 8), (224, 8), (128, 24), (96, 40)}

    plain = EvalLoader(beton, 64, 50, augment=Resize(), mean=(0, 0, 0), std=(1, 1, 1), device="cpu")
    images = np.concatenate([batch.numpy() for batch, _ in plain])
    for sample in range(0, 300, 23):
        whole = Image.open(io.BytesIO(files[sample].read_bytes())).convert("RGB")
        expected = np.asarray(whole.resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1) / 255
        assert np.abs(images[sample] - expected).mean() < 0.02


def test_large_images_shrink_to_the_side_asked_for(real_images, tmp_path):
    info = convert(real_images / "imagenet-sample", tmp_path / "small.beton", max_side=256, progress=False)
    assert max(info.max_size) == 256
    beton = Beton.open(tmp_path / "small.beton")
    assert (np.maximum(beton.heights, beton.widths) <= 256).all()
