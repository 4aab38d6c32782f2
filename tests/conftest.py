"""Data that the tests share: real digits and photographs that come with scikit-learn, and real images where given."""

from __future__ import annotations

import gc
import json
import os
import struct
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import mixsize
from mixsize.ffcv_loaders.conversion.convert import convert, convert_splits

# As sitecustomize.py, it hides modules from all finders of a process.
_HIDE = """
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name in {hidden!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
#: A .wandb file is a header and blocks of this many bytes, of LevelDB's log format.
_WANDB_HEADER, _WANDB_BLOCK = 7, 32768

#: Files that start processes: they run first, so that no worker is left alone with them at the end.
_LONGEST = (
    "test_launcher.py",
    "test_kills.py",
    "test_regimes.py",
    "test_peers.py",
    "test_loader.py",
    "test_startup.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def folder_of_its_own(tmp_path_factory, monkeypatch) -> None:
    """Runs each test in an empty folder, so that files of a checkout change no result."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder with train.beton (1,437 images of 8 x 8 px) and test.beton (360), stored raw."""
    folder = tmp_path_factory.mktemp("digits")
    convert_splits("digits", folder, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A .beton file of 24 JPEG photographs in 2 classes, 60 to 400 px, cut from scikit-learn's two."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / "source" / name).mkdir(parents=True)
        for i in range(12):
            height, width = rng.integers(60, 400, 2)
            top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
            image = Image.fromarray(photo[top : top + height, left : left + width])
            image.save(folder / "source" / name / f"{i:02}.jpg", quality=90)
    convert(folder / "source", folder / "photos.beton", store="jpg", workers=1, progress=False)
    return folder / "photos.beton"


@pytest.fixture(scope="session")
def real_images(tmp_path_factory) -> Path:
    """A folder with 2,000 training and 500 test images of CIFAR-10 and 300 of ImageNet, from MIXSIZE_DATA."""
    archives = os.environ.get("MIXSIZE_DATA")
    if not archives:
        pytest.skip("MIXSIZE_DATA names no folder with cifar10-jpeg.tar.xz and imagenet-sample-300.tar")
    folder = tmp_path_factory.mktemp("real")
    counts: dict[str, int] = {}
    limits = {"train": 200, "test": 50}
    with tarfile.open(Path(archives) / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            part = Path(member.name).parent.as_posix()
            split = part.split("/")[0]
            if member.isfile() and counts.get(part, 0) < limits[split]:
                counts[part] = counts.get(part, 0) + 1
                archive.extract(member, folder / "cifar10", filter="data")
    with tarfile.open(Path(archives) / "imagenet-sample-300.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def python_without(tmp_path) -> Callable[[list[str], str], list[str]]:
    """Runs code in a process for which modules are missing; returns the lines that it prints, on either stream."""

    def run(modules: list[str], code: str) -> list[str]:
        (tmp_path / "sitecustomize.py").write_text(_HIDE.format(hidden=modules))
        installed = Path(mixsize.__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"}
        done = subprocess.run(
            [sys.executable, "-u", "-c", code],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return run


@pytest.fixture
def wandb_runs(tmp_path, monkeypatch) -> Iterator[Callable[[], list[dict]]]:
    """Keeps Weights & Biases off the network, without an account and silent; reads the runs it left, oldest first.

    Identity, config, history, summary, and the folder of the run's files.
    """
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-account"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # It reads the environment once.

    def read() -> list[dict]:
        wandb.teardown()  # Its service writes the last of a run's file after the run has finished.
        return _offline_runs(tmp_path)

    yield read
    wandb.teardown()
    with warnings.catch_warnings():
        # wandb 0.18 leaves the socket of a session without a run to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _offline_runs(folder: Path) -> list[dict]:
    runs = []
    for file in folder.rglob("run-*.wandb"):
        run: dict = {"history": [], "config": {}, "summary": {}, "files": file.parent / "files"}
        for record in _wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "group": record.run.run_group, "name": record.run.display_name}
                run |= {"job_type": record.run.job_type, "project": record.run.project, "tags": list(record.run.tags)}
                run["config"] |= _values(record.run.config.update)
                run["began"] = record.run.start_time.ToNanoseconds()
            elif kind == "history":
                run["history"].append(_values(record.history.item))
            elif kind == "summary":
                run["summary"] |= _values(record.summary.update)
        runs.append(run)
    return sorted(runs, key=lambda run: run["began"])


def _wandb_records(file: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), _WANDB_HEADER, b""
    while place < len(data):
        left = _WANDB_BLOCK - place % _WANDB_BLOCK
        if left < 7:  # Too little for a chunk's header: padding.
            place += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # A record in one chunk, or its last chunk.
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def _values(items) -> dict:
    found: dict = {}
    for item in items:
        *above, last = item.nested_key or [item.key]
        place = found
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found
