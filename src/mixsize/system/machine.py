"""The processor, the cores and the GPUs that a process has. Needs the standard library alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

#: Control groups, version 2, which limit a container.
GROUPS = Path("/sys/fs/cgroup")
#: The kernel's description of the processor.
PROCESSOR = Path("/proc/cpuinfo")
#: Instructions that multiply in bfloat16: matrices and vectors on x86, both on ARM.
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")


def cores_at_hand() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(groups: Path = GROUPS) -> float | None:
    """Cores' worth of time that the container is given; None without a limit."""
    quota, _, period = read_text(groups / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() else None


def bfloat16_instructions() -> list[str]:
    """Those of ``BFLOAT16`` that the processor has; empty also where the kernel does not tell."""
    for line in read_text(PROCESSOR).splitlines():
        key, _, names = line.partition(":")
        if key.strip() in ("flags", "Features"):  # On x86 and on ARM.
            return [name for name in BFLOAT16 if name in names.split()]
    return []


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
