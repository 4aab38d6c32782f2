"""Train the runs of a suite, recipes x regimes x seeds on one budget, and compare them.

Each run is a process of its own, so that none inherits another's memory, threads or random state. Runs that ended
under the same recipe are not repeated, and a run that was stopped continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mixsize.bench.regimes.runner import LOG_FILE, Runner
from mixsize.bench.regimes.suite import Data, load_suite, packaged_suites
from mixsize.bench.regimes.suite_runs import SuiteRun, runs_of
from mixsize.bench.report.quantities import percent, time
from mixsize.bench.report.report import HTML_FILE, print_comparison, report_folder, write_html, write_markdown
from mixsize.bench.report.sections import make_report
from mixsize.bench.result_files import result_path, write_result
from mixsize.display.console import plain_console
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.records.run_record import OWN, RUNS_FILE, RunRecord, by_label, read_records


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
    parser.add_argument("--folder", type=Path, help="folder of the runs (default: runs/<suite>)")
    parser.add_argument("--restart", action="store_true", help="repeat runs that ended or were stopped")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="also write all records into one JSON file; in an existing folder (bench/results), named after suite, "
        "hardware, PyTorch's version and date",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Compose the recipes of all runs, so that a mistake in the last one is found before the first starts."""
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: must be at least 1")
    suite = load_suite(args.suite)
    folder = args.folder or Path("runs") / suite.name
    extra = [*args.items, *(["output.restart=true"] if args.restart else [])]
    runs = runs_of(suite, folder, args.seeds or suite.seeds, extra)
    _check_data(runs, written=suite.data)
    console = plain_console()
    runner = Runner(runs, folder / RUNS_FILE, lambda runner, run: tell(console, runner, run))

    def train_all() -> int:
        if suite.data is not None and not all(path.exists() for path in _files_of(suite.data)):
            convert_splits(suite.data.source, suite.data.folder, overwrite=True)
        runner.train()
        records = [runner.records[run.name] for run in runs]
        print_comparison(records, console)
        console.print(f"records: {folder / RUNS_FILE}")
        report = make_report(suite.name, read_records(folder / RUNS_FILE))
        write_html(report, report_folder(folder))
        write_markdown(report, report_folder(folder))
        console.print(f"report: {report_folder(folder) / HTML_FILE}")
        if args.out:
            out = result_path(suite.name, args.out) if args.out.is_dir() else args.out
            write_result(out, suite.name, {"records": plain_records(records)})
            console.print(f"result: {out}")
        for record in runner.failed:
            console.print(f"{record.name} failed:\n{record.error}", highlight=False, soft_wrap=True)
        return 1 if runner.failed else 0

    return train_all


def tell(console: Console, runner: Runner, run: SuiteRun) -> None:
    """Print that a run begins, or its outcome."""
    record = runner.records.get(run.name)
    if record is None:
        number = len(runner.runs) - len(runner.pending) + 1
        words = f"[{number}/{len(runner.runs)}] {run.label}, seed {run.recipe.seed}: {run.folder / LOG_FILE}"
    elif record.finished:
        base = str(record.base_size_px)
        size = base if base in record.accuracy else next(iter(record.accuracy))
        spent = time(record.seconds.training or 0.0)
        words = f"    {percent(record.accuracy[size])} % at {size} px, {OWN}, after {spent} of training"
    else:
        lines = (record.error or "no error was recorded").splitlines()
        words = "    failed: " + next((line for line in reversed(lines) if "rror" in line), lines[-1])
    console.print(words, highlight=False, soft_wrap=True)


def plain_records(records: Sequence[RunRecord]) -> dict[str, list[dict]]:
    """Label -> records in plain values, as result files hold them."""
    return {label: [run.model_dump(mode="json") for run in runs] for label, runs in by_label(records).items()}


def _files_of(data: Data) -> tuple[Path, ...]:
    return tuple(Path(data.folder) / f"{split}.beton" for split in ("train", "test"))


def _check_data(runs: Sequence[SuiteRun], written: Data | None) -> None:
    """Refuse a suite whose data neither exists nor is written by it."""
    made = () if written is None else _files_of(written)
    for run in runs:
        for key in ("train", "eval"):
            path = Path(getattr(run.recipe.data, key))
            if path not in made and not path.exists():
                raise ValueError(
                    f"data.{key}: {path} does not exist; write it with mixsize convert, or give data.{key}=PATH"
                )
