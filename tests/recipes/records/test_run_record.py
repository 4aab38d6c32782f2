"""A record reads back as it was written, old ones read as new ones, and other files are refused with the place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mixsize.recipes.records.run_record import RunRecord, by_label, read_record, read_records, write_records

RESULTS = Path(__file__).parents[3] / "bench/results"
ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
}  # fmt: skip


def record(**changes):
    values = {"label": "fixed", "name": "digits-fixed-seed17", "seed": 17, "recipe": {"seed": 17}}
    return RunRecord.model_validate({**values, "environment": ENVIRONMENT, **changes})


OLD = {
    "record_version": 2,
    "name": "demo",
    "recipe": {"seed": 5, "calibration": None},
    "regime_digest": "ce6885920d0e",
    "steps": 3,
    "epochs": 1,
    "samples": 96,
    "pixels": 24_576,
    "shapes": [{"size_px": 16, "batch_size": 32, "duplicates": 1, "steps": 3, "seconds": 0.5}],
    "sequence_crc": 7,
    "seconds": {"fit": 9.0, "training": 4.0, "data_wait": 1.0, "steps": 3.0, "evaluation": 2.0},
    "accuracy": {"16": 0.5},
    "loss": {"16": 1.5},
    "environment": ENVIRONMENT,
}


def write(path, *contents):
    path.write_text("\n".join(json.dumps(content) for content in contents))
    return path


def test_records_read_back_as_they_were_written(tmp_path):
    point = {"step": 2, "epoch": 1, "seconds": 1.5, "pixels": 512, "train_loss": 2.25, "accuracy": {"16": 0.25}}
    norm = {"size_px": 16, "steps": 2, "mean": 1.0, "std": 0.5, "smoothed_mean": None, "smoothed_std": None}
    whole = record(curve=[point], gradient_norms=[norm], loss={"16": math.nan}, peak_memory_bytes={"host": 1})
    failed = record(outcome="failed", error="ValueError: no", seed=18)
    write_records(tmp_path / "runs.jsonl", [whole, failed])
    for path in (tmp_path, tmp_path / "runs.jsonl"):
        assert read_records(path) == [whole, failed]
    assert whole.loss == {"16": None}
    # Every reader of JSON takes it, also those that refuse NaN.
    for line in (tmp_path / "runs.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert [run.finished for run in by_label([whole, failed])["fixed"]] == [True, False]


def test_what_an_old_record_did_not_say_is_null(tmp_path):
    new = read_record(write(tmp_path / "record.json", OLD))
    assert (new.record_version, new.suite, new.label, new.seed, new.outcome) == (3, None, "demo", 5, "finished")
    assert new.shapes[0].pixels == new.pixels == 3 * 16 * 16 * 32
    assert new.seconds.model_dump() == {
        "fit": None, "set_up": None, "training": 4.0, "data_wait": 1.0, "steps": 3.0, "evaluation": 2.0,
        "calibration": None,
    }  # fmt: skip
    assert (new.distinct_samples, new.plan_digest, new.commit, new.macs, new.curve) == (None, None, None, {}, [])
    assert (new.accuracy, new.calibrated_accuracy) == ({"16": 0.5}, None)
    assert read_records(tmp_path / "record.json") == [new]


def test_an_old_accuracy_after_calibration_is_a_calibrated_one(tmp_path):
    calibrated = {**OLD, "recipe": {"seed": 5, "calibration": {"batches": 200}}}
    new = read_record(write(tmp_path / "record.json", calibrated))
    assert (new.accuracy, new.loss, new.calibrated_accuracy) == ({}, {}, {"16": 0.5})
    assert new.seconds.evaluation is None


@pytest.mark.parametrize(("stem", "labels", "runs"), [("demo", 3, 3), ("cifar10_cpu", 4, 12)])
def test_the_result_files_of_earlier_versions_are_read(stem, labels, runs):
    (path,) = RESULTS.glob(f"{stem}-intel-r-xeon-r-processor-2c-torch2.7.0-2026-11-2*.json")
    records = read_records(path)
    assert len(by_label(records)) == labels
    assert len(records) == runs
    assert all(run.pixels == sum(row.pixels for row in run.shapes) for run in records)
    assert {run.base_size_px for run in records} <= {16, 32}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([{**OLD, "record_version": 4}], "record_version is 4; this mixsize reads 1 to 3"),
        ([{"steps": []}], "record_version is None"),
        ([{key: value for key, value in OLD.items() if key != "shapes"}], "'shapes' is missing"),
        ([{**OLD, "steps": "3"}], "is no run record: steps: Input should be a valid integer"),
        ([OLD, [1]], r"line 2: a run record is an object"),
    ],
)
def test_another_file_is_refused_with_the_place(tmp_path, contents, words):
    with pytest.raises(ValueError, match=words):
        read_records(write(tmp_path / "runs.jsonl", *contents))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json: holds no run records"):
        read_records(tmp_path / "x.json")
