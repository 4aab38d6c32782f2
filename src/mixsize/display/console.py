"""Text and tables on the terminal. Names from recipes, files and records are printed literally."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    folded: bool = True,
) -> None:
    """Print a table, its first column aligned left and the others right, and notes below it.

    Args:
        console: the terminal.
        head: names of the columns.
        rows: cells, as many as columns.
        notes: lines below the table.
        title: line above the table.
        folded: wrap cells that are too long for their column; if False, cut them off.
    """
    table = Table(title=title)
    for index, words in enumerate(head):
        table.add_column(
            words,
            justify="right" if index else "left",
            overflow="fold" if folded else "ellipsis",
            no_wrap=not folded,
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
