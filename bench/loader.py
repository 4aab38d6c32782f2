"""Speed of the loader at each size and mixed, beside FFCV's stock loader, in one run.

Everything is measured on the same file, threads and batches, in rounds that visit every
configuration in turn, so that a noisy machine is noisy for all of them alike. Both loaders deliver normalised
float32 batches. A small file is read several times over, so that the largest batch fills.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from mixsize.algorithms.regime import SIZE_DISTRIBUTIONS, Base, Choice, Regime
from mixsize.bench.records import result_path, write_result
from mixsize.ffcv_loaders.augment import Augment, PadCrop, RandomResizedCrop
from mixsize.ffcv_loaders.beton import Beton
from mixsize.ffcv_loaders.plan import EpochPlan, plan_epoch
from mixsize.ffcv_loaders.ranks import default_threads
from mixsize.ffcv_loaders.staging import IMAGENET_MEAN, IMAGENET_STD, Stager
from mixsize.ffcv_loaders.stream import stream_batches

#: Mixing sizes may cost this much against the share-weighted fixed sizes.
MIX_COST_TARGET = 1.05
_SEED = 0
_PREFETCH = 2


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    data: Path
    sizes: str
    base: Base
    threads: int
    rounds: int
    epoch_images: int
    pad_crop: bool

    @property
    def regime(self) -> Regime:
        """The mix, with B+ batches."""
        return Regime.from_sizes(self.sizes, self.base, "B+")

    @property
    def augment(self) -> Augment:
        """How views are cut."""
        return PadCrop() if self.pad_crop else RandomResizedCrop()


class Ours:
    """An epoch of our loader under a regime."""

    def __init__(self, setting: Setting, regime: Regime) -> None:
        self._setting = setting
        self._regime = regime
        self._beton = Beton.open(setting.data)
        self._stager = Stager(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"))
        self._epoch = 0

    def epoch(self) -> Iterator[torch.Tensor]:
        """Serve one epoch's batches."""
        self._epoch += 1
        plan = _tiled(plan_epoch(self._regime, self._setting.epoch_images, _SEED, self._epoch), self._beton.num_samples)
        batches = stream_batches(
            self._beton,
            plan,
            self._setting.augment,
            self._stager,
            seed=_SEED,
            threads=self._setting.threads,
            prefetch=_PREFETCH,
        )
        for _, images, _ in batches:
            yield images


class StockFFCV:
    """An epoch of FFCV's own loader at one size, in its documented CPU pipeline."""

    def __init__(self, setting: Setting, choice: Choice) -> None:
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

        mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
        if setting.pad_crop:
            head = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=4, fill=(0, 0, 0))]
        else:
            head = [RandomResizedCropRGBImageDecoder((choice.size_px, choice.size_px)), RandomHorizontalFlip()]
        beton = Beton.open(setting.data)
        self._loader = Loader(
            str(setting.data),
            batch_size=choice.batch_size,
            num_workers=setting.threads,
            order=OrderOption.RANDOM,
            indices=np.arange(setting.epoch_images) % beton.num_samples,
            drop_last=True,
            batches_ahead=_PREFETCH,
            os_cache=True,
            pipelines={
                "image": [*head, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()],
                "label": [IntDecoder(), ToTensor()],
            },
        )

    def epoch(self) -> Iterator[torch.Tensor]:
        """Serve one epoch's batches."""
        for images, _ in self._loader:
            yield images


def measure(setting: Setting) -> dict[str, Any]:
    """Images a second of every configuration, and what mixing costs."""
    regime = setting.regime
    ours = {choice.size_px: Ours(setting, _alone(choice, setting.base)) for choice in regime.choices}
    stock = {choice.size_px: StockFFCV(setting, choice) for choice in regime.choices if _stock_can(setting, choice)}
    mixed = Ours(setting, regime)
    contestants: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        **{f"ours {size}": run.epoch for size, run in ours.items()},
        **{f"ffcv {size}": run.epoch for size, run in stock.items()},
        "ours mixed": mixed.epoch,
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    with tqdm(total=(setting.rounds + 1) * len(names), desc="loader", unit="epoch", file=sys.stderr) as progress:
        for round_number in range(setting.rounds + 1):
            # Each round starts elsewhere, so that no configuration always follows the same one.
            for name in np.roll(names, round_number):
                rate = _rate(contestants[name])
                if round_number:  # The first round compiles and fills the page cache.
                    rates[name].append(rate)
                progress.update()
    weights = dict(zip((choice.size_px for choice in regime.choices), regime.sample_shares, strict=True))
    costs = [
        sum(share / rates[f"ours {size}"][i] for size, share in weights.items()) ** -1 / rates["ours mixed"][i]
        for i in range(setting.rounds)
    ]
    return {
        "rates": {name: _summary(values) for name, values in rates.items()},
        "mix_cost": _summary(costs),
        "mix_cost_target": MIX_COST_TARGET,
        "memory": measure_memory(setting),
        "budget_bytes": regime.max_step_pixels * 3,
    }


def measure_memory(setting: Setting) -> dict[str, float]:
    """Growth of peak resident memory over one epoch, in MiB, each loader in a process of its own."""
    largest = max(setting.regime.choices, key=lambda choice: choice.batch_size)
    cases = {"ours mixed": "mixed", f"ours {largest.size_px}": f"ours:{largest.size_px}"}
    if _stock_can(setting, largest):
        cases[f"ffcv {largest.size_px}"] = f"ffcv:{largest.size_px}"
    grown = {}
    for name, case in cases.items():
        command = [sys.executable, "-m", "mixsize.bench.loader", case, json.dumps(_plain(setting))]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        grown[name] = float(out.split()[-1])
    return grown


