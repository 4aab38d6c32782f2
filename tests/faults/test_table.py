"""The table of faults is that of the tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| (.+) \| (.+) \| `(.+)::(.+)` \|$", re.MULTILINE)
_ADVICE = "run: script/test -m fault --fault-table=docs/faults.md"


def test_the_table_of_faults_says_what_the_tests_say(request):
    rows = _ROW.findall((ROOT / "docs/faults.md").read_text(encoding="utf-8"))
    assert rows
    listed = {(what, outcome) for what, outcome, _, _ in rows}
    told = {mark.args for item in request.session.items if (mark := item.get_closest_marker("fault"))}
    assert told <= listed, _ADVICE
    for _, _, file, name in rows:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), _ADVICE
