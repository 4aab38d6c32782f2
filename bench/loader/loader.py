"""Speed of the loader at each size, mixed and with duplicates, beside other libraries' loaders.

All loaders read the same images on the same cores with the same number of threads or worker processes, save for
torchvision with a number of workers in its name, and deliver normalised float32 batches. Each has a process of its
own. One epoch runs at a time, in rounds that visit all loaders and cases once in random order, so that a noisy machine
affects all of them. A small data set is read several times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mixsize.algorithms.regime.regime import SIZE_DISTRIBUTIONS, Base
from mixsize.bench.loader import report as loader_report
from mixsize.bench.loader.cases import Case, Setting, make_cases, mixed_sizes
from mixsize.bench.loader.inputs import check_inputs, describe_inputs
from mixsize.bench.loader.loaders import LOADERS, OURS, choose_loaders, default_pool, versions
from mixsize.bench.loader.plot import plot
from mixsize.bench.loader.process import LoaderProcess, Visit
from mixsize.bench.loader.summary import summary
from mixsize.bench.result_files import keep_result, result_path
from mixsize.display.console import plain_console, print_table
from mixsize.system.ranks import default_threads

#: Upper bound of the time of a mix relative to its share-weighted fixed sizes.
MIX_COST_TARGET = 1.02
#: Loader -> case -> an epoch, or a figure of it, for each round.
Visits = dict[str, dict[str, list[Visit]]]
Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class _Defaults:
    sizes: tuple[int, ...]
    mixes: tuple[str, ...]
    duplicates_size: int
    base: Base
    images_a_thread: int


# Enough images for whole batches of every size of the mixes, some ten of the largest for each worker process, and for
# about a second.
_PHOTOGRAPHS = _Defaults((96, 128, 160, 192, 224, 256, 288, 320), ("s144", "s208"), 128, Base(224, 16), 900)
_CIFAR = _Defaults((16, 24, 32, 40), ("s28",), 24, Base(32, 64), 50_000)
_DUPLICATES = (3, 5)


def measure(names: Iterable[str], setting: Setting, cases: Sequence[Case], rounds: int) -> dict[str, Any]:
    """Images a second and CPU time of each loader at each case, time to the first batch, cost of mixing, and memory."""
    with ExitStack() as stack:
        loaders = {name: stack.enter_context(LoaderProcess(name, setting, cases)) for name in names}
        visits = _visit_all(loaders, rounds)
        memory = _memory_of(loaders, cases)
    rates = _of_visits(visits, lambda visit: visit.images / visit.seconds)
    starts = _of_visits(visits, lambda visit: visit.first_batch_seconds)
    return {
        "rates": _summaries(rates),
        "cpu_ms": _summaries(_of_visits(visits, lambda visit: 1000 * visit.cpu_seconds / visit.images)),
        "first_batch_seconds": _summaries(starts),
        "mix_cost": {loader: mix_costs(rates[loader], cases) for loader in OURS if loader in rates},
        "mix_cost_target": MIX_COST_TARGET,
        "memory_mib": memory,
        "base_bytes": setting.base.pixels * 3,
    }


def _visit_all(loaders: Mapping[str, LoaderProcess], rounds: int) -> Visits:
    """Loader -> case -> its timed epochs, one for each round."""
    visits: Visits = {name: {case: [] for case in loader.serves} for name, loader in loaders.items()}
    work = [(name, case) for name, by_case in visits.items() for case in by_case]
    with tqdm(total=(rounds + 1) * len(work), desc="loaders", unit="epoch", file=sys.stderr) as progress:
        for number in range(rounds + 1):
            for index in np.random.default_rng(number).permutation(len(work)):
                name, case = work[index]
                progress.set_postfix_str(f"{name} {case}")
                visit = loaders[name].visit(case)
                if number:  # Round 0 compiles, starts workers and fills the page cache.
                    visits[name][case].append(visit)
                progress.update()
    return visits


def _memory_of(loaders: Mapping[str, LoaderProcess], cases: Iterable[Case]) -> dict[str, dict[str, float]]:
    """MiB that our loaders and FFCV's add in an epoch, at the largest batch that all serve and at the first mix."""
    measured = {name: loader for name, loader in loaders.items() if name in (*OURS, "ffcv")}
    plain = [case for case in cases if case.plain is not None]
    shared = [case for case in plain if all(case.name in loader.serves for loader in measured.values())]
    largest = sorted(shared or plain, key=lambda case: -case.regime.choices[0].batch_size)[:1]
    mixes = [case for case in cases if case.fixed is None][:1]
    return {
        name: {case.name: loader.memory(case.name) for case in (*largest, *mixes) if case.name in loader.serves}
        for name, loader in measured.items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench loader``."""
    parser.add_argument("data", type=Path, metavar="DATA.beton", help="file to read, with one stored resolution")
    parser.add_argument(
        "--levels-file", type=Path, metavar="FILE.beton", help="the same images with several stored resolutions"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="the same images in class folders, for the loaders that read files",
    )
    parser.add_argument(
        "--loaders",
        nargs="+",
        choices=LOADERS,
        metavar="NAME",
        help=f"loaders to time: {', '.join(LOADERS)} (default: all that are installed and whose input is given)",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="*", metavar="PX", help=f"sizes to time (default: {_words(_PHOTOGRAPHS.sizes)})"
    )
    parser.add_argument(
        "--mixes",
        nargs="*",
        choices=sorted(SIZE_DISTRIBUTIONS),
        help=f"mixes to time (default: {_words(_PHOTOGRAPHS.mixes)})",
    )
    parser.add_argument(
        "--duplicates",
        type=int,
        nargs="*",
        metavar="D",
        default=_DUPLICATES,
        help=f"views of each image to time, beside the one of --sizes (default: {_words(_DUPLICATES)})",
    )
    parser.add_argument(
        "--duplicates-size", type=int, metavar="PX", help=f"at this size (default: {_PHOTOGRAPHS.duplicates_size})"
    )
    parser.add_argument(
        "--base-size",
        type=int,
        metavar="PX",
        help=f"side that the budget comes from (default: {_PHOTOGRAPHS.base.size_px})",
    )
    parser.add_argument(
        "--base-batch",
        type=int,
        metavar="N",
        help=f"batch that the budget comes from (default: {_PHOTOGRAPHS.base.batch_size})",
    )
    parser.add_argument(
        "--pad-crop",
        action="store_true",
        help=f"CIFAR's pad-and-crop, with defaults to match (sizes {_words(_CIFAR.sizes)}, mix {_words(_CIFAR.mixes)}, "
        f"base {_CIFAR.base.batch_size} x {_CIFAR.base.size_px} px, {_CIFAR.images_a_thread} images a thread); "
        "FFCV then serves the stored size only",
    )
    parser.add_argument("--threads", type=int, default=default_threads(), help="threads or worker processes of each")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that warms up (default: 5)")
    parser.add_argument(
        "--epoch-images",
        type=int,
        metavar="N",
        help=f"distinct images in an epoch (default: {_PHOTOGRAPHS.images_a_thread} a thread)",
    )
    parser.add_argument(
        "--out", type=Path, help="result file, its plot beside it; by default in bench/results/ with hardware and date"
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; the returned function measures."""
    defaults = _CIFAR if args.pad_crop else _PHOTOGRAPHS
    setting = Setting(
        args.data,
        args.levels_file,
        args.images,
        Base(_given(args.base_size, defaults.base.size_px), _given(args.base_batch, defaults.base.batch_size)),
        args.threads,
        _given(args.epoch_images, defaults.images_a_thread * args.threads),
        args.pad_crop,
    )
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds}; it must be at least 1")
    check_inputs(setting)
    cases = make_cases(
        _given(args.sizes, defaults.sizes),
        _given(args.mixes, defaults.mixes),
        args.duplicates,
        _given(args.duplicates_size, defaults.duplicates_size),
        setting,
    )
    names, left_out = choose_loaders(args.loaders, setting, LOADERS if args.loaders else default_pool(setting.threads))
    facts = describe_inputs(setting)

    def measured() -> int:
        for line in left_out:
            print(line)
        result = {
            "setting": {
                "data": facts,
                "images": setting.images is not None,
                "base": [setting.base.size_px, setting.base.batch_size],
                "threads": setting.threads,
                "rounds": args.rounds,
                "epoch_images": setting.epoch_images,
                "pad_crop": setting.pad_crop,
                "versions": versions(),
            },
            "cases": [_described(case) for case in cases],
            **measure(names, setting, cases, args.rounds),
        }
        console = plain_console()
        for head, rows in loader_report.tables(result):
            print_table(console, head, rows)
        print("\n".join(loader_report.notes(result)))
        mixes = [case.name for case in cases if case.fixed is None]
        out = keep_result(args.out or result_path("-".join(["loader", *mixes])), "loader", result)
        plot(result, out.with_suffix(".png"))
        print(f"plot: {out.with_suffix('.png')}")
        return 0

    return measured


