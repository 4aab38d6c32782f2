"""Plots and reports of README and the documentation, made from result files.

``<!-- plot: FILE -->`` precedes the plot of a ``mixsize bench loader`` result, which lies beside it;
``<!-- report: FILE FOLDER -->`` precedes a link to the report of a suite's result, and ``<!-- picture: FILE -->`` the
picture that explains mixed sizes. Files are relative to the repository's root on every page.
"""

from __future__ import annotations

import re
from pathlib import Path

from mixsize.bench.loader import plot as loader_plot
from mixsize.bench.pages import picture
from mixsize.bench.report.report import suites_of, write_markdown
from mixsize.bench.report.sections import make_report
from mixsize.bench.result_files import read_json
from mixsize.recipes.records.run_record import read_records

_PLOT = re.compile(r"<!-- plot: (\S+) -->")
_PICTURE = re.compile(r"<!-- picture: (\S+) -->")
_REPORT = re.compile(r"<!-- report: (\S+) (\S+) -->")


def write_figures(text: str, root: Path, into: Path) -> None:
    """Write every plot, report and picture that a page names.

    Args:
        text: of the page.
        root: of the files that it names.
        into: folder that gets the figures, under the same names.
    """
    for file in _PLOT.findall(text):
        loader_plot.plot(read_json(root / file), (into / file).with_suffix(".png"))
    for file in _PICTURE.findall(text):
        picture.draw(into / file)
    for file, folder in _REPORT.findall(text):
        records = read_records(root / file)
        write_markdown(make_report(suites_of(records), records), into / folder)
