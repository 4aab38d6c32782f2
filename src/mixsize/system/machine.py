"""What a machine offers a training: cores, GPUs, memory, and a folder's speed. Needs the standard library alone."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_SECONDS = 30
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver names it."""

    name: str
    driver: str
    memory_mib: int


@dataclass(frozen=True)
class FolderSpeed:
    """How fast a folder's file system took and gave back one file, in bytes a second.

    Attributes:
        write: until the disk had it.
        read: after the page cache had let go of it.
    """

    write: float
    read: float


def cores_at_hand() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that a container is given; None where it may use all."""
    try:
        quota, period = (groups / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (groups / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (groups / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def gpus_of_driver() -> list[Gpu]:
    """The GPUs that NVIDIA's driver lists, whatever PyTorch says; none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):  # A device that does not tell its memory, or a message in its place.
            name, driver, memory = (part.strip() for part in line.rsplit(",", 2))
            gpus.append(Gpu(name, driver, int(memory)))
    return gpus


def shared_memory(folder: Path = Path("/dev/shm")) -> int | None:
    """Bytes that processes can share, free or not; None where the system has no such folder."""
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def folder_speed(folder: Path, num_bytes: int = 64 << 20) -> FolderSpeed:
    """Write a file into a folder, read it back from the disk, remove it.

    Args:
        folder: where; the file has no name there for longer than the system needs.
        num_bytes: its length.

    Raises:
        OSError: the folder cannot be written to, or has no room.
    """
    assert num_bytes > 0
    # At random, as some file systems compress, or store equal blocks once.
    data = memoryview(os.urandom(num_bytes))
    with tempfile.TemporaryFile(dir=folder, prefix=".mixsize-doctor-") as file:
        number = file.fileno()
        began = time.perf_counter()
        at = 0
        while at < num_bytes:
            at += os.write(number, data[at : at + _BLOCK])
        os.fsync(number)
        written = time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(number, 0, os.SEEK_SET)
        began = time.perf_counter()
        while os.read(number, _BLOCK):
            pass
        read = time.perf_counter() - began
    return FolderSpeed(num_bytes / max(written, math.ulp(1)), num_bytes / max(read, math.ulp(1)))
