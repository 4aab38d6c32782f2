"""``mixsize doctor``: whether mixsize runs and recipes train here, and what would slow it down.

Starts with the standard library alone; the packages are imported one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import mixsize
from mixsize.system.machine import bfloat16_instructions, core_limit, cores_at_hand, gpus_of_driver
from mixsize.system.memory import bytes_at_hand
from mixsize.system.packages import EXTENSION, PACKAGES, Package, one_line
from mixsize.system.tested import TESTED, is_tested, newer, newest, short

OLDEST_PYTHON = (3, 10)
#: The demo's peak on the CPU is 1.15 GiB, nearly all of it PyTorch and Composer.
RANK_BYTES = 5 << 28
#: An ImageNet file of at most 500 px.
IMAGE_BYTES = 110_000
#: 1,800 such images a second.
READ_SPEED = 200e6


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: the package or the part of the machine.
        value: its version, amount or error.
        advice: how to mend or speed it up; empty where it is fine.
        blocks: what cannot run before it is mended: ``mixsize`` at all, or ``recipes``; empty where all can.
    """

    name: str
    value: str | int
    advice: str = ""
    blocks: Literal["mixsize", "recipes", ""] = ""

    @property
    def state(self) -> str:
        """``ok``, ``advice``, or ``missing`` for what blocks."""
        return "missing" if self.blocks else "advice" if self.advice else "ok"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize doctor``."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(),
        metavar="PATH",
        help="measure the speed of this folder's file system with a file of 64 MiB (default: the current folder)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the arguments; the function returned examines the machine, prints the findings and returns the exit code.

    Raises:
        ValueError: ``--folder`` is not a folder.
    """
    if not args.folder.is_dir():
        raise ValueError(f"--folder {args.folder}: not a folder")

    def show() -> int:
        findings = list(examine(args.folder))
        runs = not any(finding.blocks == "mixsize" for finding in findings)
        trains = not any(finding.blocks for finding in findings)
        if args.json:
            rows = [{**asdict(finding), "state": finding.state} for finding in findings]
            print(json.dumps({"runs": runs, "trains": trains, "findings": rows}, indent=1))
        else:
            print("\n".join(report(findings)))
        return 0 if runs else 1

    return show


def examine(folder: Path) -> Iterator[Finding]:
    """Look at Python, the packages, the machine and the file system of a folder."""
    yield Finding("mixsize", mixsize.__version__)
    yield python_version(sys.version_info[:2])
    for package in (*PACKAGES, EXTENSION):
        yield package_found(package)
    yield combination(installed())
    seen = gpus_of_pytorch()
    yield gpu(gpus_of_driver(), seen)
    yield Finding("bfloat16", ", ".join(bfloat16_instructions()) or "not by the CPU: precision amp_bf16 needs a GPU")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(1, seen)
    yield threads(cores_at_hand(), core_limit(), ranks)
    yield memory(bytes_at_hand(), ranks)
    yield from folder_speed(folder)


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each finding, its advice below it, and the verdict."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "MISSING" if finding.blocks else finding.state
        yield f"{mark:<7}  {finding.name:<{width}}  {finding.value}"
        if finding.advice:
            yield f"{'':<7}  {'':<{width}}  -> {finding.advice}"
    needed = [finding.name for finding in findings if finding.blocks == "mixsize"]
    missing = [finding.name for finding in findings if finding.blocks]
    if needed:
        yield f"mixsize cannot run here: {', '.join(needed)}"
    elif missing:
        yield f"plans, data, loaders, evaluation and your own loops run here; recipes need {', '.join(missing)}"
    else:
        yield "recipes can be trained here"


def python_version(version: tuple[int, ...]) -> Finding:
    """Whether mixsize runs on this version of Python."""
    if version >= OLDEST_PYTHON:
        return Finding("Python", platform.python_version())
    oldest, found = (".".join(map(str, numbers)) for numbers in (OLDEST_PYTHON, version))
    return Finding("Python", found, f"mixsize needs Python {oldest} or newer", "mixsize")


def installed() -> dict[str, str]:
    """The versions that tell tested combinations apart: Python's, and those of the packages that are installed."""
    versions = {package.distribution: package.version for package in PACKAGES}
    return {"python": platform.python_version()} | {name: found for name, found in versions.items() if found}


def combination(versions: dict[str, str]) -> Finding:
    """Whether the tests have passed with Python, PyTorch and Composer in these versions."""
    titles = {"python": "Python", "torch": "PyTorch", "mosaicml": "Composer"}

    def words(row: dict[str, str]) -> str:
        return ", ".join(f"{title} {short(row[name])}" for name, title in titles.items() if name in row)

    if is_tested(versions):
        return Finding("combination", f"{words(versions)}: tested")
    return Finding("combination", f"{words(versions)}: not tested", f"tested are {'; '.join(map(words, TESTED))}")


