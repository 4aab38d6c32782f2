"""The versions that a run's record keeps."""

from importlib import metadata

import pytest

from mixsize.recipes.records import environment


def test_ffcvs_version_is_that_of_its_distribution():
    pytest.importorskip("ffcv")
    assert environment.environment(1).ffcv == "1.0.2"  # Its module says 0.0.3rc1.


def test_without_ffcv_the_record_holds_none(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "version", missing)
    assert environment.environment(1).ffcv is None
