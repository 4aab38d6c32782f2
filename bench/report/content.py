"""What a report says, in plain values: sections of sentences, tables and plots, whatever they are written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Attributes:
        caption: what it shows.
        head: names of the columns.
        rows: cells in words, as many in each row as there are columns; a cell may have two lines.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A plot and the figures it is drawn from.

    Attributes:
        name: of its files, within the report.
        title: above it.
        alt: what is to be seen, for those who cannot.
        note: how to read it.
        figure: the plot.
        table: the same in figures.
    """

    name: str
    title: str
    alt: str
    note: str
    figure: Figure
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        title: the heading.
        sentences: points to make first.
        tables: shown at once.
        plots: with their tables folded away.
        notes: how its figures came about.
        quotes: title -> output of a program, line by line.
        compares: whether its tables put regimes side by side.
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
    """The whole of it.

    Attributes:
        title: at the top.
        subtitle: one sentence on what was compared.
        sections: in order.
        left_out: what records had no data for, and why.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    left_out: Sequence[str] = field(default=())
