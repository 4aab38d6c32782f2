"""The plots and reports that README and the documentation show, made from the result files they rest on.

``<!-- plot: FILE -->`` stands before the plot of a ``mixsize bench loader`` result, which lies beside it;
``<!-- report: FILE FOLDER -->`` where the report of a suite's result is linked; ``<!-- picture: FILE -->`` before the
picture of what mixed sizes are. Files are relative to the repository's root, on whatever page. All are written anew by
``python -m mixsize.bench.pages.tables``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from mixsize.bench.loader import plot as loader_plot
from mixsize.bench.pages import picture
from mixsize.bench.report.report import write_report
from mixsize.bench.report.sections import make_report
from mixsize.recipes.records.run_record import read_records

_PLOT = re.compile(r"<!-- plot: (\S+) -->")
_PICTURE = re.compile(r"<!-- picture: (\S+) -->")
_REPORT = re.compile(r"<!-- report: (\S+) (\S+) -->")


def write_figures(text: str, root: Path, into: Path) -> None:
    """Write every plot, report and picture that a text names.

    Args:
        text: a page's.
        root: what file names in it are relative to.
        into: where the figures go, under the same names.
    """
    for file in _PLOT.findall(text):
        path = (into / file).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        loader_plot.plot(json.loads((root / file).read_text(encoding="utf-8")), path)
    for file in _PICTURE.findall(text):
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        picture.draw(into / file)
    for file, folder in _REPORT.findall(text):
        records = read_records(root / file)
        suites = {record.suite: None for record in records if record.suite is not None}
        write_report(make_report(", ".join(suites), records), into / folder)
