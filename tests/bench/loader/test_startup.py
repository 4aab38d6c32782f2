"""The start-up bench times the parts of a start in their order, each start in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixsize.algorithms.regime.regime import Base
from mixsize.bench.loader.cases import Setting
from mixsize.bench.loader.startup import LATER, PARTS, start
from mixsize.bench.pages.tables import TABLES
from mixsize.cli import main


def test_parts_of_a_start_follow_one_another(photos, tmp_path, capsys):
    out = tmp_path / "startup.json"
    options = ["--images", str(photos.parent / "source"), "--loaders", "torchvision", "ours", "--rounds", "1"]
    options += ["--size", "32", "--batch", "6", "--threads", "1", "--out", str(out)]
    assert main(["bench", "startup", str(photos), *options]) == 0
    result = json.loads(out.read_text())
    assert list(result["seconds"]) == ["ours", "torchvision"]
    for parts in result["seconds"].values():
        assert {part: values["n"] for part, values in parts.items()} == dict.fromkeys(
            [*PARTS, *(f"{part}_after_torch" for part in LATER)], 1
        )
        moments = [parts[part]["median"] for part in PARTS]
        assert moments == sorted(moments)
        assert moments[0] > 0
        assert parts["first_batch_after_torch"]["median"] == pytest.approx(moments[3] - moments[0])
    head, _, *rows = TABLES["startup"](result).splitlines()[:4]
    assert head.count("|") == 8
    assert [row.split("|")[1].strip() for row in rows] == ["mixsize", "torchvision"]
    assert "The first batch has 6 images of 32 px" in capsys.readouterr().out


def test_a_start_that_fails_is_named(photos):
    setting = Setting(photos, None, None, Base(32, 6), 1, 6, pad_crop=False)
    with pytest.raises(RuntimeError, match="the loader 'unheard of' failed with code 1"):
        start("unheard of", setting)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "25"], "--batch is 25; {photos} has 24 images"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--loaders", "torchvision"], "--loaders torchvision: needs --images"),
        (["--images", "missing"], "missing: no such folder"),
    ],
)
def test_mistakes_are_named_before_anything_is_timed(options, words, photos: Path, capsys):
    assert main(["bench", "startup", str(photos), *options]) == 2
    assert words.format(photos=photos) in capsys.readouterr().err
