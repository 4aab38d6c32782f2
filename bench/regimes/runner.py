"""Runs of a suite, some at a time, each in processes of its own; runs that ended are not repeated."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from mixsize.bench.regimes.suite_runs import SuiteRun
from mixsize.recipes.build.resume import find_start, finished_record
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.records.environment import environment, source_version
from mixsize.recipes.records.run_folder import RECORD_FILE
from mixsize.recipes.records.run_record import RunRecord, read_record, read_records, write_records
from mixsize.system.machine import cores_at_hand

#: A run's output, in its folder.
LOG_FILE = "run.log"
_ERROR_LINES = 20
#: Time that the launcher gets to end its ranks.
_PATIENCE_SECONDS = 60


class Runner:
    """Trains the runs of a suite that have not ended, and keeps the records of all.

    Args:
        runs: of the suite, in the order in which they are trained.
        file: JSON lines file of the records, written after every run.
        notify: called with the runner and a run, when the run begins and when it has ended.

    Raises:
        ValueError: a run was started with another recipe or length, or the file holds no run records.
    """

    def __init__(self, runs: Sequence[SuiteRun], file: Path, notify: Callable[[Runner, SuiteRun], None]) -> None:
        self.runs = runs
        self._file = file
        self._notify = notify
        self._before = read_records(file) if file.exists() else []
        self._processes: set[subprocess.Popen] = set()
        #: Name -> record of the runs that have ended.
        self.records: dict[str, RunRecord] = {}
        for run in runs:
            record = finished_record(run.recipe, run.folder)
            if record is not None:
                self._keep(run, record)
            else:
                _check_length(run, find_start(run.recipe, run.folder, run.ranks).length_before)

    @property
    def pending(self) -> list[SuiteRun]:
        """Runs that have not ended."""
        return [run for run in self.runs if run.name not in self.records]

    @property
    def failed(self) -> list[RunRecord]:
        """Records of failed runs."""
        return [record for record in self.records.values() if not record.finished]

    def train(self, jobs: int = 1) -> None:
        """Train the pending runs. A run that fails is recorded, and the others go on.

        Args:
            jobs: runs side by side, each on its part of the cores.
        """
        self.save()
        pending, running = deque(self.pending), dict[Future[str | None], SuiteRun]()
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(pending), desc="suite", unit="run") as bar:
            try:
                while pending or running:
                    while pending and len(running) < jobs:
                        run = pending.popleft()
                        self._notify(self, run)
                        running[pool.submit(launch, run, jobs, self._processes)] = run
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        self._end(running.pop(ended), ended.result())
                        bar.update()
            except BaseException:
                _stop(self._processes)
                raise

    def _end(self, run: SuiteRun, failure: str | None) -> None:
        if failure is None:
            self._keep(run, read_record(run.folder / RECORD_FILE))
        else:
            self._keep(run, failed_record(run.recipe, run.label, failure, run.ranks))
        self.save()
        self._notify(self, run)

    def save(self) -> None:
        """Write the records in the order of the runs; a failure stays until its run is repeated.

        Records of seeds that this runner does not train follow.
        """
        failed = {record.name: record for record in self._before if not record.finished}
        known = [self.records.get(run.name) or failed.get(run.name) for run in self.runs]
        names, labels = {run.name for run in self.runs}, {run.label for run in self.runs}
        known += [record for record in self._before if record.label in labels and record.name not in names]
        write_records(self._file, [record for record in known if record is not None])

    def _keep(self, run: SuiteRun, record: RunRecord) -> None:
        self.records[run.name] = record.model_copy(update={"suite": run.suite, "label": run.label})


def _check_length(run: SuiteRun, before: str | None) -> None:
    """A run that goes on with another length may have had another learning rate up to there."""
    length = run.recipe.max_duration
    if before not in (None, length):
        raise ValueError(
            f"{run.folder} holds a run of max_duration {before}, the suite asks for {length} from the start; give "
            "another --folder"
        )


def launch(run: SuiteRun, jobs: int, processes: set[subprocess.Popen]) -> str | None:
    """Train a run, through Composer's launcher where it has several ranks; its output goes to its folder.

    Args:
        run: the run.
        jobs: runs side by side, which share the cores.
        processes: the run's process is among them while it runs.

    Returns:
        None where the run finished, else the last lines of its output.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / LOG_FILE
    # Threads of PyTorch beyond the cores make training several times slower.
    threads = {"OMP_NUM_THREADS": str(max(1, cores_at_hand() // (jobs * run.ranks)))} if jobs > 1 else {}
    with open(path, "wb") as log:
        # In a session of its own: an interrupt from the keyboard reaches this process alone, which passes it on once.
        process = subprocess.Popen(
            _command(run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**threads, **os.environ},
            start_new_session=True,
        )
        processes.add(process)
        code = process.wait()
        processes.discard(process)
    if code == 0 and (run.folder / RECORD_FILE).exists():
        return None
    return "\n".join([*last_lines(path.read_text(encoding="utf-8", errors="replace")), f"exit code {code}"])


def last_lines(log: str) -> list[str]:
    """The last lines of a log, without empty ones and with progress bars in their last state."""
    lines = [line.split("\r")[-1].rstrip() for line in log.split("\n")]
    return [line for line in lines if line][-_ERROR_LINES:]


def _command(run: SuiteRun) -> list[str]:
    train = ["-m", "mixsize", "train", *run.items, *(f"--import={module}" for module in run.imports)]
    command = [sys.executable, *train]
    if run.ranks > 1:
        command = [sys.executable, "-m", "composer.cli.launcher", "-n", str(run.ranks), *train]
    # A killed process cannot stop its children: on Linux the kernel interrupts them.
    return ["setpriv", "--pdeathsig", "INT", *command] if shutil.which("setpriv") else command


def _stop(processes: set[subprocess.Popen]) -> None:
    """End the processes of runs."""
    stopping = list(processes)
    for process in stopping:
        process.send_signal(signal.SIGINT)
    for process in stopping:
        _wait_or_kill(process)


def _wait_or_kill(process: subprocess.Popen) -> None:
    try:
        process.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failed_record(recipe: Recipe, label: str, error: str, ranks: int = 1) -> RunRecord:
    """The record of a run that failed."""
    commit, dirty = source_version()
    return RunRecord(
        label=label,
        name=recipe.name,
        seed=recipe.seed,
        outcome="failed",
        error=error,
        recipe=recipe.model_dump(mode="json"),
        commit=commit,
        dirty=dirty,
        environment=environment(ranks),
    )