def print_table(result: dict[str, Any], console: Console) -> None:
    """Images a second by size, ours and FFCV's, and the cost of mixing."""
    rates = result["rates"]
    table = Table(title=f"images/s, {result['setting']['threads']} threads, median of {result['setting']['rounds']}")
    for column in ("size px", "batch", "ours", "(spread)", "FFCV", "(spread)", "ours / FFCV"):
        table.add_column(column, justify="right")
    for row in result["choices"]:
        mine, stock = rates[f"ours {row['size_px']}"], rates.get(f"ffcv {row['size_px']}")
        table.add_row(
            str(row["size_px"]),
            str(row["batch_size"]),
            *_cells(mine),
            *(_cells(stock) if stock else ("-", "-")),
            f"{mine['median'] / stock['median']:.2f}x" if stock else "-",
        )
    table.add_row("mixed", "", *_cells(rates["ours mixed"]), "-", "-", "-")
    console.print(table)
    cost = result["mix_cost"]
    console.print(
        f"mixing sizes takes {cost['median']:.3f}x the time of the share-weighted fixed sizes "
        f"(spread {cost['min']:.3f} to {cost['max']:.3f}, target at most {result['mix_cost_target']})",
        highlight=False,
    )
    console.print(f"bytes of the budget's batch: {result['budget_bytes'] / 2**20:.1f} MiB", highlight=False)
    for name, grown in result["memory"].items():
        console.print(f"peak memory over one epoch, {name}: +{grown:.1f} MiB", highlight=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench loader``."""
    parser.add_argument("data", type=Path, metavar="DATA.beton", help="file to read, of any size")
    parser.add_argument("--sizes", default="s144", choices=sorted(SIZE_DISTRIBUTIONS), help="what is mixed")
    parser.add_argument("--base-size", type=int, default=224, metavar="PX", help="side that the budget comes from")
    parser.add_argument("--base-batch", type=int, default=32, metavar="N", help="batch that the budget comes from")
    parser.add_argument("--threads", type=int, default=default_threads(), help="decoding threads")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after one that warms up")
    parser.add_argument("--epoch-images", type=int, default=2_000, metavar="N", help="images in a measured epoch")
    parser.add_argument(
        "--pad-crop", action="store_true", help="CIFAR's pad-and-crop; FFCV then serves the stored size only"
    )
    parser.add_argument("--out", type=Path, help="result file; by default bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; what is returned measures."""
    setting = Setting(
        args.data,
        args.sizes,
        Base(args.base_size, args.base_batch),
        args.threads,
        args.rounds,
        args.epoch_images,
        args.pad_crop,
    )
    setting.regime.step_counts(setting.epoch_images)
    Beton.open(setting.data).close()
    if setting.rounds < 1:
        raise ValueError(f"--rounds is {setting.rounds}; it must be at least 1")

    def measured() -> int:
        result = measure(setting)
        choices = [{"size_px": c.size_px, "batch_size": c.batch_size, "share": c.share} for c in setting.regime.choices]
        with Beton.open(setting.data) as beton:
            data = {
                "file": setting.data.name,
                "images": beton.num_samples,
                "mean_height": float(beton.heights.mean()),
                "mean_width": float(beton.widths.mean()),
                "jpeg": float(beton.is_jpeg.mean()),
            }
        result = {"setting": {**_plain(setting), "data": data}, "choices": choices, **result}
        print_table(result, Console())
        out = args.out or result_path(f"loader-{setting.sizes}")
        write_result(out, "loader", result)
        print(f"result: {out}")
        return 0

    return measured


def _alone(choice: Choice, base: Base) -> Regime:
    return Regime.from_choices(base, [replace(choice, share=1.0)])


def _stock_can(setting: Setting, choice: Choice) -> bool:
    if not setting.pad_crop:
        return True
    beton = Beton.open(setting.data)
    return bool((beton.heights == choice.size_px).all() and (beton.widths == choice.size_px).all())


def _tiled(plan: EpochPlan, num_samples: int) -> EpochPlan:
    return replace(plan, samples=plan.samples % num_samples)


def _rate(epoch: Callable[[], Iterator[torch.Tensor]]) -> float:
    images = 0
    start = time.perf_counter()
    for batch in epoch():
        images += len(batch)
    return images / (time.perf_counter() - start)


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def _cells(rate: dict[str, float]) -> tuple[str, str]:
    return f"{rate['median']:,.0f}", f"{rate['min']:,.0f}-{rate['max']:,.0f}"


def _plain(setting: Setting) -> dict[str, Any]:
    return {
        "data": str(setting.data),
        "sizes": setting.sizes,
        "base": [setting.base.size_px, setting.base.batch_size],
        "threads": setting.threads,
        "rounds": setting.rounds,
        "epoch_images": setting.epoch_images,
        "pad_crop": setting.pad_crop,
    }


def _print_memory(case: str, plain: dict[str, Any]) -> None:
    """Prints by how many MiB this process's resident memory rises at most during an epoch, after one that warms up."""
    setting = Setting(**{**plain, "data": Path(plain["data"]), "base": Base(*plain["base"])})
    loader, _, size = case.partition(":")
    if loader == "mixed":
        contestant: Ours | StockFFCV = Ours(setting, setting.regime)
    else:
        choice = next(c for c in setting.regime.choices if c.size_px == int(size))
        contestant = Ours(setting, _alone(choice, setting.base)) if loader == "ours" else StockFFCV(setting, choice)
    # The compiler and the mapped file are paid for here, and left out.
    deque(contestant.epoch(), maxlen=0)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Resets the peak to what is resident now.
    before = _resident("VmRSS")
    deque(contestant.epoch(), maxlen=0)
    print((_resident("VmHWM") - before) / 1024)


def _resident(field: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    _print_memory(sys.argv[1], json.loads(sys.argv[2]))
