"""A suite's runs: each in its own processes; ended ones are not repeated, stopped ones go on, failures are recorded."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from mixsize.bench.pages.tables import TABLES
from mixsize.bench.regimes import runner as runner_module
from mixsize.bench.regimes.regimes import Screen, print_comparison
from mixsize.bench.regimes.runner import Runner, last_words
from mixsize.bench.regimes.suite import load_suite
from mixsize.bench.regimes.suite_runs import runs_of
from mixsize.bench.result_files import write_result
from mixsize.cli import main
from mixsize.recipes.records.run_record import read_record, read_records, write_records

ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
}  # fmt: skip


@pytest.fixture
def suite_file(digits, tmp_path) -> str:
    """Two regimes on a handful of steps."""
    text = f"""
name: small
recipes: {{demo: [demo, data.train={digits}/train.beton, data.eval={digits}/test.beton, evaluation.every_epochs=1]}}
regimes: {{fixed: [regime/fixed], mixed: [regime/digits_bplus]}}
seeds: 1
budget: {{pixels: 20000}}
evaluation_sizes: [16]
"""
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def runs(suite_file, tmp_path):
    return runs_of(load_suite(suite_file), tmp_path / "runs", 2)


def trained(run, seconds=10.0):
    """A record as the run would leave it."""
    from mixsize.recipes.records.run_record import RunRecord

    return RunRecord.model_validate(
        {
            "label": run.name, "name": run.name, "seed": run.recipe.seed, "recipe": run.recipe.model_dump(mode="json"),
            "steps": 3, "pixels": 100, "seconds": {"fit": seconds, "set_up": 0.0, "training": seconds},
            "accuracy": {"16": 0.5}, "environment": ENVIRONMENT,
        }
    )  # fmt: skip


class Launches:
    """Stands in for the processes: notes what is started, leaves a record or fails."""

    def __init__(self, monkeypatch, failing=()):
        self.started, self.failing = [], set(failing)
        monkeypatch.setattr(runner_module, "launch", self)

    def __call__(self, run):
        self.started.append(run.name)
        if run.name in self.failing:
            return "ValueError: no luck\nexit code 1"
        run.folder.mkdir(parents=True)
        (run.folder / "record.json").write_text(trained(run).model_dump_json())
        return None


def train(runs, tmp_path):
    told = []
    runner = Runner(runs, tmp_path / "runs.jsonl", lambda runner, run: told.append((run.name, runner.seconds_left())))
    runner.train()
    return runner, told


def test_a_suite_from_the_command_line_to_its_records_and_its_table(suite_file, tmp_path, capfd):
    """Real processes, through Composer's launcher."""
    out = tmp_path / "results"
    out.mkdir()
    argv = ["bench", "regimes", suite_file, "progress_bar=false", "--folder", f"{tmp_path}/runs", "--out", str(out)]
    assert main(argv) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "[1/2] fixed, seed 17" in printed
    assert "16 px*" in printed
    assert "small-fixed-seed17" in (tmp_path / "runs/report/report.html").read_text()
    records = read_records(tmp_path / "runs")
    assert [(run.suite, run.label, run.seed) for run in records] == [("small", "fixed", 17), ("small", "mixed", 17)]
    # The first step at which 20,000 pixels are reached: 8,192 to a step of the fixed run.
    assert (records[0].steps, records[0].pixels) == (3, 24_576)
    assert records[1].pixels >= 20_000
    (result,) = out.glob("small-*-torch*-*.json")
    assert read_records(result)[1].pixels == records[1].pixels
    table = TABLES["regimes"](json.loads(result.read_text()))
    assert "| fixed | 3 |" in table
    assert "launcher" not in (tmp_path / "runs/small-fixed-seed17/run.log").read_text()
    # Again: all ended before, nothing is started.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    assert main(argv) == 0
    assert "2 of 2 runs ended before" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.fault("a run of a suite fails", "it is recorded with its last words, the others go on")
