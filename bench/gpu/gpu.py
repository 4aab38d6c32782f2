"""The cost of the method on a GPU, part by part; README.md in this folder explains each figure."""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mixsize.bench.gpu import algorithms, engines, loading, shapes
from mixsize.bench.gpu.case import Cases, Setup
from mixsize.bench.gpu.step import CLASSES
from mixsize.bench.gpu.tables import head_and_rows, rows_of
from mixsize.bench.result_files import result_path, write_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.records.environment import environment

#: Part -> its cases. The order is the order of measuring: the most important parts come first.
PARTS: dict[str, Callable[[Setup], Cases]] = {
    "shape_price": shapes.price_cases,
    "budget": shapes.budget_cases,
    "algorithms": algorithms.cases,
    "epoch": loading.epoch_cases,
    "calibration": loading.calibration_cases,
    "kernel_gaps": engines.cases,
}
_READ_IMAGES = {"epoch", "calibration"}
#: Stand in for photographs in a dry run.
_DIGITS = Path("runs/gpu/digits")

#: Part -> case -> its ``seconds`` and ``rows``.
Parts = dict[str, dict[str, dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench gpu``."""
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, to try the bench itself")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FILE.beton",
        help="photographs; a small file is read several times over (default: data/imagenet-sample.beton)",
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
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; --dry-run tries the bench on the CPU, with tiny shapes")
    device = torch.device("cpu") if args.dry_run else torch.device("cuda", torch.cuda.current_device())
    setup = Setup(device, args.dry_run, args.images or _default_images(args.dry_run))
    if _READ_IMAGES.intersection(names):
        _check_images(setup.images)
    out = args.out or (None if args.dry_run else result_path("gpu"))
    parts = _measured_before(out, args.dry_run) if out is not None else {}

    def keep() -> None:
        if out is not None:
            write_result(out, "gpu", {"dry_run": args.dry_run, "parts": parts})

    def measured() -> int:
        console = plain_console()
        failures = measure({name: PARTS[name](setup) for name in names}, parts, keep, console)
        for name in names:
            if name in parts:
                print_table(console, *head_and_rows(rows_of(parts[name])), title=name)
        if out is not None:
            console.print(f"result: {out}", soft_wrap=True)
        return 1 if failures else 0

    return measured


def measure(cases: Mapping[str, Cases], parts: Parts, keep: Callable[[], None], console: Console) -> int:
    """Measure the cases that have no figures yet. A case that fails does not stop the others.

    Args:
        cases: of each part, in the order of measuring.
        parts: figures so far; new ones are added.
        keep: called after each case, to save ``parts``.
        console: takes a line for each case.

    Returns:
        The number of cases that failed.
    """
    failures = 0
    missing = [(part, name) for part, of_part in cases.items() for name in of_part if name not in parts.get(part, {})]
    for part, name in missing:
        console.print(f"{part}: {name}", highlight=False)
        began = time.monotonic()
        try:
            rows = cases[part][name]()
        except Exception as error:  # A failure must not cost the other cases their time on the machine.
            console.print(f"failed: {type(error).__name__}: {error}", highlight=False, soft_wrap=True)
            failures += 1
        else:
            parts.setdefault(part, {})[name] = {"seconds": time.monotonic() - began, "rows": rows}
            keep()
        # Networks, compiled code and graphs; the limit on compilations counts those of all networks of a class.
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()
    return failures


def _default_images(dry_run: bool) -> Path:
    if not dry_run:
        return Path("data/imagenet-sample.beton")
    if not (_DIGITS / "train.beton").is_file():
        convert_splits("digits", _DIGITS, store="jpg", workers=1, progress=False, overwrite=True)
    return _DIGITS / "train.beton"


def _check_images(images: Path) -> None:
    if not images.is_file():
        raise ValueError(f"--images: no file {images}; write it with mixsize convert path/to/images {images}")
    with Beton.open(images) as beton:
        beton.check_labels(CLASSES)
        if not beton.is_jpeg.all():
            raise ValueError(f"--images: {images} holds raw pixels; decoding is timed from JPEGs")


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
