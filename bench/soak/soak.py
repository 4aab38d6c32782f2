"""Train and load for long, and see whether memory, threads, files or processes grow.

Two cases, each in a process of its own. ``training`` is the digits recipe with mixed sizes, smoothing, an evaluation
with calibration and a checkpoint after every epoch, through the Trainer; every epoch ends long before its loader does,
and leaves further half-used iterators behind. ``loader`` is the loader alone, left at another batch in every epoch.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np

from mixsize.bench.result_files import keep_result
from mixsize.bench.soak.resources import Resources, held
from mixsize.display.console import plain_console, print_table
from mixsize.display.markdown import markdown_table
from mixsize.ffcv_loaders.conversion.convert import convert_splits

CASES = ("training", "loader")
#: Memory may differ between two quarters by this share: allocators keep some of what is freed.
MEMORY_TOLERANCE = 0.01
#: Fewer samples than this tell no quarter from another.
MIN_EPOCHS = 8
_SAMPLES = 40
_QUANTITIES = {
    "resident_mib": "resident memory, MiB",
    "shared_mib": "shared memory, MiB",
    "threads": "threads",
    "python_threads": "Python's threads",
    "file_handles": "file handles",
    "shared_files": "files in shared memory",
    "processes": "child processes",
}
assert list(_QUANTITIES) == [field.name for field in fields(Resources)]

#: Is told of every epoch that has ended.
Note = Callable[[int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench soak``."""
    parser.add_argument("--epochs", type=int, default=200, metavar="N", help="of training (default: 200)")
    parser.add_argument("--loader-epochs", type=int, default=1000, metavar="N", help="of the loader (default: 1000)")
    parser.add_argument("--out", type=Path, help="result file; by default in bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; what is returned measures."""
    for name in ("epochs", "loader_epochs"):
        if getattr(args, name) < MIN_EPOCHS:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least {MIN_EPOCHS}, so that each "
                "quarter has two"
            )
    if not sys.platform.startswith("linux"):
        raise ValueError(f"what a process holds is read from Linux's /proc, and this is {sys.platform}")

    def measured() -> int:
        epochs = dict(zip(CASES, (args.epochs, args.loader_epochs), strict=True))
        with tempfile.TemporaryDirectory() as folder:
            # As JPEGs, whose decoder holds more than one of stored pixels.
            convert_splits("digits", folder, store="jpg", progress=False)
            samples = {case: run(case, Path(folder), epochs[case]) for case in CASES}
        result = {"setting": {"epochs": epochs, "memory_tolerance": MEMORY_TOLERANCE}, "samples": samples}
        print_table(plain_console(), *table(result), notes=[note(result)])
        keep_result(args.out, "soak", result)
        return 0 if is_flat(result) else 1

    return measured


