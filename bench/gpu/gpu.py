"""What the method costs and gives on a GPU, part by part; README.md in this folder says what each figure means."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mixsize.bench.gpu import algorithms, cifar, engines, loading, shapes
from mixsize.bench.gpu.case import Case, Setup
from mixsize.bench.gpu.step import CLASSES
from mixsize.bench.gpu.tables import head_and_rows, rows_of
from mixsize.bench.result_files import result_path, write_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.records.environment import environment
from mixsize.system.ranks import default_threads

#: Part -> its cases. The order is the order of measuring: the most important parts come first.
PARTS: dict[str, Callable[[Setup], list[Case]]] = {
    "shape_price": shapes.price_cases,
    "budget": shapes.budget_cases,
    "algorithms": algorithms.cases,
    "epoch": loading.epoch_cases,
    "calibration": loading.calibration_cases,
    "kernel_gaps": engines.gap_cases,
    "equivalence": engines.loss_cases,
    "cifar10": cifar.cases,
}
_READ_IMAGES = {"epoch", "calibration"}

#: Part -> case -> its ``seconds`` and ``rows``.
Parts = dict[str, dict[str, dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench gpu``."""
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to try the bench itself")
    parser.add_argument(
        "--minutes", type=float, default=9.0, metavar="M", help="skip what no longer fits into this time (default: 9)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="CIFAR-10's train.beton and test.beton (default: data/cifar10)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FILE.beton",
        help="photographs; a small file is read several times over (default: data/imagenet-sample.beton)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/gpu"), help="where the CIFAR-10 runs are kept (default: runs/gpu)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="result file; cases in it are not measured again (default: bench/results/ with hardware and date; of a "
        "dry run: none)",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check options, files and earlier figures; the returned function measures."""
    names = [name for name in PARTS if name in args.parts or not args.parts]
    for name in args.parts:
        if name not in PARTS:
            raise ValueError(f"no part {name!r}; the parts are {', '.join(PARTS)}")
    if not args.minutes > 0:
        raise ValueError(f"--minutes is {args.minutes:g}; it must be above 0")
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; --dry-run tries the bench on the CPU, with tiny shapes")
    setup = _setup(args)
    _check_files(names, setup)
    out = args.out or (None if args.dry_run else result_path("gpu"))
    parts = _measured_before(out, args.dry_run) if out is not None else {}
    cases = [case for name in names for case in PARTS[name](setup)]

    def keep() -> None:
        if out is not None:
            write_result(out, "gpu", {"dry_run": args.dry_run, "parts": parts})

    def measured() -> int:
        console = plain_console()
        failed = measure(cases, parts, 60 * args.minutes, keep, console)
        for name in names:
            if name in parts:
                print_table(console, *head_and_rows(rows_of(parts[name])), title=name)
        if left := _missing(cases, parts):
            words = ", ".join(f"{case.part} ({case.name})" for case in left)
            console.print(f"not measured: {words}; the same command goes on", highlight=False, soft_wrap=True)
        if out is not None:
            console.print(f"result: {out}", soft_wrap=True)
        return 1 if failed else 0

    return measured


def measure(
    cases: Sequence[Case], parts: Parts, seconds: float, keep: Callable[[], None], console: Console
) -> list[Case]:
    """Measure the cases that have no figures yet; skip those that no longer fit into the time.

    The first one begins in any case, so that every start gets on. A case that fails does not stop the others.

    Args:
        cases: in the order of measuring.
        parts: figures so far; new ones are added.
        seconds: time for all of them.
        keep: called after each case, to save ``parts``.
        console: takes a line for each case.

    Returns:
        The cases that failed.
    """
    began = time.monotonic()
    failed = []
    for number, case in enumerate(_missing(cases, parts)):
        expected = max([case.seconds, *(known["seconds"] for known in parts.get(case.part, {}).values())])
        if number and seconds - (time.monotonic() - began) < expected:
            continue
        console.print(f"{case.part}: {case.name}", highlight=False)
        case_began = time.monotonic()
        try:
            rows = case.measure()
        except Exception as error:  # A failure must not cost the other cases their time on the machine.
            console.print(f"failed: {type(error).__name__}: {error}", highlight=False, soft_wrap=True)
            failed.append(case)
        else:
            taken = time.monotonic() - case_began
            parts.setdefault(case.part, {})[case.name] = {"seconds": taken, "rows": rows}
            keep()
        finally:
            _free()
    return failed


def _missing(cases: Sequence[Case], parts: Parts) -> list[Case]:
    return [case for case in cases if case.name not in parts.get(case.part, {})]


def _setup(args: argparse.Namespace) -> Setup:
    folder = args.folder / "dry-run" if args.dry_run else args.folder
    cifar_folder, images = Path("data/cifar10"), Path("data/imagenet-sample.beton")
    if args.dry_run:
        # Digits stand in for both.
        cifar_folder, images = folder / "digits", folder / "digits/train.beton"
        if not images.is_file():
            convert_splits("digits", cifar_folder, store="jpg", workers=1, progress=False, overwrite=True)
    return Setup(
        device=torch.device("cpu") if args.dry_run else torch.device("cuda", torch.cuda.current_device()),
        dry_run=args.dry_run,
        folder=folder,
        cifar=args.data or cifar_folder,
        images=args.images or images,
        threads=default_threads(),
    )


def _check_files(names: Sequence[str], setup: Setup) -> None:
    if _READ_IMAGES.intersection(names):
        if not setup.images.is_file():
            raise ValueError(
                f"--images: no file {setup.images}; write it with mixsize convert path/to/images {setup.images}"
            )
        with Beton.open(setup.images) as beton:
            beton.check_labels(CLASSES)
            if not beton.is_jpeg.all():
                raise ValueError(f"--images: {setup.images} holds raw pixels; decoding is timed from JPEGs")
    missing = [file for name in ("train", "test") if not (file := setup.cifar / f"{name}.beton").is_file()]
    if "cifar10" in names and missing:
        raise ValueError(
            f"--data: no file {missing[0]}; write it with mixsize convert cifar10 {setup.cifar} --root path/to/cifar "
            "--download"
        )


def _measured_before(out: Path, dry_run: bool) -> Parts:
    """The parts in a result file.

    Raises:
        ValueError: another kind of file, or figures of another machine or of other versions.
    """
    if not out.exists():
        return {}
    found = json.loads(out.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("suite") != "gpu":
        raise ValueError(f"{out}: not a result of mixsize bench gpu; give another --out")
    before = {"dry_run": found["dry_run"], **found["environment"]}
    now = {"dry_run": dry_run, **environment(1).model_dump(mode="json")}
    differing = [f"{key} {before.get(key)} (here {now[key]})" for key in now if before.get(key) != now[key]]
    if differing:
        raise ValueError(f"{out}: measured under other conditions: {', '.join(differing)}; give another --out")
    return found["parts"]


def _free() -> None:
    """Give back a case's networks, compiled code, graphs and memory of the device."""
    if torch.cuda.is_available():
        if "torch._dynamo" in sys.modules:
            # Its limit on compilations counts those of all networks of a class.
            torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
