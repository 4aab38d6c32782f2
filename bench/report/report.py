"""``mixsize report``: regimes compared in a web page, and in Markdown with PNG plots.

A report reads records and never measures. It does not need PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mixsize.bench.report.comparison import latest
from mixsize.bench.report.content import Report
from mixsize.bench.report.html import render_html
from mixsize.bench.report.markdown import render_markdown, render_table
from mixsize.bench.report.sections import make_report
from mixsize.display.figures import save
from mixsize.recipes.records.run_record import RUNS_FILE, RunRecord, read_records
from mixsize.system.files import write_text

HTML_FILE, MARKDOWN_FILE, FIGURES = "report.html", "report.md", "figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize report``."""
    parser.add_argument(
        "results",
        type=Path,
        metavar="RESULTS",
        help=f"a suite's results folder or its {RUNS_FILE}, a result file of bench regimes, or a run's record.json",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write the report here (default: a folder beside RESULTS)"
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
    records = read_records(args.results)
    if not records:
        raise ValueError(f"{args.results}: holds no run records")
    report = make_report(_title(args.results, records), records, args.baseline, args.size)
    folder = args.out or report_folder(args.results)
    place = None if args.wandb is None else wandb_place(args.wandb)

    def write() -> int:
        write_html(report, folder)
        write_markdown(report, folder)
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


def report_folder(results: Path) -> Path:
    """Default folder of a report: ``report`` in a results folder, ``<name>-report`` beside another file."""
    if results.is_dir():
        return results / "report"
    return results.with_name("report" if results.name == RUNS_FILE else f"{results.stem}-report")


def _title(results: Path, records: Sequence[RunRecord]) -> str:
    return suites_of(records) or (results.resolve().name if results.is_dir() else results.stem)


def suites_of(records: Sequence[RunRecord]) -> str:
    """Names of the suites that runs belong to, separated by commas."""
    return ", ".join({record.suite: None for record in records if record.suite is not None})