def mix_costs(rates: dict[str, list[float]], cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Time of each mix relative to its share-weighted fixed sizes, over the rounds."""
    costs = {}
    for case in cases:
        shares = mixed_sizes(case, cases)
        if case.fixed is None and shares is not None:
            costs[case.name] = summary(
                [
                    1 / mixed / sum(share / rates[size][number] for size, share in shares.items())
                    for number, mixed in enumerate(rates[case.name])
                ]
            )
    return costs


def _described(case: Case) -> dict[str, Any]:
    choices = case.regime.choices
    return {
        "name": case.name,
        "sizes_px": [choice.size_px for choice in choices],
        "batch_sizes": [choice.batch_size for choice in choices],
        "duplicates": [choice.duplicates for choice in choices],
        "sample_shares": list(case.regime.sample_shares),
    }


def _of_visits(visits: Visits, value: Callable[[Visit], float]) -> Figures:
    return {
        loader: {name: [value(visit) for visit in timed] for name, timed in by_case.items()}
        for loader, by_case in visits.items()
    }


def _summaries(figures: Figures) -> dict[str, dict[str, dict[str, Any]]]:
    return {loader: {name: summary(values) for name, values in by_case.items()} for loader, by_case in figures.items()}


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _words(values: Iterable[Any]) -> str:
    return " ".join(map(str, values))