def run(case: str, folder: Path, epochs: int) -> list[dict[str, Any]]:
    """What a case holds after every so many of its epochs.

    Args:
        case: one of :data:`CASES`.
        folder: with ``train.beton`` and ``test.beton``; the run goes there.
        epochs: how many.

    Raises:
        RuntimeError: a process that failed; its own error stands above.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_work, args=(queue, case, folder, epochs))
    worker.start()
    samples: list[dict[str, Any]] = []
    while (sample := _next(queue, worker)) is not None:
        samples.append(sample)
        print(f"{case}, epoch {sample['epoch']}/{epochs}: {describe(sample)}", flush=True)
    worker.join()
    if worker.exitcode:
        raise RuntimeError(f"{case}: the process ended with exit code {worker.exitcode}")
    return samples


def describe(sample: dict[str, Any]) -> str:
    """A sample in a line."""
    return ", ".join(f"{words} {sample[name]:,.0f}" for name, words in _QUANTITIES.items())


def _next(queue: multiprocessing.Queue, worker: multiprocessing.Process) -> dict[str, Any] | None:
    """The next sample; None after the last, or where the process is gone."""
    while True:
        alive = worker.is_alive()
        try:
            return queue.get(timeout=1)
        except Empty:
            if not alive:
                return None


def _work(queue: multiprocessing.Queue, case: str, folder: Path, epochs: int) -> None:
    every = max(1, epochs // _SAMPLES)

    def note(epoch: int) -> None:
        if epoch % every == 0:
            queue.put({"epoch": epoch, **asdict(held())})

    {"training": _train, "loader": _load}[case](folder, epochs, note)
    queue.put(None)


def _train(folder: Path, epochs: int, note: Note) -> None:
    from composer.core import Callback, State
    from composer.loggers import Logger

    from mixsize.recipes.build.trainer import build
    from mixsize.recipes.config.compose import compose

    recipe = compose(
        [
            *("demo", "regime/digits_dplus", "smoothing={}", "calibration={batches: 4, when: each}"),
            *(f"data.train={folder}/train.beton", f"data.eval={folder}/test.beton", f"output.folder={folder}"),
            *(f"max_duration={epochs}ep", "evaluation.sizes=[16, 24]", "evaluation.every_epochs=1"),
            "progress_bar=false",
        ]
    )
    built = build(recipe)

    class Observer(Callback):
        """Leaves iterators half used, and notes what is held."""

        def epoch_start(self, state: State, logger: Logger) -> None:
            for loader in (built.loader.dataset.peek(), *(each.dataloader.dataloader for each in state.evaluators)):
                next(iter(loader))
            if int(state.timestamp.epoch):
                note(int(state.timestamp.epoch))

    built.trainer.state.callbacks.append(Observer())
    built.trainer.fit(train_subset_num_batches=len(built.loader) // 4)
    note(epochs)
    built.trainer.close()


def _load(folder: Path, epochs: int, note: Note) -> None:
    from mixsize.algorithms.regime.regime import Base, Regime
    from mixsize.ffcv_loaders import MixSizeLoader

    regime = Regime.from_sizes({24: 0.2, 16: 0.5, 8: 0.3}, Base(16, 32), "D+")
    loader = MixSizeLoader(folder / "train.beton", regime, device="cpu")
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        # Every fourth is served whole.
        batches = len(loader) if epoch % 4 == 0 else int(np.random.default_rng(epoch).integers(1, len(loader)))
        for _ in itertools.islice(loader, batches):
            pass
        note(epoch + 1)


def quarters(samples: Sequence[dict[str, Any]], quantity: str) -> tuple[float, float]:
    """What a quantity was in the second and in the last quarter of the samples: its median, or a count's maximum."""
    values = [sample[quantity] for sample in samples]
    quarter = len(values) // 4
    middle = statistics.median if quantity.endswith("_mib") else max
    return middle(values[quarter : 2 * quarter]), middle(values[-quarter:])


def grows(samples: Sequence[dict[str, Any]], quantity: str, tolerance: float) -> bool:
    """Whether the last quarter has more than the second: memory by more than the tolerance, a count at all."""
    before, after = quarters(samples, quantity)
    return after > (before * (1 + tolerance) if quantity.endswith("_mib") else before)


def is_flat(result: dict[str, Any]) -> bool:
    """Whether nothing of a ``mixsize bench soak`` result grows."""
    tolerance = result["setting"]["memory_tolerance"]
    return not any(grows(rows, name, tolerance) for rows in result["samples"].values() for name in _QUANTITIES)


def soak_table(result: dict[str, Any]) -> str:
    """The table of a ``mixsize bench soak`` result."""
    return markdown_table(*table(result)) + f"\n{note(result)}\n"


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows."""
    head, rows = ["held by", "quantity", "second quarter", "last quarter", ""], []
    for case, samples in result["samples"].items():
        for name, words in _QUANTITIES.items():
            digits = 1 if name.endswith("_mib") else 0
            values = [f"{value:,.{digits}f}" for value in quarters(samples, name)]
            verdict = "grows" if grows(samples, name, result["setting"]["memory_tolerance"]) else "flat"
            rows.append([case, words, *values, verdict])
    return head, rows


def note(result: dict[str, Any]) -> str:
    """What the table's figures are."""
    epochs, tolerance = result["setting"]["epochs"], result["setting"]["memory_tolerance"]
    every = {case: math.gcd(*(row["epoch"] for row in rows)) for case, rows in result["samples"].items()}
    return (
        f"{epochs['training']:,} epochs of the digits recipe with mixed sizes and smoothing, each ended after a "
        f"quarter of its steps, evaluated with calibration and saved; {epochs['loader']:,} epochs of the loader alone, "
        f"three of four left early. Sampled every {every['training']} and {every['loader']} epochs; medians of memory, "
        f"maxima of counts. It grows where the last quarter has more than the second, memory by over {tolerance:.0%}."
    )
