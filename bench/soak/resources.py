"""What this process holds of its machine: memory, threads, file handles, shared memory, processes. Linux only."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

_SHARED = "/dev/shm/"


@dataclass(frozen=True)
class Resources:
    """What a process holds at a moment.

    Attributes:
        resident_mib: resident memory in MiB.
        shared_mib: the part of it that may be shared with other processes and is no file's (System V, ``/dev/shm``).
        threads: of the operating system.
        python_threads: those of them that Python knows.
        file_handles: open files, sockets and pipes.
        shared_files: files of ``/dev/shm`` that are open or mapped.
        processes: children.
    """

    resident_mib: float
    shared_mib: float
    threads: int
    python_threads: int
    file_handles: int
    shared_files: int
    processes: int


def held(process: Path = Path("/proc/self")) -> Resources:
    """What this process holds now that its garbage is collected."""
    gc.collect()
    status = dict(line.split(":", 1) for line in (process / "status").read_text(encoding="utf-8").splitlines())
    targets = _targets(process / "fd")
    mapped = {line.split(maxsplit=5)[-1] for line in (process / "maps").read_text(encoding="utf-8").splitlines()}
    return Resources(
        resident_mib=_mebibytes(status["VmRSS"]),
        shared_mib=_mebibytes(status["RssShmem"]),
        threads=int(status["Threads"]),
        python_threads=threading.active_count(),
        file_handles=len(targets),
        shared_files=len({name for name in (*targets, *mapped) if name.startswith(_SHARED)}),
        processes=sum(len((task / "children").read_text().split()) for task in (process / "task").iterdir()),
    )


def _mebibytes(kibibytes: str) -> float:
    return int(kibibytes.split()[0]) / 1024


def _targets(folder: Path) -> list[str]:
    found = []
    for handle in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # The one that listed the folder.
            found.append(os.readlink(folder / handle))
    return found
