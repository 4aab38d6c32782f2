"""How much of a file the machine, or the container around this process, can hold."""

from __future__ import annotations

import sys
from pathlib import Path


def bytes_at_hand(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the page cache may take: those that the machine has available, or a control group's limit if lower.

    Where neither can be told, more than any file has.
    """
    return min([_available(proc), *_limits(proc, groups)])


def _available(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), sys.maxsize)


def _limits(proc: Path, groups: Path) -> list[int]:
    """Of the control groups that this process is in, and of those around them."""
    try:
        rows = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    limits = []
    for row in rows:
        _, controllers, path = row.split(":", 2)
        if controllers == "":
            root, file = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, file = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, and the container's own group stands at the root.
        for folder in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            limits += _limit(root / folder / file)
    return limits


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return []
    return [int(text)] if text.isdecimal() else []
