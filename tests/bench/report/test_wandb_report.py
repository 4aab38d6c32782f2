"""Records at Weights & Biases: runs read back from its own offline files, and a report as its own client builds it."""

from __future__ import annotations

import json
import sys

import pytest

from mixsize.bench.report.wandb_report import build_report, publish, why_offline
from mixsize.recipes.records.run_record import RunRecord


def record(label, seed, top1, **changes):
    point = {"epoch": 1, "pixels": 100, "train_loss": 2.0}
    values = {
        "suite": "small", "label": label, "name": f"small-{label}-seed{seed}", "seed": seed,
        "recipe": {"seed": seed, "model": {"name": "cifar_resnet20"}, "regime": {"base": {"size_px": 16}}},
        "steps": 4, "epochs": 2, "samples": 128, "pixels": 200, "seconds": {"training": 6.0},
        "shapes": [{"size_px": 16, "batch_size": 32, "duplicates": 1, "steps": 4, "seconds": 0.5}],
        "accuracy": {"8": 0.25, "16": top1}, "loss": {"8": 2.0, "16": None}, "macs": {"8": 10, "16": 40},
        "curve": [
            {**point, "step": 2, "seconds": 3.0, "accuracy": {"8": 0.1, "16": 0.5}},
            {**point, "step": 4, "seconds": 6.0, "accuracy": {"8": 0.25, "16": top1}},
        ],
        "environment": {
            "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
            "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
        },
        **changes,
    }  # fmt: skip
    return RunRecord.model_validate(values)


RECORDS = [record("fixed", 17, 0.75), record("mixed", 17, 0.875), record("fixed", 18, 0.625)]


def test_without_an_account_the_runs_are_written_to_disk_and_it_is_said_how_to_send_them(tmp_path, wandb_runs):
    failed = record("mixed", 18, 0.5, outcome="failed", error="x")
    said = publish([*RECORDS, failed], None, "mixsize", comparison="", folder=tmp_path)
    assert said.startswith(f"there is no Weights & Biases account; 3 runs were written below {tmp_path}/wandb.")
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in said
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 3
    runs = wandb_runs()
    assert [(run["project"], run["group"], run["job_type"], run["name"]) for run in runs] == [
        ("mixsize", "small", "fixed", "small-fixed-seed17"),
        ("mixsize", "small", "mixed", "small-mixed-seed17"),
        ("mixsize", "small", "fixed", "small-fixed-seed18"),
    ]
    first = runs[0]
    assert {key: first["config"][key] for key in ("seed", "model", "regime")} == RECORDS[0].recipe
    assert (first["config"]["suite"], first["config"]["label"]) == ("small", "fixed")
    name = "accuracy/own_statistics/16px"
    curve = [row for row in first["history"] if name in row]
    assert [(row["_step"], row["seconds"], row[name]) for row in curve] == [(2, 3.0, 0.5), (4, 6.0, 0.75)]
    (table,) = [row["accuracy_by_size"] for row in first["history"] if "accuracy_by_size" in row]
    assert json.loads((first["files"] / table["path"]).read_text())["data"] == [
        [8, 0.25, None, 2.0, 10],
        [16, 0.75, None, None, 40],
    ]
    assert first["summary"]["final_accuracy/own_statistics/16px"] == 0.75
    assert first["summary"]["seconds/training"] == 6.0


def test_a_record_that_is_published_again_takes_its_own_place(tmp_path, wandb_runs):
    for _ in range(2):
        publish(RECORDS[:1], None, "mixsize", comparison="", folder=tmp_path)
    first, second = wandb_runs()
    assert first["id"] == second["id"]
    publish([record("fixed", 17, 0.75, commit="another")], None, "mixsize", comparison="", folder=tmp_path)
    assert wandb_runs()[2]["id"] != first["id"]


def test_why_nothing_is_sent_is_said(monkeypatch, wandb_runs):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert why_offline() == "WANDB_MODE is offline"
    monkeypatch.delenv("WANDB_MODE")
    assert why_offline() == "there is no Weights & Biases account"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert why_offline() == "http://127.0.0.1:9 cannot be reached"
    with pytest.raises(ValueError, match="no finished run"):
        publish([record("mixed", 18, 0.5, outcome="failed", error="x")], None, "mixsize", comparison="")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", None)
    with pytest.raises(ValueError, match=r'pip install "mixsize\[wandb-reports\]"'):
        build_report(RECORDS, "me", "mixsize", "")


class Service:
    """In the place of the connection: takes the client's requests, answers as the service does to a new report."""

    def __init__(self):
        self.requests, self.created, self.app_url = [], [], "https://wandb.example"
        self.client = self._service_api = self  # Of older and of newer clients.

    def projects(self, entity):
        return []

    def create_project(self, project, entity):
        self.created.append((entity, project))

    def execute_graphql(self, document, variables):
        return self.execute(document, variables)

    def execute(self, document, variable_values):
        if "spec" not in variable_values:
            return {"project": {"internalId": "UHJvamVjdDox"}}
        self.requests.append((document, variable_values))
        view = {
            "id": "Vmlldzox", "name": "n", "displayName": variable_values["displayName"], "description": "",
            "type": "runs", "project": {"name": "mixsize", "entityName": "me"}, "spec": variable_values["spec"],
            "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00",
        }  # fmt: skip
        return {"upsertView": {"view": view, "inserted": True}}


def test_a_report_is_one_request_with_panels_grouped_by_regime_and_the_table(monkeypatch):
    interface = pytest.importorskip("wandb_workspaces.reports.v2.interface")
    service = Service()
    monkeypatch.setattr(interface, "_get_api", lambda: service)
    report = build_report(RECORDS, "me", "mixsize", comparison="| a | b |\n| --- | --- |\n")
    assert service.requests == []
    report.save()
    assert service.created == [("me", "mixsize")]
    ((document, variables),) = service.requests
    assert "upsertView" in str(document)
    assert (variables["entityName"], variables["projectName"]) == ("me", "mixsize")
    assert variables["displayName"] == "mixsize: small"
    spec = json.loads(variables["spec"])
    text = json.dumps(spec)
    assert "| a | b |" in text
    (grid,) = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    (runset,) = grid["metadata"]["runSets"]
    assert runset["project"] == {"id": "UHJvamVjdDox", "name": "mixsize", "entityName": "me"}
    assert "label" in json.dumps(runset["grouping"])
    assert "small" in json.dumps(runset["filters"])
    titles = [panel["config"].get("chartTitle") for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    for axis in ("s of training", "steps", "pixels trained on"):
        assert f"top-1 at 16 px over {axis}" in titles
    assert "accuracy/own_statistics/16px" in text
    assert "final_accuracy/own_statistics/8px" in text
