"""A report as Markdown, with its plots as PNG files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mixsize.bench.report.content import Plot, Report, Table
from mixsize.display.markdown import escape, markdown_table


def render_markdown(report: Report, figures: str) -> str:
    """The report, whose plots are PNG files in the folder ``figures``, relative to the Markdown file."""
    parts = [f"# {escape(report.title)}", escape(report.subtitle)]
    for section in report.sections:
        parts.append(f"## {escape(section.title)}")
        parts += ["\n".join(f"- {escape(sentence)}" for sentence in section.sentences)] if section.sentences else []
        for table in section.tables:
            parts.append(render_table(table))
        for plot in section.plots:
            parts += _plot(plot, figures)
        for title, text in section.quotes:
            parts += [f"**{escape(title)}**", _quote(text)]
        parts += [escape(note) for note in section.notes]
    if report.left_out:
        parts += ["## Left out", "\n".join(f"- {escape(reason)}" for reason in report.left_out)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def render_table(table: Table) -> str:
    """A table below its caption."""
    return f"**{escape(table.caption)}**\n\n{_table(table)}"


def _plot(plot: Plot, figures: str) -> Sequence[str]:
    return [
        f"### {escape(plot.title)}",
        f"![{escape(plot.alt)}]({figures}/{plot.name}.png)",
        escape(plot.note),
        f"<details><summary>{escape(plot.table.caption)}</summary>",
        _table(plot.table),
        "</details>",
    ]


def _table(table: Table) -> str:
    rows = [[escape(cell.replace(";\n", "; ").replace("\n", ", ")) for cell in row] for row in table.rows]
    return markdown_table(list(map(escape, table.head)), rows)


def _quote(text: str) -> str:
    # The fence is longer than any run of backticks in the text.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}"
