"""Runs in processes of their own, forked from one that has imported all they need."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
from pathlib import Path

import pytest

SCENARIO = Path(__file__).with_name("scenario.py")
#: No fault may leave a run hanging; each of these takes a few seconds.
SECONDS = 100


class Outcome:
    """How a run ended: its exit code (-N: by signal N) and what it printed."""

    def __init__(self, code, printed):
        self.code, self.printed = code, printed

    def __repr__(self):
        return f"exit code {self.code}:\n{self.printed}"


class Runs:
    """Starts runs of the digits recipe in a folder, and looks at what they leave."""

    def __init__(self, digits, folder):
        self.folder = folder
        self.train = folder / "train.beton"
        self.train.write_bytes((digits / "train.beton").read_bytes())
        self.items = [
            "demo", f"data.train={self.train}", f"data.eval={digits}/test.beton", f"output.folder={folder}/runs",
            "regime/digits_bplus", "evaluation.sizes=[8,16]", "evaluation.batch_size=100", "output.save_every=8ba",
            "max_duration=20ba", "calibration={batches: 4}", "schedule.name=constant", "progress_bar=false",
            "loader.threads=1",
        ]  # fmt: skip

    def start(self, fault="", *items, name="faulty"):
        """Train, with a fault, and wait for the end."""
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        argv = ["train", *self.items, f"name={name}", *items]
        arguments = {"ARGUMENTS": (fault, log, argv)}
        process = CONTEXT.Process(target=runpy.run_path, args=(str(SCENARIO), arguments, "__main__"))
        process.start()
        process.join(SECONDS)
        hung = process.is_alive()
        if hung:
            process.kill()
            process.join()
        printed = log.read_text(encoding="utf-8", errors="replace")
        assert not hung, f"the run did not end within {SECONDS} s:\n{printed}"
        return Outcome(process.exitcode, printed)

    def files(self, name="faulty"):
        """What the run's folder holds."""
        folder = self.folder / "runs" / name
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def weights(self, name="faulty"):
        """Bytes of the trained weights."""
        return (self.folder / "runs" / name / "model.safetensors").read_bytes()

    def record(self, name="faulty"):
        """The run's record."""
        return json.loads((self.folder / "runs" / name / "record.json").read_text())


CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def forkserver(digits):
    """A server whose children have imported all they need, compiled the loader and started no thread."""
    # Set before the server starts, as its children cannot start over numba's and OpenMP's threads.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("NUMBA_THREADING_LAYER", "workqueue")
        patch.setenv("FAULTS_DIGITS", str(digits))
        patch.setenv("PYTHONPATH", str(SCENARIO.parent), prepend=os.pathsep)
        CONTEXT.set_forkserver_preload(["warm"])
        process = CONTEXT.Process(target=print)
        process.start()
        process.join()
        yield CONTEXT


@pytest.fixture
def runs(forkserver, digits, tmp_path):
    return Runs(digits, tmp_path)


@pytest.fixture(scope="module")
def whole(forkserver, digits, tmp_path_factory):
    """The same run with no fault."""
    runs = Runs(digits, tmp_path_factory.mktemp("whole"))
    outcome = runs.start(name="faulty")
    assert outcome.code == 0, outcome
    return runs
