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


def test_the_psnr_is_that_of_the_views_from_copies(file):
    augment = RandomResizedCrop(scale=(0.2, 1.0))
    with Beton.open(file) as beton:
        near, never = fidelity.compare(beton, augment, 64, [1.0, 100.0], 1)
        samples = np.arange(6)
        windows = draw_windows(augment, beton.heights, beton.widths, samples, 1, 64, 0, 0)
        views = np.empty((2, 6, 64, 64, 3), np.uint8)
        for threshold, view in zip((1.0, math.inf), views, strict=True):
            Decoder(beton, 1, threshold).decode(samples, 1, windows, view)
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(*views, strict=True)]
    expected = [20 * math.log10(255) - 10 * math.log10(error) for error in errors if error]
    assert 0 < len(expected) < 6
    assert near["from_copies"] == pytest.approx(len(expected) / 6)
    assert near["psnr_db"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert never["from_copies"] == 0
    assert never["psnr_db"] is None


def test_the_command_writes_what_the_table_shows(file, tmp_path, capsys):
    out = tmp_path / "fidelity.json"
    assert main(["bench", "fidelity", str(file), "--sizes", "32", "--rounds", "1", "--out", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert row["size_px"] == 32
    assert [found["threshold"] for found in row["by_threshold"]] == [0.9, 1.0, 1.1, 1.25]
    assert main(["bench", "fidelity", str(file), "--thresholds", "0"]) == 2
    assert "--thresholds: 0 must be above 0" in capsys.readouterr().err
