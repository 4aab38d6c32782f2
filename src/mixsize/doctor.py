"""``mixsize doctor``: whether a recipe can be trained here, and what would slow it down, with a line of advice on each.

Needs the standard library alone. Whatever else is installed is imported in another process, which it may end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import mixsize
from mixsize.system.machine import (
    FolderSpeed,
    Gpu,
    core_limit,
    cores_at_hand,
    folder_speed,
    gpus_of_driver,
    shared_memory,
)
from mixsize.system.memory import bytes_at_hand
from mixsize.system.packages import PACKAGES, Package, one_line
from mixsize.system.probe import CUDA, Probe, probe

JPEG_EXTENSION = "mixsize.ffcv_loaders.decode._jpegcrop"
PYTHONS = ((3, 10), (3, 12))
#: The demo's rank peaks at 1.15 GiB on the CPU, nearly all of it PyTorch, Composer and compiled code.
MEMORY_OF_A_RANK = 5 << 28
#: What Docker gives where it is not told otherwise is 64 MiB.
SHARED_MEMORY_OF_WORKERS = 1 << 30
#: At about 110 kB an ImageNet file of at most 500 px, 1,800 images a second.
READ_SPEED = 200e6
_MARKS = {"ok": "ok", "advice": "advice", "missing": "MISSING"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of what.
        state: ``ok``; ``advice`` where it could be better; ``missing`` where nothing can be trained without it.
        value: what was found.
        unit: of the value, where it is a number with one.
        advice: one line on what to do; None where there is nothing.
    """

    name: str
    state: Literal["ok", "advice", "missing"]
    value: str | float | int
    unit: str = ""
    advice: str | None = None

    def __post_init__(self) -> None:
        assert (self.advice is None) == (self.state == "ok")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize doctor``."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(),
        metavar="PATH",
        help="measure the speed of this folder's file system, with a file of 64 MiB (default: the current folder)",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the folder; what is returned looks at everything and says it.

    Raises:
        ValueError: no folder.
    """
    if not args.folder.is_dir():
        raise ValueError(f"--folder {args.folder}: is no folder")

    def show() -> int:
        findings = list(examine(args.folder))
        trains = all(finding.state != "missing" for finding in findings)
        if args.json:
            print(json.dumps({"trains": trains, "findings": [asdict(finding) for finding in findings]}, indent=1))
        else:
            print("\n".join(report(findings)))
        return 0 if trains else 1

    return show


def examine(folder: Path) -> Iterator[Finding]:
    """Look at everything, the file system that a folder is on included."""
    probes = probe([*(package.module for package in PACKAGES), CUDA, JPEG_EXTENSION])
    yield Finding("mixsize", "ok", mixsize.__version__)
    yield python_version(sys.version_info[:2], platform.python_version())
    for package in PACKAGES:
        yield package_found(package, probes[package.module])
    yield jpeg_extension(probes[JPEG_EXTENSION])
    drivers = gpus_of_driver()
    yield gpu(drivers, probes[CUDA])
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(1, len(probes[CUDA].gpus))
    yield cores(cores_at_hand(), core_limit())
    yield threads(cores_at_hand(), ranks, os.environ)
    yield memory(bytes_at_hand(), ranks)
    yield shared(shared_memory())
    yield from folder_findings(folder, lambda: folder_speed(folder))


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """Findings as lines of text, advice below each, and a verdict."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        value = f"{finding.value:,.0f}" if isinstance(finding.value, float) else str(finding.value)
        yield f"{_MARKS[finding.state]:<7}  {finding.name:<{width}}  {value} {finding.unit}".rstrip()
        if finding.advice is not None:
            yield f"{'':<7}  {'':<{width}}  -> {finding.advice}"
    missing = [finding.name for finding in findings if finding.state == "missing"]
    yield f"recipes cannot be trained here: {', '.join(missing)}" if missing else "recipes can be trained here"


def python_version(version: tuple[int, ...], words: str) -> Finding:
    """Whether Composer takes this Python."""
    low, high = PYTHONS
    if low <= version <= high:
        return Finding("Python", "ok", words)
    wanted = " to ".join(".".join(map(str, end)) for end in PYTHONS)
    return Finding("Python", "missing", words, advice=f"Composer and FFCV need Python {wanted}")


def package_found(package: Package, found: Probe) -> Finding:
    """Whether a package is there, loads, and is of a version that mixsize takes."""
    state: Literal["advice", "missing"] = "missing" if package.needed else "advice"
    if found.missing:
        return Finding(package.title, state, "not installed", advice=package.how_to_get)
    if found.error is not None:
        return Finding(package.title, state, f"does not load: {found.error}", advice=package.how_to_mend)
    version = package.version or found.version
    if version is not None and not _is_taken(package, version):
        return Finding(package.title, "advice", version, advice=f"mixsize is made for {package.requirement}")
    return Finding(package.title, "ok", version or "of unknown version")


def _is_taken(package: Package, version: str) -> bool:
    """Whether a version is one that mixsize's own requirements name; yes where that cannot be told."""
    if package.brought_by:
        return True
    try:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.version import InvalidVersion
    except ImportError:
        return True
    try:
        return Requirement(package.requirement).specifier.contains(version, prereleases=True)
    except (InvalidRequirement, InvalidVersion):
        return True


