"""The terminal, on which names from recipes, files and records stand as they are."""

from __future__ import annotations

from rich.console import Console


def plain_console() -> Console:
    """A console to which square brackets and colons in a text mean nothing."""
    return Console(markup=False, emoji=False)
