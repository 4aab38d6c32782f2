"""Text and tables on the terminal. Names from recipes, files and records are printed literally."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table


def plain_console() -> Console:
    """A console that interprets no markup and no emoji names."""
    return Console(markup=False, emoji=False)


def print_table(
    console: Console,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    notes: Iterable[str] = (),
    title: str | None = None,
    named: bool = True,
) -> None:
    """Print a table and notes below it; one too wide for the terminal becomes several that repeat the first column.

    Args:
        console: the terminal.
        head: names of the columns.
        rows: cells, as many as columns.
        notes: lines below the table.
        title: line above the table.
        named: the first column holds names, aligned left; the others, numbers, are aligned right.
    """
    rows = list(rows)
    for number, columns in enumerate(_fitting(head, rows, console.width)):
        table = Table(title=None if number else title)
        for index in columns:
            table.add_column(head[index], justify="right" if index or not named else "left", overflow="fold")
        for row in rows:
            cells = [row[index] for index in columns]
            if any(cells[1:]):
                table.add_row(*cells)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def _fitting(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Indices of the columns of each table: the first, and as many of the others as fit, at least one."""
    # Each column has a space on both sides and a line behind it; one line stands before the first.
    widths = [3 + max(cell_len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    tables, used = [[0]], 1 + widths[0]
    for index in range(1, len(head)):
        if used + widths[index] > width and len(tables[-1]) > 1:
            tables.append([0])
            used = 1 + widths[0]
        tables[-1].append(index)
        used += widths[index]
    return tables
