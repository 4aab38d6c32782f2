"""The terminal, on which names from recipes, files and records stand as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def plain_console() -> Console:
    """A console to which square brackets and colons in a text mean nothing."""
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
    """Print a table of figures, the first column to the left, and sentences below it.

    Args:
        console: where.
        head: names of the columns.
        rows: cells, as many in each row.
        notes: each on a line of its own.
        title: stands above.
        folded: break what is too long for its column, which is cut off otherwise.
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
