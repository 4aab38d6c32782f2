"""Tables in Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned left and whose others are aligned right, one line a row."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line; underscores inside words mean nothing to it."""
    text = re.sub(r"([\\`*|\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return html.escape(text, quote=False)
