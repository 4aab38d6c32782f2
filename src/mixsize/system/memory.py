"""The memory that a process has. Needs the standard library alone."""

from __future__ import annotations

import sys
from pathlib import Path

from mixsize.system.machine import GROUPS, read_text


def bytes_at_hand(proc: Path = Path("/proc"), groups: Path = GROUPS) -> int:
    """Bytes of memory that are available, or the container's limit where it is lower; ``sys.maxsize`` if unknown."""
    meminfo = read_text(proc / "meminfo").splitlines()
    amounts = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")]
    for row in read_text(proc / "self/cgroup").splitlines():
        number, _, path = row.split(":", 2)
        if number == "0":  # Control groups, version 2.
            # Limits of the groups above hold too. In a container, the path may be the host's and the root its group.
            group = Path(path.lstrip("/"))
            limits = [read_text(groups / folder / "memory.max").strip() for folder in (group, *group.parents)]
            amounts += [int(limit) for limit in limits if limit.isdecimal()]
    return min(amounts, default=sys.maxsize)
