"""A record reads back as it was written, and other files are refused with the place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mixsize.recipes.records.run_record import RunRecord, by_label, read_records, write_records

RESULTS = Path(__file__).parents[3] / "bench/results"
ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
}  # fmt: skip


def record(**changes):
    values = {"label": "fixed", "name": "digits-fixed-seed17", "seed": 17, "recipe": {"seed": 17}}
    return RunRecord.model_validate({**values, "environment": ENVIRONMENT, **changes})


PLAIN = record().model_dump(mode="json")


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


def test_the_folder_of_a_run_gives_its_record(tmp_path):
    (tmp_path / "record.json").write_text(record().model_dump_json())
    assert read_records(tmp_path) == [record()]
    (tmp_path / "record.json").unlink()
    with pytest.raises(ValueError, match=r"holds neither the runs\.jsonl of a suite nor the record\.json of a run"):
        read_records(tmp_path)


@pytest.mark.parametrize(("stem", "labels", "runs"), [("demo", 3, 3), ("cifar10_cpu", 4, 12)])
def test_committed_result_files_are_read(stem, labels, runs):
    (path,) = RESULTS.glob(f"{stem}-intel-r-xeon-r-processor-2c-torch2.7.0-2026-11-2*.json")
    records = read_records(path)
    assert len(by_label(records)) == labels
    assert len(records) == runs
    assert all(run.pixels == sum(row.pixels for row in run.shapes) for run in records)
    assert {run.base_size_px for run in records} <= {16, 32}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([{**PLAIN, "record_version": 2}], "line 1: not a valid run record: record_version is 2: Input should be 3"),
        ([{"steps": 2}], "line 1: .*: label is .*: Field required"),
        ([{key: value for key, value in PLAIN.items() if key != "seed"}], "seed is .*: Field required"),
        ([{**PLAIN, "steps": "3"}], "line 1: not a valid run record: steps is '3': Input should be a valid integer"),
        ([PLAIN, [1]], r"line 2: .*: the whole is \[1\]: Input should be an object"),
    ],
)
def test_another_file_is_refused_with_the_place(tmp_path, contents, words):
    with pytest.raises(ValueError, match=words):
        read_records(write(tmp_path / "runs.jsonl", *contents))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json: .*: label is \{\}: Field required"):
        read_records(tmp_path / "x.json")
