"""A suite's runs: each in its own processes; ended ones are not repeated, stopped ones go on, failures are recorded."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mixsize.bench.pages.tables import RECORD_TABLES
from mixsize.bench.regimes import runner as runner_module
from mixsize.bench.regimes.regimes import tell
from mixsize.bench.regimes.runner import Runner, last_lines, launch
from mixsize.bench.regimes.suite import Budget, load_suite
from mixsize.bench.regimes.suite_runs import runs_of
from mixsize.bench.result_files import write_result
from mixsize.cli import main
from mixsize.recipes.build.resume import find_start
from mixsize.recipes.records.run_record import RunRecord, read_records, write_records

# One fixture starts a suite of processes twice.
pytestmark = pytest.mark.timeout(900)

ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
}  # fmt: skip


def write_suite(digits, path, pixels=20_000) -> str:
    """Two regimes, a few steps each, and one whose network does not exist, which only training finds out."""
    text = f"""
name: small
recipes: {{demo: [demo, data.train={digits}/train.beton, data.eval={digits}/test.beton, evaluation.every_epochs=1]}}
regimes:
  fixed: [regime/fixed]
  mixed: [regime/digits_bplus]
  broken: [regime/fixed, model.checkpoint=/nowhere.pth]
seeds: 1
budget: {{pixels: {pixels}}}
evaluation_sizes: [16]
"""
    path.write_text(text)
    return str(path)


@pytest.fixture
def suite_file(digits, tmp_path) -> str:
    """The suite without its broken regime."""
    path = tmp_path / "small.yaml"
    write_suite(digits, path)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "broken" not in line))
    return str(path)


@dataclass
class Stopped:
    """A suite of real processes that was killed in the middle of its first run and started again.

    Attributes:
        folder: of its runs, with its result file in results/.
        argv: of the command.
        left: processes that were alive some seconds after the kill.
        checkpoint: that the killed run had left.
        code: exit code of the second start.
        printed: its output, white space reduced.
    """

    folder: Path
    argv: list[str]
    left: list[int]
    checkpoint: Path | None
    code: int
    printed: str


@pytest.fixture(scope="module")
def stopped(digits, tmp_path_factory) -> Stopped:
    tmp_path = tmp_path_factory.mktemp("suite")
    folder, results = tmp_path / "runs", tmp_path / "runs/results"
    results.mkdir(parents=True)
    argv = ["bench", "regimes", write_suite(digits, tmp_path / "small.yaml", 200_000), "--folder", str(folder)]
    argv += ["--out", str(results), "progress_bar=false", "output.save_every=2ba"]
    left = kill_in_mid_run(argv, folder, signal.SIGKILL)
    (first, *_) = runs_of(load_suite(argv[2]), folder, 1, argv[7:])
    checkpoint = find_start(first.recipe, first.folder, 1).checkpoint
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(argv)
    return Stopped(folder, argv, left, checkpoint, code, " ".join(out.getvalue().split()))


def kill_in_mid_run(argv, folder, number) -> list[int]:
    """Start a suite, send it a signal once its first run has a checkpoint; returns processes that do not end."""
    process = subprocess.Popen([sys.executable, "-m", "mixsize", *argv], stdout=subprocess.DEVNULL)
    run = folder / "small-fixed-seed17"
    while not list(run.glob("checkpoints/ep*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    assert not (run / "record.json").exists()
    assert len(_processes_with(str(folder))) >= 2  # The suite and the rank.
    process.send_signal(number)
    assert process.wait(timeout=100) != 0
    deadline = time.monotonic() + 100
    while _processes_with(str(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return _processes_with(str(folder))


@pytest.fixture
def runs(suite_file, tmp_path):
    return runs_of(load_suite(suite_file), tmp_path / "runs", 2)


def trained(run):
    """A record as the run would leave it."""
    return RunRecord.model_validate(
        {
            "label": run.name, "name": run.name, "seed": run.recipe.seed, "recipe": run.recipe.model_dump(mode="json"),
            "steps": 3, "pixels": 100, "seconds": {"training": 10.0},
            "accuracy": {"16": 0.5}, "environment": ENVIRONMENT,
        }
    )  # fmt: skip


class Launches:
    """Stands in for the processes: notes what is started, leaves a record or fails."""

    def __init__(self, monkeypatch, failing=()):
        self.started, self.failing = [], set(failing)
        monkeypatch.setattr(runner_module, "launch", self)

    def __call__(self, run, jobs, processes):
        self.started.append(run.name)
        if run.name in self.failing:
            return "ValueError: no luck\nexit code 1"
        run.folder.mkdir(parents=True)
        (run.folder / "record.json").write_text(trained(run).model_dump_json())
        return None


def train(runs, tmp_path, jobs=1):
    runner = Runner(runs, tmp_path / "runs.jsonl", lambda runner, run: None)
    runner.train(jobs)
    return runner


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told of its parent's end")
def test_a_suite_that_is_killed_leaves_no_run_behind_and_goes_on_where_it_stood(stopped):
    assert stopped.left == []
    assert stopped.checkpoint is not None
    log = (stopped.folder / "small-fixed-seed17/run.log").read_text()
    assert read_records(stopped.folder)[0].steps == 25, log


def test_every_run_of_a_suite_spends_its_budget_and_is_recorded(stopped):
    fixed, mixed, _ = read_records(stopped.folder)
    assert [(run.suite, run.label, run.seed) for run in (fixed, mixed)] == [
        ("small", "fixed", 17),
        ("small", "mixed", 17),
    ]
    # The first step at which 200,000 pixels are reached: 8,192 to a step of the fixed run.
    assert (fixed.steps, fixed.pixels) == (25, 204_800)
    assert mixed.pixels >= 200_000


def test_a_suite_ends_with_a_table_a_report_and_a_result_file(stopped):
    assert "[1/3] fixed, seed 17" in stopped.printed
    assert "16 px*" in stopped.printed
    assert "small-fixed-seed17" in (stopped.folder / "report/report.html").read_text()
    (result,) = (stopped.folder / "results").glob("small-*-torch*-*.json")
    assert read_records(result) == read_records(stopped.folder)
    assert "| fixed | 1 | 25 |" in RECORD_TABLES["regimes"](result)


def test_a_run_that_fails_is_recorded_with_its_own_words_and_the_others_go_on(stopped):
    assert stopped.code == 1
    fixed, mixed, broken = read_records(stopped.folder)
    assert fixed.finished
    assert mixed.finished
    assert (broken.label, broken.outcome, broken.steps, broken.accuracy) == ("broken", "failed", None, {})
    assert broken.error.endswith("exit code 2")
    assert "/nowhere.pth" in broken.error
    assert "broken-seed17 failed:" in stopped.printed
    assert "0/1" in stopped.printed


def test_a_suite_that_is_started_again_repeats_its_failed_runs_alone(stopped):
    runs = runs_of(load_suite(stopped.argv[2]), stopped.folder, 1, stopped.argv[7:])
    runner = Runner(runs, stopped.folder / "runs.jsonl", lambda runner, run: None)
    assert [run.label for run in runner.pending] == ["broken"]


@pytest.mark.soak  # Another suite of processes; the ordinary run kills one by SIGKILL.
def test_a_suite_that_is_asked_to_end_leaves_no_run_behind(digits, tmp_path):
    argv = ["bench", "regimes", write_suite(digits, tmp_path / "small.yaml", 2_000_000), "--folder", f"{tmp_path}/runs"]
    assert (
        kill_in_mid_run([*argv, "progress_bar=false", "output.save_every=2ba"], tmp_path / "runs", signal.SIGTERM) == []
    )


def test_runs_that_ended_are_not_repeated_and_failed_ones_are(runs, tmp_path, monkeypatch):
    launches = Launches(monkeypatch, failing=[runs[1].name])
    runner = train(runs, tmp_path)
    assert launches.started == [run.name for run in runs]
    assert [record.outcome for record in read_records(tmp_path / "runs.jsonl")] == [
        "finished", "failed", "finished", "finished",
    ]  # fmt: skip
    assert [record.error for record in runner.failed] == ["ValueError: no luck\nexit code 1"]
    again = Launches(monkeypatch)
    runner = train(runs, tmp_path)
    assert again.started == [runs[1].name]
    assert runner.failed == []
    assert all(record.finished for record in read_records(tmp_path / "runs.jsonl"))


def test_a_failure_stays_on_record_until_the_run_is_repeated(runs, tmp_path, monkeypatch):
    Launches(monkeypatch, failing=[runs[1].name])
    train(runs, tmp_path)
    Runner(runs, tmp_path / "runs.jsonl", lambda runner, run: None).save()
    assert [record.outcome for record in read_records(tmp_path / "runs.jsonl")][1] == "failed"


def test_seeds_that_are_not_asked_for_again_stay_on_record(suite_file, runs, tmp_path, monkeypatch):
    Launches(monkeypatch)
    train(runs, tmp_path)
    fewer = runs_of(load_suite(suite_file), tmp_path / "runs", 1)
    runner = train(fewer, tmp_path)
    assert list(runner.records) == [run.name for run in fewer]
    assert [record.name for record in read_records(tmp_path / "runs.jsonl")] == [run.name for run in runs]


def test_a_stopped_run_of_another_recipe_is_told_before_anything_starts(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped.folder, tmp_path / "runs")
    (tmp_path / "runs/small-fixed-seed17/record.json").unlink()
    launches = Launches(monkeypatch)
    suite = load_suite(stopped.argv[2])
    other = runs_of(suite, tmp_path / "runs", 1, ["optimizer.lr=0.01"])
    with pytest.raises(ValueError, match=r"holds a run of another recipe: optimizer\.lr was 0\.05, is 0\.01"):
        Runner(other, tmp_path / "runs.jsonl", lambda runner, run: None)
    longer = runs_of(suite.model_copy(update={"budget": Budget(epochs=3)}), tmp_path / "runs", 1)
    with pytest.raises(ValueError, match=r"max_duration \d+ba, the suite asks for 3ep from the start; give"):
        Runner(longer, tmp_path / "runs.jsonl", lambda runner, run: None)
    assert launches.started == []
    # Asked to, it begins anew.
    anew = runs_of(suite, tmp_path / "runs", 1, ["optimizer.lr=0.01", "output.restart=true"])
    assert len(Runner(anew, tmp_path / "runs.jsonl", lambda runner, run: None).pending) == 3


def test_the_error_of_a_failed_run_is_the_end_of_its_log():
    log = "step 1\rstep 2\rstep 3\nTraceback\nValueError: no\n\n"
    assert last_lines(log) == ["step 3", "Traceback", "ValueError: no"]
    assert last_lines("\n".join(map(str, range(100)))) == [str(number) for number in range(80, 100)]


def test_a_run_of_several_ranks_goes_through_composers_launcher(runs, tmp_path, monkeypatch):
    commands = []

    def start(command, **options):
        commands.append(command)
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], **options)

    monkeypatch.setattr(runner_module, "subprocess", SimpleNamespace(Popen=start, DEVNULL=-3, STDOUT=-2))
    assert launch(runs[0], 1, set()) == "exit code 3"
    launch(replace(runs[0], ranks=2), 1, set())
    train = ["-m", "mixsize", "train", *runs[0].items]
    assert commands[0][-len(train) - 1 :] == [sys.executable, *train]
    assert commands[1][-len(train) - 5 :] == [sys.executable, "-m", "composer.cli.launcher", "-n", "2", *train]


@pytest.mark.parametrize(("jobs", "ranks", "threads"), [(1, 1, None), (2, 1, "4"), (2, 2, "2"), (9, 1, "1")])
def test_runs_side_by_side_share_the_cores(runs, monkeypatch, jobs, ranks, threads):
    given = []

    def start(command, env, **options):
        given.append(env.get("OMP_NUM_THREADS"))
        return subprocess.Popen([sys.executable, "-c", ""], **options)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner_module, "cores_at_hand", lambda: 8)
    monkeypatch.setattr(runner_module, "subprocess", SimpleNamespace(Popen=start, DEVNULL=-3, STDOUT=-2))
    launch(replace(runs[0], ranks=ranks), jobs, set())
    assert given == [threads]


def test_two_jobs_train_two_runs_at_a_time(runs, tmp_path, monkeypatch):
    meeting = threading.Barrier(2, timeout=30)  # Broken, and an error, where a run is alone.
    launches = Launches(monkeypatch)
    monkeypatch.setattr(runner_module, "launch", lambda *given: (meeting.wait(), launches(*given))[1])
    runner = train(runs, tmp_path, jobs=2)
    assert runner.pending == []
    assert [record.name for record in read_records(tmp_path / "runs.jsonl")] == [run.name for run in runs]


def test_an_interrupt_ends_all_runs_that_are_side_by_side(runs, tmp_path, monkeypatch):
    started = []

    def start(run, jobs, processes):
        process = subprocess.Popen(["sleep", "600"])  # An interpreter that starts up ends otherwise.
        processes.add(process)
        started.append(process)
        return f"exit code {process.wait()}"

    def interrupted(futures, return_when):
        while len(started) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner_module, "launch", start)
    monkeypatch.setattr(runner_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(runs, tmp_path, jobs=2)
    assert [process.returncode for process in started] == [-signal.SIGINT, -signal.SIGINT]


def test_a_person_sees_what_runs_what_came_out_and_how_long_is_left(runs, tmp_path, monkeypatch):
    Launches(monkeypatch, failing=[runs[1].name])
    console = Console(record=True, width=200)
    Runner(runs, tmp_path / "runs.jsonl", lambda runner, run: tell(console, runner, run)).train()
    lines = console.export_text().splitlines()
    assert lines[0] == f"[1/4] fixed, seed 17: {tmp_path}/runs/small-fixed-seed17/run.log"
    assert lines[1] == "    50.0 % at 16 px, own statistics, after 10.0 s of training"
    assert lines[2].startswith("[2/4] mixed, seed 17: ")
    assert lines[3] == "    failed: ValueError: no luck"


def _processes_with(word):
    """Numbers of living processes whose command line holds a word, this one's not."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if word in command and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path, runs: write_records(path, [trained(run) for run in runs]), id="runs.jsonl"),
        pytest.param(lambda path, runs: write_result(path, "small", {"records": [r.name for r in runs]}), id="result"),
    ],
)
def test_a_disk_that_fills_up_keeps_the_older_records(runs, tmp_path, write):
    """A limit on the size of files stands for a full disk: both are an OSError in the middle of writing."""
    path = tmp_path / "found"
    write(path, runs[:1])
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        with pytest.raises(OSError, match=f"cannot be written: File too large: '{path}'"):
            write(path, runs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if "found" in file.name] == ["found"]
