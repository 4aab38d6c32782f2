"""The cores and the GPUs that a process has. Needs the standard library alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

#: Control groups, version 2, which limit a container.
GROUPS = Path("/sys/fs/cgroup")


def cores_at_hand() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(groups: Path = GROUPS) -> float | None:
    """Cores' worth of time that the container is given; None without a limit."""
    quota, _, period = read_text(groups / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() else None


def gpus_of_driver() -> list[str]:
    """Name, driver version and memory of each GPU that NVIDIA's driver lists; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def read_text(file: Path) -> str:
    """A file of the kernel; empty where there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
