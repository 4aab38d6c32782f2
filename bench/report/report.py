"""``mixsize report``: regimes compared in a web page, and in Markdown with PNG plots.

A report reads records and never measures. It does not need PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mixsize.bench.report.comparison import latest, workload_of
from mixsize.bench.report.content import Report
from mixsize.bench.report.html import render_html
from mixsize.bench.report.markdown import render_markdown, render_table
from mixsize.bench.report.sections import make_report
from mixsize.bench.report.tables import regime_notes, regime_table
from mixsize.display.console import plain_console, print_table
from mixsize.display.figures import save
from mixsize.recipes.records.run_folder import RECORD_FILE
from mixsize.recipes.records.run_record import RUNS_FILE, RunRecord, read_records
from mixsize.system.files import write_text

HTML_FILE, MARKDOWN_FILE, FIGURES = "report.html", "report.md", "figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize report``."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help=f"folder of a suite or of a run, their {RUNS_FILE} or {RECORD_FILE}, or a result file of bench regimes; "
        "give several to compare their runs with each other",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write the report here (default: a folder in or beside the first RESULTS)",
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="regime to compare the others with (default: fixed, or the first)"
    )
    parser.add_argument(
        "--wandb",
        metavar="ENTITY/PROJECT",
        help="also publish the runs and a report at Weights & Biases; without a network or an account the runs are "
        "written to disk, to be sent later",
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="image size that accuracies are compared at (default: the baseline's)"
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read the records and make the report; the returned function writes it.

    Raises:
        OSError: the records cannot be read.
        ValueError: a file without records, or a baseline or size that they do not have.
    """
    records = _read(args.results)
    report = make_report(_title(args.results, records), records, args.baseline, args.size)
    folder = args.out or report_folder(*args.results)
    place = None if args.wandb is None else wandb_place(args.wandb)

    def write() -> int:
        write_html(report, folder)
        write_markdown(report, folder)
        print_comparison(latest(records), plain_console())
        for reason in report.left_out:
            print(f"left out: {reason}")
        print(f"report: {folder / HTML_FILE}\nfor a README: {folder / MARKDOWN_FILE}")
        return 0 if place is None else _publish(records, report, place, folder)

    return write


def write_html(report: Report, folder: Path) -> None:
    """Write a report as ``report.html``, one file that holds its plots."""
    write_text(folder / HTML_FILE, render_html(report))


def write_markdown(report: Report, folder: Path) -> None:
    """Write a report as ``report.md`` with its plots in ``figures/``."""
    for section in report.sections:
        for plot in section.plots:
            save(plot.figure, folder / FIGURES / f"{plot.name}.png")
    write_text(folder / MARKDOWN_FILE, render_markdown(report, FIGURES))


def wandb_place(text: str) -> tuple[str | None, str]:
    """Entity (None for the account's default) and project of ``ENTITY/PROJECT`` or ``PROJECT``.

    Raises:
        ValueError: another form.
    """
    entity, slash, project = text.rpartition("/")
    if not project or "/" in entity or (slash and not entity):
        raise ValueError(f"--wandb {text}: must be ENTITY/PROJECT, or PROJECT for your account's default entity")
    return entity or None, project


def _publish(records: Sequence[RunRecord], report: Report, place: tuple[str | None, str], folder: Path) -> int:
    # wandb takes seconds to import.
    from mixsize.bench.report.wandb_report import publish

    tables = [table for section in report.sections if section.compares for table in section.tables]
    comparison = "\n".join(map(render_table, tables))
    try:
        print(publish(latest(records), *place, comparison=comparison, folder=folder))
    except ValueError as error:
        print(f"error: --wandb: {error}", file=sys.stderr)
        return 2
    return 0


def print_comparison(records: Sequence[RunRecord], console: Console) -> None:
    """Print a table of regimes for each recipe that has a finished run."""
    for workload in dict.fromkeys(workload_of(record.label) for record in records):
        of_it = [record for record in records if workload_of(record.label) == workload]
        finished = [record for record in of_it if record.finished]
        if finished:
            title = (finished[0].recipe.get("model") or {}).get("name")
            print_table(console, *regime_table(of_it), notes=regime_notes(of_it), title=title)


def report_folder(results: Path, *others: Path) -> Path:
    """Default folder of a report.

    That is ``report`` in a results folder or beside its first of several, ``<name>-report`` beside another file.
    """
    if others:
        return results.parent / "report"
    if results.is_dir():
        return results / "report"
    return results.with_name("report" if results.name == RUNS_FILE else f"{results.stem}-report")


def _read(results: Sequence[Path]) -> list[RunRecord]:
    """The records of all results; a label has the number of its results where another has a run of it and its seed.

    Raises:
        ValueError: results without records.
    """
    found = {number: read_records(path) for number, path in enumerate(results, start=1)}
    for number, path in enumerate(results, start=1):
        if not found[number]:
            raise ValueError(f"{path}: holds no run records")
    places = Counter(run for records in found.values() for run in {(record.label, record.seed) for record in records})
    shared = {label for (label, _), count in places.items() if count > 1}
    return [
        record.model_copy(update={"label": f"{record.label} ({number})"}) if record.label in shared else record
        for number, records in found.items()
        for record in records
    ]


def _title(results: Sequence[Path], records: Sequence[RunRecord]) -> str:
    names = [path.resolve().name if path.is_dir() else path.stem for path in results]
    return ", ".join(names) if len(results) > 1 else suites_of(records) or names[0]


def suites_of(records: Sequence[RunRecord]) -> str:
    """Names of the suites that runs belong to, separated by commas."""
    return ", ".join({record.suite: None for record in records if record.suite is not None})
