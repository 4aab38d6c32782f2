"""Runs in processes of their own, forked from one that has imported all they need."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import time
from pathlib import Path

import pytest

SCENARIO = Path(__file__).with_name("scenario.py")
#: No fault may leave a run hanging; each of these takes a few seconds. Ranks wait for each other for 300.
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
            "loader.num_workers=1",
        ]  # fmt: skip

    def start(self, fault="", *items, name="faulty"):
        """Train, with a fault, and wait for the end."""
        return self.run(fault, ["train", *self.items, f"name={name}", *items], name)

    def run(self, fault, argv, name="faulty"):
        """Run a command, with a fault, and wait for the end."""
        return _finished([self._begun(fault, argv, name, {})])[0]

    def start_ranks(self, faults, *items, name="faulty"):
        """Train on as many ranks as there are faults, and wait for the end of each."""
        return self.run_ranks(faults, ["train", *self.items, f"name={name}", *items], name)

    def run_ranks(self, faults, argv, name="faulty"):
        """Run a command on as many ranks as there are faults, and wait for the end of each.

        As on machines of their own: no launcher ends one where another has failed.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
        common |= {"WORLD_SIZE": str(len(faults)), "LOCAL_WORLD_SIZE": str(len(faults))}
        begun = [
            self._begun(fault, argv, f"{name}-rank{rank}", {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank, fault in enumerate(faults)
        ]
        return _finished(begun)

    def _begun(self, fault, argv, name, environment):
        log = self.folder / f"{name}.log"
        log.write_bytes(b"")
        arguments = {"ARGUMENTS": (fault, log, argv, environment)}
        process = CONTEXT.Process(target=runpy.run_path, args=(str(SCENARIO), arguments, "__main__"))
        process.start()
        return process, log

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


def _finished(begun):
    """Wait for runs and for all that they started; nothing of them may stay."""
    end = time.monotonic() + SECONDS
    try:
        for process, _ in begun:
            process.join(max(0.0, end - time.monotonic()))
        printed = [log.read_text(encoding="utf-8", errors="replace") for _, log in begun]
        hung = [process.is_alive() for process, _ in begun]
        assert not any(hung), f"did not end within {SECONDS} s: {hung}\n" + "\n".join(printed)
        left = [pid for process, _ in begun for pid in _in_session(process.pid) if not _ends(pid)]
        assert not left, f"left behind: {left}\n" + "\n".join(printed)
    finally:
        for process, _ in begun:
            process.kill()  # Where it has not ended.
            for pid in _in_session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.join()
    return [Outcome(process.exitcode, words) for (process, _), words in zip(begun, printed, strict=True)]


def _in_session(session):
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, of = stat.read_text().rsplit(")", 1)[1].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _ends(pid):
    """Whether a process ends by itself soon."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)


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


@pytest.fixture(scope="module")
def whole_pair(forkserver, digits, tmp_path_factory):
    """The same run on two ranks."""
    runs = Runs(digits, tmp_path_factory.mktemp("whole_pair"))
    for outcome in runs.start_ranks(["", ""]):
        assert outcome.code == 0, outcome
    return runs