def test_a_run_that_fails_is_recorded_with_its_own_words_and_the_others_go_on(suite_file, tmp_path, capfd):
    """Real processes: one network does not exist, which only training finds out."""
    text = Path(suite_file).read_text().replace("fixed: [regime/fixed]", "broken: [model.checkpoint=/nowhere.pth]")
    Path(suite_file).write_text(text)
    assert main(["bench", "regimes", suite_file, "progress_bar=false", "--folder", f"{tmp_path}/runs"]) == 1
    broken, mixed = read_records(tmp_path / "runs")
    assert (broken.label, broken.outcome, broken.steps, broken.accuracy) == ("broken", "failed", None, {})
    assert broken.error.endswith("exit code 2")
    assert "/nowhere.pth" in broken.error
    assert "launcher" not in broken.error
    assert mixed.finished
    printed = " ".join(capfd.readouterr().out.split())
    assert "broken-seed17 failed:" in printed
    assert "0/1" in printed


def test_runs_that_ended_are_not_repeated_and_failed_ones_are(runs, tmp_path, monkeypatch):
    launches = Launches(monkeypatch, failing=[runs[1].name])
    runner, _ = train(runs, tmp_path)
    assert launches.started == [run.name for run in runs]
    assert [record.outcome for record in read_records(tmp_path / "runs.jsonl")] == [
        "finished", "failed", "finished", "finished",
    ]  # fmt: skip
    assert [record.error for record in runner.failed] == ["ValueError: no luck\nexit code 1"]
    again = Launches(monkeypatch)
    runner, _ = train(runs, tmp_path)
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
    runner, _ = train(fewer, tmp_path)
    assert list(runner.records) == [run.name for run in fewer]
    assert [record.name for record in read_records(tmp_path / "runs.jsonl")] == [run.name for run in runs]


def test_a_stopped_run_of_another_recipe_is_told_before_anything_starts(digits, suite_file, tmp_path, monkeypatch):
    from mixsize.recipes.build.trainer import build
    from mixsize.recipes.commands.train import fit

    (first, _) = runs_of(load_suite(suite_file), tmp_path / "runs", 1, ["progress_bar=false"])
    fit(build(first.recipe))
    (first.folder / "record.json").unlink()
    launches = Launches(monkeypatch)
    other = runs_of(load_suite(suite_file), tmp_path / "runs", 1, ["optimizer.lr=0.01"])
    with pytest.raises(ValueError, match=r"holds a stopped run of another recipe: optimizer\.lr was 0\.05, is 0\.01"):
        Runner(other, tmp_path / "runs.jsonl", lambda runner, run: None)
    assert launches.started == []
    # Asked to, it begins anew.
    anew = runs_of(load_suite(suite_file), tmp_path / "runs", 1, ["optimizer.lr=0.01", "output.restart=true"])
    assert len(Runner(anew, tmp_path / "runs.jsonl", lambda runner, run: None).pending) == 2


def test_time_left_is_what_the_runs_of_the_same_regime_took(runs, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runner_module.time, "monotonic", lambda: clock[0])
    taken = {"fixed": 10.0, "mixed": 30.0}

    def launch(run):
        clock[0] += taken[run.label]
        run.folder.mkdir(parents=True)
        (run.folder / "record.json").write_text(trained(run).model_dump_json())

    monkeypatch.setattr(runner_module, "launch", launch)
    _, told = train(runs, tmp_path)
    # Nothing known; three more like the first; a fixed and a mixed one are known; and so on to none.
    assert [left for _, left in told] == [None, 30.0, 30.0, 40.0, 40.0, 30.0, 30.0, 0]


def test_the_last_words_are_the_runs_own():
    log = (
        "step 1\rstep 2\rstep 3\nTraceback\nValueError: no\n\n"
        "ERROR:composer.cli.launcher:Rank 0 crashed with exit code 1.\n"
        "Waiting up to 30 seconds for all training processes to terminate. Press Ctrl-C to exit immediately.\n"
        "Global rank 0 (PID 7) exited with code 1\n"
        "----------Begin global rank 1 STDERR----------\nOSError: gone\n----------End global rank 1 STDERR----------\n"
    )
    assert last_words(log) == ["step 3", "Traceback", "ValueError: no", "OSError: gone"]
    assert last_words("\n".join(map(str, range(100)))) == [str(number) for number in range(80, 100)]


