"""Memory, threads, files and processes do not grow over epochs, many of which are left early."""

from __future__ import annotations

import gc
import os
import statistics
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
from composer.core import Callback

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.ffcv_loaders import MixSizeLoader
from mixsize.ffcv_loaders.conversion.convert import convert_splits
from mixsize.recipes.build.trainer import build
from mixsize.recipes.config.compose import compose

#: Allocators keep some of what is freed.
MEMORY_TOLERANCE = 0.01
#: A sample takes half a second, most of it for the collection of garbage.
SAMPLES = 40


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> Path:
    """Digits as JPEGs, whose decoder holds more than a reader of pixels."""
    folder = tmp_path_factory.mktemp("jpegs")
    convert_splits("digits", folder, store="jpg", workers=1, progress=False)
    return folder


def held() -> dict[str, float]:
    """What this process holds: MiB of resident memory, and counts."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    targets = []
    for handle in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # The handle that listed the folder.
            targets.append(os.readlink(f"/proc/self/fd/{handle}"))
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return {
        "resident_mib": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "file handles": len(targets),
        "shared files": sum(name.startswith("/dev/shm/") for name in mapped.union(targets)),
        "processes": sum(len((task / "children").read_text().split()) for task in Path("/proc/self/task").iterdir()),
    }


def growth(samples: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """What was more in the last quarter of the samples than in the second: counts by maximum, memory by median."""
    grown = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        quarter = len(values) // 4
        memory = name == "resident_mib"
        before, after = map(statistics.median if memory else max, (values[quarter : 2 * quarter], values[-quarter:]))
        if after > before * (1 + MEMORY_TOLERANCE * memory):
            grown[name] = (before, after)
    return grown


def load(folder: Path, epochs: int) -> list[dict[str, float]]:
    """Samples of what is held over epochs of the loader alone, three of four of them left early."""
    loader = MixSizeLoader(folder / "train.beton", Regime.from_sizes({24: 0.2, 16: 0.5, 8: 0.3}, Base(16, 32), "D+"))
    samples = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for _ in islice(loader, len(loader) if epoch % 4 == 0 else 1 + epoch % (len(loader) - 1)):
            pass
        if epoch % max(1, epochs // SAMPLES) == 0:
            samples.append(held())
    return samples


def train(folder: Path, epochs: int) -> list[dict[str, float]]:
    """Epochs of the digits recipe, each ended after a quarter of its steps, evaluated with calibration and saved."""
    recipe = compose(
        [
            *("demo", "regime/digits_dplus", "smoothing={}", "calibration={batches: 4, when: each}"),
            *(f"data.train={folder}/train.beton", f"data.eval={folder}/test.beton", f"output.folder={folder}"),
            *(f"max_duration={epochs}ep", "evaluation.sizes=[16, 24]", "evaluation.every_epochs=1"),
            "progress_bar=false",
        ]
    )
    built = build(recipe)
    samples = []

    class Observer(Callback):
        def epoch_start(self, state, logger):
            for loader in (built.loader.dataset.peek(), *(each.dataloader.dataloader for each in state.evaluators)):
                next(iter(loader))  # An iterator left half used.
            if int(state.timestamp.epoch) % max(1, epochs // SAMPLES) == 0:
                samples.append(held())

    built.trainer.state.callbacks.append(Observer())
    built.trainer.fit(train_subset_num_batches=len(built.loader) // 4)
    built.trainer.close()
    return samples


def without_memory(samples):
    return [{name: value for name, value in sample.items() if name != "resident_mib"} for sample in samples]


def test_threads_files_and_processes_do_not_grow_with_the_loaders_epochs(jpegs):
    assert growth(without_memory(load(jpegs, 8))) == {}


@pytest.mark.soak  # Minutes: a leak of a few KiB an epoch shows over many.
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("case", "epochs"), [(load, 1000), (train, 200)])
def test_nothing_grows_over_many_epochs(jpegs, case, epochs):
    samples = case(jpegs, epochs)
    assert len(samples) == SAMPLES
    assert growth(samples) == {}


def test_what_is_opened_is_counted(tmp_path):
    before = held()
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    with open(tmp_path / "file", "w"):
        during = held()
    event.set()
    thread.join()
    assert {name for name in during if name != "resident_mib" and during[name] > before[name]} == {
        "threads",
        "file handles",
    }


@pytest.mark.parametrize(
    ("name", "values", "grows"),
    [
        # Medians: 525 in the second quarter, 530 in the last.
        ("resident_mib", [400, 500, 520, 530, 600, 700, 535, 525], False),
        # 510, of which 1 % is 5.1, and 520.
        ("resident_mib", [400, 500, 510, 510, 510, 510, 520, 520], True),
        ("threads", [1, 1, 5, 4, 9, 9, 5, 5], False),
        ("threads", [1, 1, 5, 5, 5, 5, 5, 6], True),
    ],
)
def test_growth_compares_the_last_quarter_with_the_second(name, values, grows):
    assert (name in growth([{name: value} for value in values])) is grows
