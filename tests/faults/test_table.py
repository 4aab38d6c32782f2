"""The page of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_test_on_the_page_of_faults_exists():
    named = re.findall(r"`(tests/\S+)::(\S+)`", (ROOT / "docs/faults.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [(file, name) for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert missing == []
