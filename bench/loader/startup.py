"""Time from the start of a process to its first batch: our loader beside other libraries'.

Each measurement is a process of its own, which imports PyTorch, then the library, makes a loader and takes one batch.
Rounds visit all loaders once in random order.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mixsize.algorithms.regime.regime import Base
from mixsize.bench.loader import startup_process
from mixsize.bench.loader.cases import Setting
from mixsize.bench.loader.inputs import check_inputs, describe_inputs
from mixsize.bench.loader.loaders import LOADERS, choose_loaders, versions
from mixsize.bench.loader.startup_process import LIBRARIES, Request
from mixsize.bench.loader.summary import summary
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD
from mixsize.system.ranks import default_threads

#: Parts of a start, each from the start of the process; then from PyTorch's import on.
PARTS = ("torch", "imports", "loader", "first_batch")
LATER = ("imports", "first_batch")


def measure(names: Iterable[str], setting: Setting, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Seconds of each loader's parts: from the start of the process, and ``after_torch``."""
    work = [name for name in LOADERS if name in names]
    starts: dict[str, list[list[float]]] = {name: [] for name in work}
    with tqdm(total=(rounds + 1) * len(work), desc="starts", unit="process", file=sys.stderr) as progress:
        for number in range(rounds + 1):
            for index in np.random.default_rng(number).permutation(len(work)):
                progress.set_postfix_str(work[index])
                seconds = start(work[index], setting)
                if number:  # Round 0 fills the page cache and writes bytecode.
                    starts[work[index]].append(seconds)
                progress.update()
    return {name: _summaries(np.array(seconds)) for name, seconds in starts.items()}


def start(loader: str, setting: Setting) -> list[float]:
    """Seconds from the start of a new process to the end of each of :data:`PARTS`.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote.
    """
    request = Request(
        loader,
        str(setting.data),
        str(setting.images or ""),
        setting.base.size_px,
        setting.base.batch_size,
        setting.threads,
        IMAGENET_MEAN,
        IMAGENET_STD,
    )
    command = [sys.executable, "-m", startup_process.__name__, json.dumps(asdict(request))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the loader {loader!r} failed with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return [moment - begun for moment in json.loads(done.stdout.splitlines()[-1])]


def _summaries(seconds: np.ndarray) -> dict[str, dict[str, Any]]:
    found = {part: summary(seconds[:, index].tolist()) for index, part in enumerate(PARTS)}
    after = seconds - seconds[:, :1]
    return found | {f"{part}_after_torch": summary(after[:, PARTS.index(part)].tolist()) for part in LATER}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row for each loader, a column for each part."""
    head = ["seconds to", "PyTorch imported", "all imported", "loader made", "first batch"]
    head += ["all imported, from PyTorch on", "first batch, from PyTorch on"]
    rows = [
        [
            LOADERS[loader].label,
            *(f"{part['median']:.2f} ({part['min']:.2f}-{part['max']:.2f})" for part in parts.values()),
        ]
        for loader, parts in result["seconds"].items()
    ]
    return head, rows


def note(result: dict[str, Any]) -> str:
    """The setting, in words."""
    setting = result["setting"]
    return (
        f"Seconds from the start of a new process: median (range) of {setting['rounds']} processes of each loader, in "
        f"random order. The first batch has {setting['batch_size']} images of {setting['size_px']} px, normalised, by "
        f"{setting['threads']} threads or worker processes."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench startup``."""
    parser.add_argument("data", type=Path, metavar="DATA.beton", help="file to read, with one stored resolution")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="the same images in class folders, for the others"
    )
    parser.add_argument("--loaders", nargs="+", choices=LIBRARIES, metavar="NAME", help=f"of {', '.join(LIBRARIES)}")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of the images (default: 224)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images of the batch (default: 64)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="threads or worker processes of each")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each, after one to warm up (default: 5)")
    parser.add_argument("--out", type=Path, help="result file; by default in bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; the returned function measures."""
    for name in ("size", "batch", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    base = Base(args.size, args.batch)
    setting = Setting(args.data, None, args.images, base, args.threads, epoch_images=args.batch, pad_crop=False)
    check_inputs(setting)
    names, left_out = choose_loaders(args.loaders, setting, LIBRARIES)
    facts = describe_inputs(setting)
    if args.batch > facts["images"]:
        raise ValueError(f"--batch is {args.batch}; {args.data} has {facts['images']} images")

    def measured() -> int:
        for line in left_out:
            print(line)
        result = {
            "setting": {
                "data": facts,
                "size_px": args.size,
                "batch_size": args.batch,
                "threads": args.threads,
                "rounds": args.rounds,
                "versions": versions(),
            },
            "seconds": measure(names, setting, args.rounds),
        }
        print_table(plain_console(), *table(result), notes=[note(result)])
        keep_result(args.out, "startup", result)
        return 0

    return measured
