"""The content of a report, independent of the format it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row.

    Attributes:
        caption: stands above.
        head: names of the columns.
        rows: cells as text, one for each column; a cell may have two lines.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A plot and the table of its values.

    Attributes:
        name: of its file, unique within the report.
        title: stands above.
        alt: describes the plot to readers who cannot see it.
        note: explains how to read it.
        figure: the plot.
        table: its values.
    """

    name: str
    title: str
    alt: str
    note: str
    figure: Figure
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        sentences: a list of statements, shown first.
        tables: shown at once.
        plots: their tables are folded away.
        notes: methods and caveats, shown last.
        quotes: title and output of programs that failed.
        compares: whether its tables compare regimes.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    quotes: Sequence[tuple[str, str]] = ()
    compares: bool = False


@dataclass(frozen=True)
class Report:
    """A title, one sentence on the runs, the sections, and the parts that are missing, with the reason."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    left_out: Sequence[str] = ()
