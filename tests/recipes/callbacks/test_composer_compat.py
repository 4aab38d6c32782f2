"""What Composer misses in newer releases is there again."""

from __future__ import annotations

import pytest

from mixsize.recipes.callbacks.composer_compat import restore_get_url

wandb_run = pytest.importorskip("wandb.sdk.wandb_run")


class OfRun(wandb_run.Run):
    url = "https://wandb.example/run"

    def __init__(self):
        """A run without a service."""


def test_a_run_of_a_wandb_without_get_url_tells_its_url_to_composer(monkeypatch):
    monkeypatch.setattr(wandb_run.Run, "get_url", None, raising=False)
    monkeypatch.delattr(wandb_run.Run, "get_url")
    restore_get_url()
    assert OfRun().get_url() == "https://wandb.example/run"
    ours = wandb_run.Run.get_url
    restore_get_url()
    assert wandb_run.Run.get_url is ours
