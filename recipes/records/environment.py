"""Versions, hardware and source state of a measurement."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import timm
import torch

from mixsize.recipes.records.run_record import Environment, PeakMemory

_PATIENCE_SECONDS = 20


def environment(world_size: int) -> Environment:
    """Return the versions and hardware of this process, one of ``world_size``."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        composer=_version("mosaicml"),
        timm=timm.__version__,
        ffcv=_version("ffcv"),
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        gpu=gpu,
        driver=_driver_version() if gpu else None,
        ranks=world_size,
    )


def source_version() -> tuple[str | None, bool | None]:
    """Return the commit of the package's source tree, and whether tracked files differ from it.

    Both are None for an installed package, even inside another repository.
    """
    here = Path(__file__).resolve()
    if _output("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name) is None:
        return None, None
    commit = _output("git", "-C", str(here.parent), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(here.parent), "status", "--porcelain", "--untracked-files=no", ":/")
    return commit, None if changed is None else bool(changed)


def peak_memory() -> PeakMemory:
    """Return the peak memory of this process so far."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return PeakMemory(host=_peak_resident_bytes(), gpu=gpu)


def _peak_resident_bytes() -> int:
    if sys.platform == "linux":
        # getrusage is of no use here: a process inherits the figure of its parent.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(distribution: str) -> str | None:
    """Return the installed version of a distribution that may be missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0].strip() if found else None


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    """Return the output of a command; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