def package_found(package: Package) -> Finding:
    """Whether a package is installed, loads, and has a version that mixsize takes."""
    try:
        # Packages print and warn while they load.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package.module)
    except (Exception, SystemExit) as error:  # A broken installation may raise anything.
        if isinstance(error, ModuleNotFoundError) and error.name == package.module:
            return Finding(package.title, "not installed", package.install(), package.needed_for)
        words = f"does not load: {type(error).__name__}: {one_line(error)}"
        return Finding(package.title, words, package.install(again=True), package.needed_for)
    version = package.version
    if version is not None and not _is_taken(package, version):
        return Finding(package.title, version, f"mixsize is made for {package.requirement}")
    tested = newest(package.distribution)
    if version is not None and tested is not None and newer(version, tested):
        return Finding(package.title, version, f"newer than {tested}, the newest that was tested")
    return Finding(package.title, version or "unknown version")


def _is_taken(package: Package, version: str) -> bool:
    """Whether mixsize's requirements allow a version."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(package.requirement).specifier.contains(version, prereleases=True)


def gpus_of_pytorch() -> int:
    """The GPUs that PyTorch sees; 0 where it did not load."""
    torch = sys.modules.get("torch")
    return torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0


def gpu(listed: Sequence[str], seen: int) -> Finding:
    """Whether PyTorch sees the GPUs that the driver lists."""
    value = "; ".join(listed) or "none: trains on the CPU"
    torch = sys.modules.get("torch")
    if torch is None or not (listed or seen):
        return Finding("GPU", value)
    if seen:
        return Finding("GPU", f"{value}; PyTorch sees {seen}, CUDA {torch.version.cuda}")
    if torch.version.cuda is None:
        advice = "this PyTorch is built without CUDA: get another from https://pytorch.org/get-started/locally"
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        advice = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides it: unset it"
    else:
        advice = f"this PyTorch is built for CUDA {torch.version.cuda}: update the driver"
    return Finding("GPU", f"{value}; PyTorch sees none", advice)


def threads(cores: int, limit: float | None, ranks: int) -> Finding:
    """Whether OMP_NUM_THREADS, PyTorch's number of threads, suits the cores and the ranks that share them.

    Without it, each rank takes its share of the cores, whatever the container's ``limit``.
    """
    limited = limit is not None and limit < cores
    best = max(1, int(limit if limited and limit else cores) // ranks)
    text = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // ranks))
    problem = ""
    if not text.isdecimal() or int(text) < 1:
        problem = f"OMP_NUM_THREADS={text} is not a number of threads"
    elif int(text) > best:
        problem = f"{text} threads in each rank slow each other down"
    elif int(text) < best:
        problem = f"OMP_NUM_THREADS={text} leaves cores idle when a network trains on the CPU"
    value = str(cores) + (f", limited to the time of {limit:g}" if limited else "")
    return Finding("cores", value, problem and f"{problem}: set OMP_NUM_THREADS={best}")


def memory(available: int, ranks: int) -> Finding:
    """Whether the ranks fit into the available memory."""
    if available == sys.maxsize:
        return Finding("memory", "unknown")
    needed = RANK_BYTES * ranks
    advice = f"training needs about {needed / 2**30:g} GiB before the first batch" if available < needed else ""
    return Finding("memory", f"{available / 2**30:.1f} GiB available", advice)


def folder_speed(folder: Path, num_bytes: int = 64 << 20) -> Iterator[Finding]:
    """Write a file into a folder, read it back from the disk and remove it."""
    name = str(folder.resolve())
    try:
        write, read = _write_and_read(folder, num_bytes)
    except OSError as error:
        advice = "runs cannot be saved here: make room, or set output.folder"
        yield Finding(name, f"cannot be written to: {one_line(error)}", advice)
        return
    yield Finding(f"{name}, write", f"{write / 1e6:,.0f} MB/s")
    yield read_speed(f"{name}, read", read)


def read_speed(name: str, speed: float) -> Finding:
    """Whether a file system that reads ``speed`` bytes a second feeds a training."""
    advice = ""
    if speed < READ_SPEED:
        advice = (
            f"about {speed / IMAGE_BYTES:,.0f} ImageNet images a second until they are in memory: keep .beton files on"
            " a faster disk, or set loader.window_mib=1024"
        )
    return Finding(name, f"{speed / 1e6:,.0f} MB/s", advice)


def _write_and_read(folder: Path, num_bytes: int) -> tuple[float, float]:
    """Bytes a second, written until the disk has them and read after the page cache has dropped them."""
    data = os.urandom(num_bytes)  # Some file systems compress.
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began_reading = time.perf_counter()
        while file.read(1 << 20):
            pass
        ended = time.perf_counter()
    return num_bytes / (written - began), num_bytes / (ended - began_reading)