def test_the_table_marks_the_bases_size_and_says_what_failed(runs):
    records = [
        trained(run).model_copy(update={"label": run.label, **({"outcome": "failed", "error": "x"} if i == 1 else {})})
        for i, run in enumerate(runs)
    ]
    console = Console(record=True, width=100)
    print_comparison(records, console)
    rows = [line.replace("│", " ").split() for line in console.export_text().splitlines() if "fixed" in line]
    assert rows[0] == ["fixed", "2", "3", "10.0", "±", "0.0", "1.00x", "50.0", "±", "0.0"]
    console = Console(record=True, width=100)
    print_comparison(records, console)
    assert "1/2" in console.export_text()


def test_a_person_sees_what_runs_what_came_out_and_how_long_is_left(runs, tmp_path, monkeypatch):
    Launches(monkeypatch, failing=[runs[1].name])
    console = Console(record=True, width=200)
    screen = Screen(console, len(runs))
    runner = Runner(runs, tmp_path / "runs.jsonl", screen.show)
    with screen.showing(runner):
        runner.train()
    lines = console.export_text().splitlines()
    assert lines[0] == f"[1/4] fixed, seed 17: {tmp_path}/runs/small-fixed-seed17/run.log"
    assert lines[1] == "    50.0 % at 16 px after 10 s of training"
    assert lines[2].startswith("[2/4] mixed, seed 17: ")
    assert lines[2].endswith(" left")
    assert lines[3] == "    failed: ValueError: no luck"


@pytest.mark.fault("SIGTERM or SIGKILL of a suite", "no process left; started again, it goes on where it stood")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not learn of its parent's end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_suite_that_is_stopped_leaves_no_run_behind_and_goes_on_where_it_stood(suite_file, tmp_path, number):
    """A run of far more steps than the test has time for is stopped once it has a checkpoint."""
    text = Path(suite_file).read_text().replace("{pixels: 20000}", "{epochs: 1000}")
    Path(suite_file).write_text(text.replace(", mixed: [regime/digits_bplus]", ""))
    argv = ["bench", "regimes", suite_file, "--folder", f"{tmp_path}/runs", "progress_bar=false"]
    argv += ["output.save_every=2ba", "output.log_batches=true"]
    process = subprocess.Popen([sys.executable, "-m", "mixsize", *argv], stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs/small-fixed-seed17"
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/ep*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    mine = set(_processes_with(str(folder.parent)))
    assert len(mine) >= 3  # The suite, the launcher and the rank.
    process.send_signal(number)
    assert process.wait(timeout=100) != 0
    while _processes_with(str(folder.parent)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    steps = (folder / "batches-rank0.csv").read_text().splitlines()
    (run,) = runs_of(load_suite(suite_file), tmp_path / "runs", 1, argv[5:])
    assert Runner([run], tmp_path / "runs/runs.jsonl", lambda runner, run: None).pending == [run]
    from mixsize.recipes.build.resume import find_start

    start = find_start(run.recipe, run.folder, 1)
    assert start.checkpoint is not None
    assert len(steps) > 2


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


@pytest.mark.fault(
    "disk full while a suite's records or results are written", "OSError naming the file; the older stays"
)
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


def test_records_are_written_in_one_piece(runs, tmp_path, monkeypatch):
    """A reader finds the records from before while new ones are written, also where the writing fails."""
    write_records(tmp_path / "runs.jsonl", [trained(runs[0])])
    before = (tmp_path / "runs.jsonl").read_text()
    monkeypatch.setattr(Path, "write_text", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        write_records(tmp_path / "runs.jsonl", [])
    assert (tmp_path / "runs.jsonl").read_text() == before
    assert read_record(tmp_path / "runs.jsonl").name == runs[0].name
