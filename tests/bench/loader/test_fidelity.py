import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from mixsize.bench.loader import fidelity
from mixsize.cli import main
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert
from mixsize.ffcv_loaders.decode.augment import RandomResizedCrop, draw_windows
from mixsize.ffcv_loaders.decode.decode import Decoder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fidelity")
    generator = np.random.default_rng(3)
    (folder / "images/a").mkdir(parents=True)
    for index in range(6):
        small = generator.integers(0, 256, (25, 32, 3), np.uint8)
        Image.fromarray(small).resize((256, 200)).save(folder / f"images/a/{index}.jpg")
    convert(folder / "images", folder / "images.beton", levels=(2, 4), workers=1, progress=False)
    return folder / "images.beton"


def test_the_figures_are_those_of_the_views_that_are_off(file):
    augment = RandomResizedCrop(scale=(0.2, 1.0))
    with Beton.open(file) as beton:
        full, near, never = fidelity.compare(beton, augment, 64, [1.0, 100.0], 1)
        samples = np.arange(6)
        windows = draw_windows(augment, beton.heights, beton.widths, samples, 1, 64, 0, 0)
        views = np.empty((6, 64, 64, 3), np.uint8)
        Decoder(beton, 1, 1.0).decode(samples, 1, windows, views)
        expected = []
        for sample, (top, left, height, width, flip, *_) in zip(samples, windows, strict=True):
            image = Image.open(io.BytesIO(beton.stored(sample))).crop((left, top, left + width, top + height))
            view = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
            expected.append(view[:, ::-1] if flip else view)
    difference = views.astype(float) - np.array(expected)
    off = np.abs(difference).max((1, 2, 3)) > 1
    assert 0 < off.sum() < 6
    assert near["from_copies"] == pytest.approx(off.mean())
    psnr = 20 * math.log10(255) - 10 * np.log10((difference[off] ** 2).mean((1, 2, 3)))
    assert near["psnr_db"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert near["shift"] == pytest.approx(np.abs(difference.mean((0, 1, 2))).max(), abs=1e-3)
    for row in (full, never):
        assert (row["from_copies"], row["psnr_db"]) == (0, None)


def test_the_command_writes_what_the_table_shows(file, tmp_path, capsys):
    out = tmp_path / "fidelity.json"
    assert main(["bench", "fidelity", str(file), "--sizes", "32", "--rounds", "1", "--out", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert row["size_px"] == 32
    assert [found["threshold"] for found in row["by_threshold"]] == [None, 0.7, 0.8, 0.9, 1.0, 1.25]
    assert main(["bench", "fidelity", str(file), "--thresholds", "0"]) == 2
    assert "--thresholds: 0 must be above 0" in capsys.readouterr().err
