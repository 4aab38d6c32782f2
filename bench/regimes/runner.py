"""Runs of a suite, one after the other, each in processes of its own; what ended is not repeated."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from mixsize.bench.regimes.suite_runs import SuiteRun
from mixsize.recipes.build.resume import find_start, finished_record
from mixsize.recipes.records.environment import environment, source_version
from mixsize.recipes.records.run_folder import RECORD_FILE
from mixsize.recipes.records.run_record import RunRecord, read_record, read_records, write_records

#: What a run printed, in its folder.
LOG_FILE = "run.log"
_ERROR_LINES = 20
#: How long the launcher may take to end its ranks.
_PATIENCE_SECONDS = 60
# What the launcher adds around the ranks' own words.
_LAUNCHERS = re.compile(
    r"ERROR:composer\.cli\.launcher|Waiting up to \d+ seconds|Global rank \d+ \(PID|-{10}(Begin|End) global rank"
)


class Runner:
    """Trains the runs of a suite that have not ended, and keeps the records of all.

    Args:
        runs: of the suite, in the order in which they are trained.
        file: where the records go, as JSON lines, after every run.
        notify: told of every run that begins or ends.

    Raises:
        ValueError: a stopped run of another recipe in the place of one of these, or a records file that is none.
    """

    def __init__(self, runs: Sequence[SuiteRun], file: Path, notify: Callable[[Runner, SuiteRun], None]) -> None:
        self.runs = runs
        self._file = file
        self._notify = notify
        self._before = read_records(file) if file.exists() else []
        #: Run's name -> its record, of the runs that have ended.
        self.records: dict[str, RunRecord] = {}
        for run in runs:
            record = finished_record(run.recipe, run.folder)
            if record is not None:
                self._keep(run, record)
            else:
                find_start(run.recipe, run.folder, run.ranks)
        #: Seconds that each of the runs trained by this runner took, by label.
        self._taken: dict[str, list[float]] = {}
        self._began: float | None = None

    @property
    def pending(self) -> list[SuiteRun]:
        """Those that have not ended."""
        return [run for run in self.runs if run.name not in self.records]

    @property
    def failed(self) -> list[RunRecord]:
        """Records of those that failed."""
        return [record for record in self.records.values() if not record.finished]

    def train(self) -> None:
        """Train what is pending. A run that fails is recorded, and the others go on."""
        self.save()
        for run in self.pending:
            self.train_one(run)

    def train_one(self, run: SuiteRun) -> RunRecord:
        """Train one of the runs, whether it is pending or not; returns its record, also where it fails."""
        self._began = time.monotonic()
        self._notify(self, run)
        failure = launch(run)
        self._taken.setdefault(run.label, []).append(time.monotonic() - self._began)
        self._began = None
        record = _failed(run, failure) if failure is not None else read_record(run.folder / RECORD_FILE)
        self._keep(run, record)
        self.save()
        self._notify(self, run)
        return self.records[run.name]

    def seconds_left(self) -> float | None:
        """Until all have ended, from how long the others took; None before any has."""
        known = {label: list(taken) for label, taken in self._taken.items()}
        for record in self.records.values():
            if record.finished and record.label not in known and record.seconds.fit is not None:
                known[record.label] = [record.seconds.fit + (record.seconds.set_up or 0.0)]
        if not known:
            return None
        means = {label: fmean(taken) for label, taken in known.items()}
        typical = fmean(means.values())
        pending = [means.get(run.label, typical) for run in self.pending]
        if self._began is not None and pending:
            pending[0] = max(0.0, pending[0] - (time.monotonic() - self._began))
        return sum(pending)

    def save(self) -> None:
        """Write the records in the runs' order; of one that is still to be repeated, how it failed before.

        Records of seeds that are not asked for this time stay behind them.
        """
        failed = {record.name: record for record in self._before if not record.finished}
        known = [self.records.get(run.name) or failed.get(run.name) for run in self.runs]
        names, labels = {run.name for run in self.runs}, {run.label for run in self.runs}
        known += [record for record in self._before if record.label in labels and record.name not in names]
        write_records(self._file, [record for record in known if record is not None])

    def _keep(self, run: SuiteRun, record: RunRecord) -> None:
        self.records[run.name] = record.model_copy(update={"suite": run.suite, "label": run.label})


def launch(run: SuiteRun) -> str | None:
    """Train a run through Composer's launcher; what it prints goes to its folder.

    Returns:
        None where it ended as it should, else the last lines that it printed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / LOG_FILE
    train = ["-m", "mixsize", "train", *run.items]
    command = [sys.executable, "-m", "mixsize.bench.regimes.launch", "-n", str(run.ranks), *train]
    with open(path, "wb") as log:
        # In a session of its own: an interrupt from the keyboard reaches this process alone, which passes it on once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code == 0 and (run.folder / RECORD_FILE).exists():
        return None
    return "\n".join([*last_words(path.read_text(encoding="utf-8", errors="replace")), f"exit code {code}"])


def last_words(log: str) -> list[str]:
    """The last lines of a run's log, without progress bars and what the launcher says around them."""
    lines = [line.split("\r")[-1].rstrip() for line in log.split("\n")]
    return [line for line in lines if line and not _LAUNCHERS.match(line)][-_ERROR_LINES:]


def _stop(process: subprocess.Popen) -> None:
    """End a launcher and its ranks."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failed(run: SuiteRun, error: str) -> RunRecord:
    commit, dirty = source_version()
    return RunRecord(
        label=run.label,
        name=run.name,
        seed=run.recipe.seed,
        outcome="failed",
        error=error,
        recipe=run.recipe.model_dump(mode="json"),
        commit=commit,
        dirty=dirty,
        environment=environment(run.ranks),
    )
