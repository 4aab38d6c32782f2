"""What Weights & Biases is told, read back from its own offline files by its own reader."""

from __future__ import annotations

import json
import threading

import pytest
import wandb

from mixsize.recipes.build.trainer import build
from mixsize.recipes.commands.train import fit
from mixsize.recipes.config.compose import compose
from mixsize.recipes.records.wandb_log import make_id, run_id


def table_of(run: dict, key: str) -> tuple[list[str], list[list]]:
    (logged,) = [row[key] for row in run["history"] if key in row]
    content = json.loads((run["files"] / logged["path"]).read_text())
    return content["columns"], content["data"]


def recipe(digits, tmp_path, *items):
    data = [f"data.train={digits}/train.beton", f"data.eval={digits}/test.beton", f"output.folder={tmp_path}/runs"]
    logged = ["output.wandb={project: mixsize-test, group: small, tags: [a], mode: offline}"]
    return compose(["demo", *data, *logged, "progress_bar=false", "evaluation.sizes=[8,16]", *items])


class Killed(BaseException):
    """What no handler of errors catches."""


def test_a_stopped_run_goes_on_under_its_id_with_its_recipe_and_its_record(digits, tmp_path, monkeypatch, wandb_runs):
    items = ["regime/digits_dplus", "max_duration=6ba", "output.save_every=2ba"]
    run = build(recipe(digits, tmp_path, *items))
    trained = run.trainer._train_batch

    def train_batch(*args):
        if int(run.trainer.state.timestamp.batch) == 4:
            raise Killed
        return trained(*args)

    monkeypatch.setattr(run.trainer, "_train_batch", train_batch)
    with pytest.raises(Killed):
        fit(run)
    asked = recipe(digits, tmp_path, *items)
    record = fit(build(asked))
    first, second = wandb_runs()
    assert first["id"] == second["id"]
    assert first["id"].startswith("small-demo-")
    assert (second["project"], second["group"], second["name"], second["tags"]) == (
        "mixsize-test", "small", "demo", ["a"],
    )  # fmt: skip
    # The resolved recipe, as it was trained.
    assert {key: second["config"][key] for key in record.recipe} == json.loads(json.dumps(record.recipe))
    columns, rows = table_of(second, "accuracy_by_size")
    assert columns == ["size_px", "top1_own_statistics", "top1_calibrated", "loss", "macs"]
    assert [(row[0], row[1]) for row in rows] == [(8, record.accuracy["8"]), (16, record.accuracy["16"])]
    columns, rows = table_of(second, "shapes")
    steps = {row[0]: row[columns.index("steps")] for row in rows}
    assert steps == {f"{row.size_px} px x {row.batch_size} x {row.duplicates}": row.steps for row in record.shapes}
    assert sum(steps.values()) == 6
    assert second["summary"]["final_accuracy/own_statistics/16px"] == record.accuracy["16"]
    assert second["summary"]["pixels"] == record.pixels
    # Each step's own metrics are there too, from the step that it went on at.
    assert [row["mixsize/size_px"] for row in second["history"] if "mixsize/size_px" in row]


def test_a_run_that_begins_anew_has_another_id(digits, tmp_path):
    ids = []
    for restart in ("false", "true"):
        build(recipe(digits, tmp_path, "output.wandb.mode=disabled", f"output.restart={restart}")).trainer.close()
        ids.append((tmp_path / "runs/demo/wandb-id.txt").read_text())
    assert ids[0] != ids[1]


def test_a_disabled_log_leaves_nothing_and_starts_nothing(digits, tmp_path, wandb_runs):
    before = set(threading.enumerate())
    assert fit(build(recipe(digits, tmp_path, "max_duration=1ba", "output.wandb.mode=disabled"))).steps == 1
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("wandb")]
    assert wandb_runs() == []


def test_a_service_that_cannot_be_reached_gets_an_offline_run(digits, tmp_path, monkeypatch, wandb_runs, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # It reads the environment once.
    fit(build(recipe(digits, tmp_path, "max_duration=1ba", "output.wandb.mode=online")))
    assert "http://127.0.0.1:9 cannot be reached (" in caplog.text
    assert "the run is logged to disk; send it with wandb sync" in caplog.text
    (logged,) = wandb_runs()
    assert logged["summary"]["steps"] == 1
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_wandb_that_fails_does_not_end_the_run(digits, tmp_path, monkeypatch, caplog):
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        raise BrokenPipeError("the process of wandb is gone")

    begin = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kwargs: begin(**{**kwargs, "mode": "disabled"}))
    run = build(recipe(digits, tmp_path, "max_duration=2ba"))
    monkeypatch.setattr(wandb, "log", fail)
    assert fit(run).steps == 2
    assert len(calls) == 1
    assert caplog.text.count("Weights & Biases has failed (BrokenPipeError(") == 1
    wandb.finish()  # A run of which wandb has failed stays active in its process.


def test_an_id_is_kept_and_has_what_the_service_takes(tmp_path):
    kept = run_id("my suite", "resnet50/fixed#1?", tmp_path)
    assert run_id("other", "name", tmp_path) == kept
    assert kept.startswith("my-suite-resnet50-fixed-1-")
    assert not set(kept) & set('/\\#?%: ')  # fmt: skip
    assert make_id("digits", "digits-fixed-seed17", "0a1b") == "digits-fixed-seed17-0a1b"
    assert len(make_id("g", "n" * 500, "12345678")) == 128
    assert make_id(None, "n" * 500, "12345678").endswith("-12345678")
