"""Train the runs of a suite, recipes x regimes x seeds on one budget, and compare them.

Each run is a process of its own, so that none inherits another's memory, threads or random state. Runs that ended
under the same recipe are not repeated, and a run that was stopped continues from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mixsize.bench.regimes.runner import LOG_FILE, Runner
from mixsize.bench.regimes.suite import Suite
from mixsize.bench.regimes.suite_runs import SuiteRun, files_of, naming_run
from mixsize.bench.report.quantities import percent, time
from mixsize.bench.report.report import HTML_FILE, print_comparison, report_folder, write_html, write_markdown
from mixsize.bench.report.sections import make_report
from mixsize.bench.result_files import result_path, write_result
from mixsize.display.console import plain_console
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.build.checks import known_data
from mixsize.recipes.models.network import planned_network
from mixsize.recipes.planning.checks import check_recipe
from mixsize.recipes.planning.costs import Costs
from mixsize.recipes.records.run_record import OWN, RUNS_FILE, RunRecord, by_label, read_records


def prepare(suite: Suite, runs: Sequence[SuiteRun], folder: Path, out: Path | None, jobs: int = 1) -> Callable[[], int]:
    """Check the runs; the function returned trains them and returns the exit code, 1 if a run failed.

    Args:
        suite: the suite.
        runs: its runs, in the order in which they are trained.
        folder: of the runs.
        out: file or existing folder for a copy of all records; None for none.
        jobs: runs side by side.

    Raises:
        ValueError: a recipe that does not fit its data or its network, or a run that was stopped under another recipe.
    """
    check_runs(suite, runs)
    console = plain_console()
    runner = Runner(runs, folder / RUNS_FILE, lambda runner, run: tell(console, runner, run))

    def train_all() -> int:
        if suite.data is not None and not all(path.exists() for path in files_of(suite.data)):
            convert_splits(suite.data.source, suite.data.folder, overwrite=True)
        runner.train(jobs)
        records = [runner.records[run.name] for run in runs]
        print_comparison(records, console)
        console.print(f"records: {folder / RUNS_FILE}")
        report = make_report(suite.name, read_records(folder / RUNS_FILE))
        write_html(report, report_folder(folder))
        write_markdown(report, report_folder(folder))
        console.print(f"report: {report_folder(folder) / HTML_FILE}")
        if out:
            file = result_path(suite.name, out) if out.is_dir() else out
            write_result(file, suite.name, {"records": plain_records(records)})
            console.print(f"result: {file}")
        for record in runner.failed:
            console.print(f"{record.name} failed:\n{record.error}", highlight=False, soft_wrap=True)
        return 1 if runner.failed else 0

    return train_all


def check_runs(suite: Suite, runs: Sequence[SuiteRun]) -> None:
    """Refuse what training would refuse, once for each recipe and regime.

    Raises:
        ValueError: the message names the suite and the run.
    """
    costs: dict[str, Costs] = {}
    for run in {run.label: run for run in reversed(runs)}.values():
        with naming_run(suite, run.label):
            recipe = known_data(run.recipe, run.ranks).recipe
            network = recipe.model.model_dump_json()
            if network not in costs:
                costs[network] = Costs(planned_network(recipe), recipe.model.name)
            if recipe.data.train_images is not None:
                check_recipe(recipe, costs[network], recipe.data.train_images, run.ranks)


def tell(console: Console, runner: Runner, run: SuiteRun) -> None:
    """Print that a run begins, or its outcome."""
    record = runner.records.get(run.name)
    if record is None:
        number = list(runner.runs).index(run) + 1
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