def jpeg_extension(found: Probe) -> Finding:
    """Whether mixsize's own JPEG decoder was built."""
    name = "JPEG decoder"
    if found.loads:
        return Finding(name, "ok", "built")
    why = "not built" if found.error is None or "No module named" in found.error else f"does not load: {found.error}"
    return Finding(
        name,
        "advice",
        why,
        advice="FFCV's decoder serves, two to four times as slow: apt-get install libjpeg-dev gcc, then install mixsize"
        " again",
    )


def gpu(listed: Sequence[Gpu], seen: Probe) -> Finding:
    """Whether PyTorch sees the GPUs that the driver lists."""
    if seen.gpus:
        driver = f", driver {listed[0].driver}" if listed else ""
        count = f"{len(seen.gpus)} x " if len(seen.gpus) > 1 else ""
        size = f", {listed[0].memory_mib:,} MiB" if listed else ""
        return Finding("GPU", "ok", f"{count}{seen.gpus[0]}{size}{driver}, CUDA {seen.version}")
    if not listed:
        return Finding("GPU", "ok", "none: trains on the CPU")
    found = f"{listed[0].name}, driver {listed[0].driver}, not seen by PyTorch"
    if not seen.loads:
        advice = "PyTorch does not load, see above"
    elif seen.version is None:
        advice = "this PyTorch is built without CUDA: install one with, from https://pytorch.org/get-started/locally"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        advice = "CUDA_VISIBLE_DEVICES hides it: unset it"
    else:
        advice = f"this PyTorch is built for CUDA {seen.version}: the driver may be too old for it (nvidia-smi)"
    return Finding("GPU", "advice", found, advice=advice)


def cores(at_hand: int, limit: float | None) -> Finding:
    """Whether a container is given the time of all the cores that it sees."""
    if limit is None or limit >= at_hand:
        return Finding("cores", "ok", at_hand)
    advice = (
        f"the container is given the time of {limit:g}, and as many threads as cores would wait for one another: give"
        f" it more, or set OMP_NUM_THREADS={max(1, int(limit))} and loader.num_workers={max(1, int(limit))}"
    )
    return Finding("cores", "advice", at_hand, advice=advice)


def threads(at_hand: int, ranks: int, environment: Mapping[str, str]) -> Finding:
    """Whether the ranks' threads for PyTorch's arithmetic fit the cores."""
    name, text = "OMP_NUM_THREADS", environment.get("OMP_NUM_THREADS")
    shared_out = max(1, at_hand // ranks)
    of = f"{at_hand} cores" + (f" and {ranks} ranks" if ranks > 1 else "")
    if text is None:
        return Finding(name, "ok", f"not set: {shared_out} for {of}")
    if not text.isdecimal() or int(text) < 1:
        return Finding(name, "advice", text, advice=f"is no number of threads: unset it, or set it to {shared_out}")
    if int(text) * ranks > at_hand:
        advice = f"too many for {of}, which can slow a training down several times: unset it, or set it to {shared_out}"
        return Finding(name, "advice", int(text), advice=advice)
    if int(text) < shared_out:
        advice = f"leaves cores idle where a network trains on the CPU: unset it, or set it to {shared_out} for {of}"
        return Finding(name, "advice", int(text), advice=advice)
    return Finding(name, "ok", int(text))


def memory(at_hand: int, ranks: int) -> Finding:
    """Whether the ranks fit into what is left."""
    if at_hand == sys.maxsize:
        return Finding("memory at hand", "ok", "unknown")
    wanted = MEMORY_OF_A_RANK * ranks
    advice = None
    if at_hand < wanted:
        needs = "a rank needs" if ranks == 1 else f"{ranks} ranks need"
        advice = f"{needs} about {wanted / 2**30:g} GiB before the first batch"
    return Finding("memory at hand", "ok" if advice is None else "advice", at_hand / 2**20, "MiB", advice)


def shared(total: int | None) -> Finding:
    """Whether worker processes can hand over batches."""
    if total is None:
        return Finding("shared memory", "ok", "no /dev/shm")
    advice = None
    if total < SHARED_MEMORY_OF_WORKERS:
        advice = (
            "TorchMixSizeLoader's workers hand batches over through /dev/shm and may die for lack of room: docker run"
            " --shm-size=8g (MixSizeLoader does without)"
        )
    return Finding("shared memory", "ok" if advice is None else "advice", total / 2**20, "MiB", advice)


def folder_findings(folder: Path, measure: Callable[[], FolderSpeed]) -> Iterator[Finding]:
    """How fast a folder is, or why that could not be told."""
    where = folder.resolve()
    try:
        speed = measure()
    except OSError as error:
        advice = "runs cannot be kept here: make room, or set output.folder"
        yield Finding(f"{where}", "advice", f"cannot be written to: {one_line(error)}", advice=advice)
        return
    yield Finding(f"{where}, write", "ok", speed.write / 1e6, "MB/s")
    name = f"{where}, read"
    if speed.read >= READ_SPEED:
        yield Finding(name, "ok", speed.read / 1e6, "MB/s")
        return
    advice = (
        f"at 0.11 MB an ImageNet file about {speed.read / 0.11e6:,.0f} images a second where they are not in memory:"
        " keep .beton files on a faster disk, or read them with loader.window_mib=1024"
    )
    yield Finding(name, "advice", speed.read / 1e6, "MB/s", advice)
