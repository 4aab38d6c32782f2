"""Tables of ``mixsize bench gpu``: a row for each row of a part's cases, a column for each key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixsize.bench.gpu.case import Row
from mixsize.display.markdown import markdown_table


def gpu_table(result: dict[str, Any], part: str) -> str:
    """The Markdown table of one part of a result.

    Raises:
        ValueError: the part was not measured.
    """
    if part not in result["parts"]:
        raise ValueError(f"the result has no part {part}; it has {', '.join(result['parts']) or 'none'}")
    dry = "\nA dry run: tiny shapes on the CPU, which say nothing about a GPU.\n" if result["dry_run"] else ""
    return markdown_table(*head_and_rows(rows_of(result["parts"][part]))) + dry


def rows_of(cases: dict[str, dict[str, Any]]) -> list[Row]:
    """The rows of a part's cases, in the order in which they were measured, each with its case's name."""
    return [{"case": name, **row} for name, case in cases.items() for row in case["rows"]]


def head_and_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Column names, and the cells of each row; cells without a figure stay empty."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [key.replace("_", " ") for key in keys], [[_cell(row.get(key)) for key in keys] for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return f"{_figure(value['median'])} ({_figure(value['low'])}-{_figure(value['high'])})"
    return _figure(value) if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    """Four significant digits, without an exponent."""
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"
