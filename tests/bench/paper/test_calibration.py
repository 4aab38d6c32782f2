"""``mixsize bench calibration``: a suite's runs with own statistics and with both kinds of calibrated ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixsize.bench.pages.tables import TABLES
from mixsize.cli import main
from mixsize.recipes.commands import evaluate
from mixsize.recipes.records.run_record import RUNS_FILE, read_record, write_records


@pytest.fixture(scope="module")
def suite(digits, tmp_path_factory) -> Path:
    """The folder of a suite of two seeds, each trained for a few steps."""
    folder = tmp_path_factory.mktemp("suite")
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={folder}"]
    for seed in (1, 2):
        items = [f"name=s{seed}", f"seed={seed}", "evaluation.sizes=[8,16]", "optimizer.lr=0.05", "max_duration=15ba"]
        assert main(["train", "demo", *data, "progress_bar=false", "calibration.batches=2", *items]) == 0
    records = [read_record(folder / f"s{seed}/record.json") for seed in (1, 2)]
    write_records(folder / RUNS_FILE, [record.model_copy(update={"label": "fixed"}) for record in records])
    return folder


def test_the_figures_are_those_of_each_run_under_each_transform(suite, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert main(["bench", "calibration", str(suite), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(run["label"], run["seed"]) for run in result["runs"]] == [("fixed", 1), ("fixed", 2)]
    for run in result["runs"]:
        trained = read_record(suite / f"s{run['seed']}/record.json")
        assert run["top1"]["own"] == pytest.approx(trained.accuracy)
        # The Trainer calibrated on the training transform, the default.
        assert run["top1"]["train"] == pytest.approx(trained.calibrated_accuracy)
        job = evaluate.build_job(suite / f"s{run['seed']}", ["calibration.transform=eval"])
        alone = {str(row.size_px): row.calibrated.top1 for row in evaluate.measure(job).sizes}
        assert run["top1"]["eval"] == pytest.approx(alone)
    assert any(run["top1"]["train"] != run["top1"]["eval"] for run in result["runs"])
    first, second = (100 * run["top1"]["train"]["16"] for run in result["runs"])
    row = TABLES["calibration"](result).splitlines()[4]
    assert row.startswith("| fixed | calibrated, training transform | ")
    assert row.endswith(f" {(first + second) / 2:.1f} ± {abs(first - second) / 2**0.5:.1f} |")
    assert "at most 2 batches of 256 for each calibration" in " ".join(capsys.readouterr().out.split())


def test_a_suite_without_finished_runs_is_named(tmp_path, capsys):
    (tmp_path / RUNS_FILE).write_text("")
    assert main(["bench", "calibration", str(tmp_path)]) == 2
    assert "no run of this suite has finished" in capsys.readouterr().err
