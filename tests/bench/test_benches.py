"""Each bench measures what it says on small work, and leaves a result that its table can be made from."""

from __future__ import annotations

import json

import pytest

from mixsize.bench.pages.tables import TABLES
from mixsize.cli import main


def run(argv, tmp_path):
    out = tmp_path / "result.json"
    assert main(["bench", *argv, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_overhead(tmp_path, capsys):
    result = run(["overhead", "--model", "resnet10t", "--size", "32", "--batch", "2", "--pairs", "3"], tmp_path)
    counts = {name: row["n"] for name, row in result["comparisons"].items()}
    assert counts == {
        "step, all algorithms / none": 3,
        "calibration / its passes": 2,
        "calibration / evaluation passes": 2,
    }
    assert all(row["ratio"] > 0 for row in result["comparisons"].values())
    assert "resnet10t, 2 x 32 px" in TABLES["overhead"](result)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["overhead", "--model", "resnet5"], "resnet5"),
        (["overhead", "--pairs", "1"], "--pairs is 1"),
        (["overhead", "--size", "0"], "--size is 0"),
    ],
)
def test_mistakes_are_named(argv, words, capsys):
    assert main(["bench", *argv]) == 2
    assert words in capsys.readouterr().err
