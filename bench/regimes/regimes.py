"""Train the runs of a suite, recipes x regimes x seeds on one budget, and put them side by side.

Each run is a process of its own, so that none inherits another's memory, threads or random state. Runs that ended
under the same recipe are not repeated, and one that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mixsize.bench.regimes.runner import LOG_FILE, Runner
from mixsize.bench.regimes.suite import Data, load_suite, packaged_suites
from mixsize.bench.regimes.suite_runs import SuiteRun, runs_of
from mixsize.bench.report.report import HTML_FILE, report_folder, write_report
from mixsize.bench.report.sections import make_report
from mixsize.bench.report.spread import mean_and_spread
from mixsize.bench.result_files import result_path, write_result
from mixsize.display.console import plain_console
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.records.run_record import RUNS_FILE, RunRecord, by_label, read_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench regimes``."""
    parser.add_argument(
        "suite",
        metavar="SUITE",
        help=f"packaged suite ({', '.join(packaged_suites())}) or path of a YAML file",
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="ITEM",
        help="further items for every run, as for mixsize train: device=gpu, output.wandb.project=mine",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each regime (default: the suite's)")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: runs/<suite>)")
    parser.add_argument("--restart", action="store_true", help="train anew also what has ended or was stopped")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="also write all records into one JSON file; in a folder that exists (bench/results), under a name with "
        "suite, hardware, PyTorch's version and date",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose every run's recipe first: a mistake in the last one is an error now, not after the others ran."""
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: must be at least 1")
    suite = load_suite(args.suite)
    seeds = args.seeds or suite.seeds
    folder = args.folder or Path("runs") / suite.name
    extra = [*args.items, *(["output.restart=true"] if args.restart else [])]
    missing = None if suite.data is None else _missing(Path(suite.data.folder))
    runs = runs_of(suite, folder, seeds, extra)
    _check_data(runs, written=suite.data)
    screen = Screen(plain_console(), len(runs))
    runner = Runner(runs, folder / RUNS_FILE, screen.show)

    def train_all() -> int:
        if suite.data is not None and missing:
            convert_splits(suite.data.source, suite.data.folder, overwrite=True)
        with screen.showing(runner):
            runner.train()
        console = screen.console
        records = [runner.records[run.name] for run in runs]
        for workload in _workloads(records):
            print_comparison(workload, console)
        console.print(f"records: {folder / RUNS_FILE}")
        write_report(make_report(suite.name, read_records(folder / RUNS_FILE)), report_folder(folder))
        console.print(f"report: {report_folder(folder) / HTML_FILE}")
        if args.out:
            out = result_path(suite.name, args.out) if args.out.is_dir() else args.out
            grouped = by_label(records)
            write_result(out, suite.name, {"records": {k: [_plain(run) for run in v] for k, v in grouped.items()}})
            console.print(f"result: {out}")
        for record in runner.failed:
            console.print(f"{record.name} failed:\n{record.error}", highlight=False, soft_wrap=True)
        return 1 if runner.failed else 0

    return train_all


class Screen:
    """What a person watching a suite sees: a line for each run, and below them runs done and time left.

    Args:
        console: where it goes; on a terminal the last line is live.
        total: runs of the suite.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._total = total
        self._progress: Progress | None = None

    @contextmanager
    def showing(self, runner: Runner) -> Iterator[None]:
        """Keep the live line for as long as the block takes."""
        done = self._total - len(runner.pending)
        if done:
            self.console.print(f"{done} of {self._total} runs ended before")
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("runs"), TimeElapsedColumn(), _TimeLeft(runner))
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as self._progress:
            self._progress.add_task("", total=self._total, completed=done)
            yield
        self._progress = None

    def show(self, runner: Runner, run: SuiteRun) -> None:
        """Tell of a run that begins or has ended."""
        record = runner.records.get(run.name)
        if record is None:
            number = self._total - len(runner.pending) + 1
            words = f"[{number}/{self._total}] {run.label}, seed {run.recipe.seed}: {run.folder / LOG_FILE}"
            left = runner.seconds_left()
            self._say(words if left is None else f"{words}, about {_duration(left)} left")
            return
        if record.finished:
            assert record.seconds.training is not None
            base = str(record.base_size_px)
            size = base if base in record.accuracy else next(iter(record.accuracy))
            accuracy = f"{100 * record.accuracy[size]:.1f} % at {size} px"
            self._say(f"    {accuracy} after {_duration(record.seconds.training)} of training")
        else:
            assert record.error is not None
            lines = record.error.splitlines()
            self._say("    failed: " + next((line for line in reversed(lines) if "rror" in line), lines[-1]))
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def render(self, task: Task) -> Text:
        left = self._runner.seconds_left()
        return Text("time left: known after the first run" if left is None else f"about {_duration(left)} left")


def print_comparison(records: Sequence[RunRecord], console: Console) -> None:
    """One row a regime: steps, seconds of training, accuracy at each size; the training size is marked.

    Args:
        records: of one recipe. Failed ones are left out, and said.
        console: to print on.
    """
    finished = by_label([record for record in records if record.finished])
    if not finished:
        return
    first = next(iter(finished.values()))[0]
    base = {str(record.base_size_px) for record in records}
    several = max(map(len, finished.values()))
    seeds = f", mean ± standard deviation of {several} seeds" if several > 1 else ""
    calibrates = any(record.calibrated_accuracy for record in records)
    calibrated = " Calibrated batch norm where the recipe has it." if calibrates else ""
    table = Table(
        title=f"{first.recipe['model']['name']}: top-1 % by evaluation size (*: the base's){seeds}",
        caption=f"Pixels relative to {first.label}.{calibrated}",
    )
    table.add_column("regime")
    for column in ("runs", "steps", "seconds", "pixels"):
        table.add_column(column, justify="right")
    for size in first.accuracy:
        table.add_column(f"{size} px{'*' if size in base else ''}", justify="right")
    for label, group in by_label(records).items():
        runs = finished.get(label, [])
        asked = len(group)
        if not runs:
            table.add_row(label, f"0/{asked}")
            continue
        found = [run.calibrated_accuracy or run.accuracy for run in runs]
        table.add_row(
            label,
            str(asked) if len(runs) == asked else f"{len(runs)}/{asked}",
            f"{runs[0].steps:,}",
            mean_and_spread([run.seconds.training for run in runs if run.seconds.training is not None]),
            f"{(runs[0].pixels or 0) / (first.pixels or 1):.2f}x",
            *(mean_and_spread([100 * accuracy[size] for accuracy in found]) for size in first.accuracy),
        )
    console.print(table)


def _workloads(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Records by recipe, where the suite has several."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.label.rpartition("/")[0], []).append(record)
    return list(found.values())


def _missing(folder: Path) -> bool:
    return not all((folder / f"{split}.beton").exists() for split in ("train", "test"))


def _check_data(runs: Sequence[SuiteRun], written: Data | None) -> None:
    """Refuse a suite whose data is neither there nor written on the way."""
    made = () if written is None else tuple(Path(written.folder) / f"{split}.beton" for split in ("train", "test"))
    for run in runs:
        for key in ("train", "eval"):
            path = Path(getattr(run.recipe.data, key))
            if path not in made and not path.exists():
                raise ValueError(
                    f"data.{key}: {path} is not there; write it with mixsize convert, or name yours: data.{key}=PATH"
                )


def _plain(record: RunRecord) -> dict[str, Any]:
    return record.model_dump(mode="json")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
