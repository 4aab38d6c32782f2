"""Tables of README and the documentation, made from result files.

A table is between ``<!-- table: KIND FILE -->`` and ``<!-- end table -->``; a table of the packaged recipes names no
file. Files are relative to the repository's root on every page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mixsize.bench.gpu.gpu import PARTS
from mixsize.bench.gpu.tables import gpu_table
from mixsize.bench.loader import report as loader_report
from mixsize.bench.loader import startup
from mixsize.bench.loader.fidelity import fidelity_table
from mixsize.bench.overhead import overhead
from mixsize.bench.paper import calibration, gradients
from mixsize.bench.report.tables import regime_notes, regime_table
from mixsize.bench.result_files import read_json
from mixsize.display.markdown import markdown_table as _markdown
from mixsize.recipes.planning.table import plans_table, published_table
from mixsize.recipes.records.run_record import read_records

_BLOCK = re.compile(r"(<!-- table: (\w+)(?: (\S+))? -->\n).*?(<!-- end table -->)", re.DOTALL)


def regimes_table(file: Path) -> str:
    """Steps, time, pixels and accuracy by size of a result file of ``mixsize bench regimes`` or ``peers``."""
    records = read_records(file)
    notes = "".join(f"\n{note}\n" for note in regime_notes(records))
    return _markdown(*regime_table(records)) + notes + _where(read_json(file))


def loader_table(result: dict[str, Any]) -> str:
    """Images a second and CPU time by size of a ``mixsize bench loader`` result, ours and others'."""
    lines = "".join(f"\n{line}\n" for line in loader_report.notes(result))
    return "\n".join(_markdown(*table) for table in loader_report.tables(result)) + lines + _where(result)


def startup_table(result: dict[str, Any]) -> str:
    """Seconds to the first batch of a ``mixsize bench startup`` result."""
    return _markdown(*startup.table(result)) + f"\n{startup.note(result)}\n" + _where(result)


def calibration_table(result: dict[str, Any]) -> str:
    """Accuracy by size of a ``mixsize bench calibration`` result, by kind of batch-norm statistics."""
    return _markdown(*calibration.table_rows(result)) + f"\n{calibration.setting_words(result)}\n" + _where(result)


def overhead_table(result: dict[str, Any]) -> str:
    """Ratios of a ``mixsize bench overhead`` result."""
    return _markdown(*overhead.table(result)) + f"\n{overhead.note(result)}\n" + _where(result)


def gradients_table(result: dict[str, Any]) -> str:
    """Rank correlations and variances of a ``mixsize bench gradients`` result."""
    return _markdown(*gradients.table_rows(result)) + f"\n{gradients.setting_words(result)}\n" + _where(result)


def matrix_table(result: dict[str, Any]) -> str:
    """Versions and tests of each environment of a ``script/matrix`` result."""
    shown = ("torch", "mosaicml", "timm", "numpy", "wandb")
    rows = [
        [
            ".".join(cell["python"].split(".")[:2]),
            *(cell["versions"].get(name, "") for name in shown),
            *(f"{count:,}" for count in (cell["passed"], cell["skipped"], len(cell["failed"]))),
            "does not run" if cell["error"] else "runs",
        ]
        for cell in result["cells"]
    ]
    head = ["Python", "torch", "Composer", *shown[2:], "passed", "skipped", "failed", "wheel and demo"]
    systems = ", ".join(sorted({cell["system"] for cell in result["cells"]}))
    return _markdown(head, rows) + f"\n{systems}, {result['measured'][:10]}.\n"


def gpu_part_table(result: dict[str, Any], part: str) -> str:
    """The figures of one part of a ``mixsize bench gpu`` result."""
    return gpu_table(result, part) + _where(result)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "calibration": calibration_table,
    "fidelity": lambda result: fidelity_table(result) + _where(result),
    **{f"gpu_{part}": partial(gpu_part_table, part=part) for part in PARTS},
    "gradients": gradients_table,
    "loader": loader_table,
    "matrix": matrix_table,
    "overhead": overhead_table,
    "startup": startup_table,
}
#: Tables of training runs, which are made from a file of run records.
RECORD_TABLES: dict[str, Callable[[Path], str]] = {"peers": regimes_table, "regimes": regimes_table}
#: Tables that need no result file.
RECIPE_TABLES: dict[str, Callable[[], str]] = {"plans": plans_table, "published": published_table}


def refresh(text: str, root: Path) -> str:
    """The text with all tables written anew from their files, which are named relative to ``root``."""

    def table(match: re.Match[str]) -> str:
        start, kind, file, end = match.groups()
        if file is None:
            return start + RECIPE_TABLES[kind]() + end
        if kind in RECORD_TABLES:
            return start + RECORD_TABLES[kind](root / file) + end
        return start + TABLES[kind](read_json(root / file)) + end

    return _BLOCK.sub(table, text)


def _where(result: dict[str, Any]) -> str:
    found = result["environment"]
    hardware = f"{found['gpu'] or found['cpu']}, {found['cores']} cores"
    return f"\n{hardware}, PyTorch {found['torch']}, {result['measured'][:10]}.\n"


def pages(root: Path) -> list[Path]:
    """The pages of a repository that may show results."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]
