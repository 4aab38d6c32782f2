"""Tables in Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its first column aligned left and the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def escape(text: str) -> str:
    """Text on one line that Markdown shows literally; underscores inside words need no escape."""
    text = re.sub(r"([\\`*|\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return html.escape(text, quote=False)
