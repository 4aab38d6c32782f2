"""Tables of README and the documentation, made from result files.

A table is between ``<!-- table: KIND FILE -->`` and ``<!-- end table -->``; a table of the packaged recipes names no
file. Files are relative to the repository's root on every page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mixsize.bench.gpu.part import PartTable
from mixsize.bench.gpu.record import GpuRecord
from mixsize.bench.gpu.report import PARTS, part_table, targets_table
from mixsize.bench.loader import report as loader_report
from mixsize.bench.loader.fidelity import fidelity_table
from mixsize.bench.loader.storage import storage_table
from mixsize.bench.paper import gradients
from mixsize.bench.report.tables import regime_notes, regime_table
from mixsize.bench.result_files import read_json
from mixsize.bench.soak.soak import soak_table
from mixsize.display.markdown import markdown_table as _markdown
from mixsize.recipes.planning.table import plans_table
from mixsize.recipes.records.run_record import read_records

_BLOCK = re.compile(r"(<!-- table: (\w+)(?: (\S+))? -->\n).*?(<!-- end table -->)", re.DOTALL)


def regimes_table(file: Path) -> str:
    """Steps, time, pixels and accuracy by size of a result file of ``mixsize bench regimes`` or ``peers``."""
    records = read_records(file)
    notes = "".join(f"\n{note}\n" for note in regime_notes(records))
    return _markdown(*regime_table(records)) + notes + _where(read_json(file))


def loader_table(result: dict[str, Any]) -> str:
    """Images a second by size of a ``mixsize bench loader`` result, ours and others'."""
    lines = "".join(f"\n{line}\n" for line in loader_report.notes(result))
    return _markdown(*loader_report.table(result)) + lines + _where(result)


def calibration_table(result: dict[str, Any]) -> str:
    """Accuracy by size of a ``mixsize bench calibration`` result."""
    runs = result["runs"]
    sizes = list(next(iter(runs.values()))["accuracy"]["own"])
    rows = [
        [label, statistics, *(f"{100 * values[size]:.1f}" for size in sizes)]
        for label, run in runs.items()
        for statistics, values in run["accuracy"].items()
    ]
    first = next(iter(runs.values()))
    notes = (
        f"{first['record']['recipe']['model']['name']}, {first['train_images']:,} training images, "
        f"{first['record']['epochs']} epochs, one seed; top-1 in per cent."
    )
    return (
        _markdown(["regime", "batch norm", *(f"{size} px" for size in sizes)], rows) + f"\n{notes}\n" + _where(result)
    )


def overhead_table(result: dict[str, Any]) -> str:
    """Ratios of a ``mixsize bench overhead`` result."""
    rows = []
    for name, row in result["comparisons"].items():
        low, high = row["quartiles"]
        target = f"at most {row['target']}" if row["target"] else ""
        rows.append([name, f"{row['ratio']:.3f}", f"{low:.3f}-{high:.3f}", str(row["n"]), target])
    setting = result["setting"]
    shape = f"{setting['batch_size']} x {setting['size_px']} px"
    notes = f"{setting['model']}, {shape}, interleaved; median and quartiles of n."
    return _markdown(["what", "ratio", "quartiles", "n", "target"], rows) + f"\n{notes}\n" + _where(result)


def gradients_table(result: dict[str, Any]) -> str:
    """Rank correlations and variances of a ``mixsize bench gradients`` result."""
    return _markdown(*gradients.table_rows(result)) + f"\n{gradients.setting_words(result)}\n" + _where(result)


def gpu_targets(result: dict[str, Any]) -> str:
    """What a ``mixsize bench gpu`` result found of each target."""
    return _of_part(targets_table(GpuRecord.model_validate_json(json.dumps(result)))) + _where(result)


def gpu_part(result: dict[str, Any], name: str) -> str:
    """The figures of one part of a ``mixsize bench gpu`` result."""
    return _of_part(part_table(GpuRecord.model_validate_json(json.dumps(result)), name)) + _where(result)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "calibration": calibration_table,
    "fidelity": lambda result: fidelity_table(result) + _where(result),
    "gpu": gpu_targets,
    **{f"gpu_{part.name}": partial(gpu_part, name=part.name) for part in PARTS},
    "gradients": gradients_table,
    "loader": loader_table,
    "overhead": overhead_table,
    "soak": lambda result: soak_table(result) + _where(result),
    "storage": lambda result: storage_table(result) + _where(result),
}
#: Tables of training runs, which are made from a file of run records.
RECORD_TABLES: dict[str, Callable[[Path], str]] = {"peers": regimes_table, "regimes": regimes_table}
#: Tables that need no result file.
RECIPE_TABLES: dict[str, Callable[[], str]] = {"plans": plans_table}


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


def _of_part(table: PartTable) -> str:
    return _markdown(table.head, table.rows) + "".join(f"\n{note}\n" for note in table.notes)


def _where(result: dict[str, Any]) -> str:
    found = result["environment"]
    hardware = f"{found['gpu'] or found['cpu']}, {found['cores']} cores"
    return f"\n{hardware}, PyTorch {found['torch']}, {result['measured'][:10]}.\n"


def pages(root: Path) -> list[Path]:
    """The pages of a repository that may show results."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]
