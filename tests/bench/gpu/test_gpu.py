"""The GPU bench on the CPU: its arithmetic by hand, the whole of it on tiny shapes, stopped and taken up again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import InputShape
from mixsize.bench.gpu import algorithms as gpu_algorithms
from mixsize.bench.gpu import cifar as gpu_cifar
from mixsize.bench.gpu import epoch as gpu_epoch
from mixsize.bench.gpu import equivalence as gpu_equivalence
from mixsize.bench.gpu import shapes as gpu_shapes
from mixsize.bench.gpu import training as gpu_training
from mixsize.bench.gpu.clock import LapClock
from mixsize.bench.gpu.dry_data import write_dry_data
from mixsize.bench.gpu.gpu import Session
from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, Verdict
from mixsize.bench.gpu.record import (
    AlgorithmsCost,
    BudgetCost,
    CalibrationTime,
    DataFacts,
    Deviation,
    Epochs,
    EpochTime,
    Equivalence,
    GpuRecord,
    KernelGaps,
    LoaderRate,
    LoaderRates,
    Memory,
    PartRecord,
    ShapePrice,
    ShapeTime,
    SizeCost,
    Spread,
    StepCost,
    TrainedRun,
    UnitRecord,
    read_gpu_record,
    write_gpu_record,
)
from mixsize.bench.gpu.report import PARTS, targets_table, verdicts
from mixsize.bench.gpu.trace import busy_seconds, host_waits, launches, record_trace, union_length
from mixsize.bench.pages.tables import TABLES, refresh
from mixsize.bench.regimes import runner
from mixsize.bench.regimes.runner import Runner
from mixsize.cli import main
from mixsize.recipes.records.run_record import RunRecord

# tests/bench is no package.
ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 16, "gpu": "a GPU", "driver": "1.2", "ranks": 1,
}  # fmt: skip
CPU = torch.device("cpu")
CUDA = torch.device("cuda")
SMALL, LARGE = InputShape(32, 32), InputShape(8, 64)


def spread(value):
    return Spread(median=value, low=value, high=value, n=3)


# ---- arithmetic ----


def test_quartiles_of_five_are_the_second_and_the_fourth():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0, n=5)
    assert Spread.of([7.0]) == Spread(median=7.0, low=7.0, high=7.0, n=1)


def test_the_union_counts_what_overlaps_once():
    # 0-4 and 3-6 make 6; 10-12 holds 11-11.5; 12-13 touches it.
    assert union_length([(3, 6), (10, 12), (0, 4), (11, 11.5), (12, 13)]) == 9
    assert union_length([]) == 0


TRACE = [
    {"cat": "kernel", "name": "conv", "ts": 100.0, "dur": 40.0},
    {"cat": "kernel", "name": "norm", "ts": 130.0, "dur": 30.0},  # On another stream, half of it beside the first.
    {"cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 200.0, "dur": 10.0},
    {"cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0.0, "dur": 1000.0},
    {"cat": "cpu_op", "name": "aten::conv2d", "ts": 0.0, "dur": 500.0},
    {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "dur": 2.0},
    {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "ts": 4.0, "dur": 2.0},
    {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 7.0, "dur": 2.0},
    {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 9.0, "dur": 2.0},
    {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 12.0, "dur": 190.0},
    {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "ts": 300.0, "dur": 1.0},
    {"cat": "cuda_runtime", "name": "cudaEventQuery", "ts": 400.0, "dur": 1.0},
    {"cat": "cuda_sync", "name": "Stream Synchronize", "ts": 12.0, "dur": 190.0},  # The device's view of the above.
    {"name": "process_name", "ph": "M"},
]


def test_a_trace_says_when_the_device_was_busy_and_where_the_host_waited():
    assert busy_seconds(TRACE, CUDA) == pytest.approx(70e-6)
    assert busy_seconds(TRACE, CPU) == pytest.approx(500e-6)
    assert host_waits(TRACE) == 2
    assert launches(TRACE) == 3


def test_the_profilers_trace_is_understood():
    ones = torch.ones(64, 64)
    events = record_trace(lambda: ones @ ones, CPU)
    assert any(event.get("name") == "aten::mm" for event in events)
    assert 0 < busy_seconds(events, CPU) < 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_trace_and_clock_are_understood():
    ones = torch.ones(512, 512, device="cuda")
    step = gpu_training.TrainingStep("test_resnet", CUDA, [SMALL])
    images, labels = gpu_training.NoiseBatches([SMALL], CUDA)[SMALL]
    step(images, labels)
    quiet = record_trace(lambda: step(images, labels, smooth=True), CUDA)
    waiting = record_trace(lambda: step(images, labels).item(), CUDA)
    assert host_waits(waiting) == host_waits(quiet) + 1
    assert launches(quiet) > 50
    clock = LapClock(CUDA)
    clock.mark()
    events = record_trace(lambda: ones @ ones, CUDA)
    clock.mark()
    (lap,) = clock.laps()
    assert 0 < busy_seconds(events, CUDA) < lap


def test_waits_outside_the_steps_drop_out():
    # 7 at either end of a fit, 2 a step.
    assert gpu_algorithms.waits_a_step(7 + 2 * 2, 2, 7 + 2 * 12, 12) == 2


def test_the_clock_gives_a_lap_between_any_two_marks():
    clock = LapClock(CPU)
    assert clock.laps() == []
    for _ in range(3):
        clock.mark()
    laps = clock.laps()
    assert len(laps) == 2
    assert min(laps) >= 0
    assert clock.laps() == []


def test_the_price_weighs_shapes_by_their_share_of_the_steps():
    alone = {LARGE: [2.0, 2.0], SMALL: [1.0, 1.0]}
    mixed = {LARGE: [2.2, 2.0], SMALL: [1.3, 1.0]}
    shares = {LARGE: 0.25, SMALL: 0.75}
    # (0.25 * 2.2 + 0.75 * 1.3) / (0.25 * 2 + 0.75 * 1) = 1.525 / 1.25
    assert gpu_shapes.prices(alone, mixed, shares) == [pytest.approx(1.22), pytest.approx(1.0)]


def test_a_stall_at_one_of_a_shapes_steps_counts():
    found = gpu_shapes.mean_by_shape([LARGE, SMALL, LARGE], [1.0, 5.0, 4.0])
    assert found == {LARGE: 2.5, SMALL: 5.0}


def test_the_mix_is_drawn_as_the_regime_says():
    work = gpu_shapes.FULL
    shares = gpu_training.shape_shares(work.regime)
    drawn = gpu_training.drawn_shapes(work.regime, work.images, epoch=1)
    # By pixels, the most first: 784 x 128^2 = 256 x 224^2, 1392 x 96^2, 192 x 256^2.
    assert {shape.size_px for shape in shares} == {224, 128, 96, 256}
    assert [shape.images for shape in shares][2:] == [1392, 192]
    assert sum(shares.values()) == pytest.approx(1)
    for shape, share in shares.items():
        assert drawn.count(shape) >= 2
        assert drawn.count(shape) / len(drawn) == pytest.approx(share, abs=0.02)
    assert drawn != gpu_training.drawn_shapes(work.regime, work.images, epoch=2)


def test_an_epochs_timed_pixels_are_those_of_the_paper():
    work = gpu_epoch.FULL
    fixed, mixed = (gpu_epoch._pixels_an_image(regime, work.images) for regime in (Regime.fixed(work.base), work.mix))
    assert fixed == 224**2
    # 0.463 of the baseline's, table 1; whole batches move it by less than two per cent.
    assert mixed / fixed == pytest.approx(0.463, rel=0.02)


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (16, [1, 2, 4, 8, 16]), (12, [1, 2, 4, 8, 12])])
def test_threads_double_up_to_the_cores(cores, counts):
    assert gpu_epoch.thread_counts(cores) == counts


def loader_rates(**by_threads):
    rates = [
        LoaderRate(threads=int(name.removeprefix("t")), images_per_second=spread(value))
        for name, value in by_threads.items()
    ]
    return LoaderRates(regime="s144", data=FACTS, cores=rates[-1].threads, rates=rates)


FACTS = DataFacts(file="a.beton", images=300, mean_height=371.0, mean_width=436.0, levels=1)


def test_enough_cores_are_the_fewest_from_which_on_the_loader_keeps_up():
    # That 2 threads did once is no reason, as 4 did not.
    rates = loader_rates(t1=1000.0, t2=5000.0, t4=4000.0, t8=8000.0, t16=15000.0)
    assert gpu_epoch.cores_needed(rates, 4500.0) == 8
    assert gpu_epoch.cores_needed(rates, 900.0) == 1
    assert gpu_epoch.cores_needed(rates, 16000.0) is None


# ---- equivalence ----


def test_distances_are_held_against_the_loosest_eager_run():
    eager = [np.array([0.0, 0.0, 5.0]), np.array([0.6, -0.8, 5.0]), np.array([-0.6, 0.8, 5.0])]
    found = gpu_equivalence.deviation(np.array([1.0, 1.0, 9.0]), eager, steps=2, allowed=1.08)
    # Root mean squares over two steps. Of the second to the others: (sqrt(0.5) + sqrt(2)) / 2, as of the third, and the
    # first is nearer; of the engine: (1 + sqrt(1.7) + sqrt(1.3)) / 3.
    assert (found.noise, found.engine) == (pytest.approx(1.06066, rel=1e-5), pytest.approx(1.14801, rel=1e-5))
    assert not found.within
    assert replace_allowed(found, 1.09).within


def replace_allowed(found: Deviation, allowed: float) -> Deviation:
    return found.model_copy(update={"allowed": allowed})


SMALL_WORK = replace(gpu_equivalence.DRY, steps=40, eager_runs=4, images=400)


class Stale:
    """Passes that, at the first step after a change of shape, see the last images of that shape again."""

    def __init__(self, network):
        self._network, self._shape, self._seen = network, None, {}

    def __call__(self, images):
        seen = self._seen.get(images.shape)
        stale = seen if seen is not None and self._shape != images.shape else images
        self._seen[images.shape], self._shape = images, images.shape
        return self._network(stale)


class FrozenNorm:
    """Passes that normalise by running statistics."""

    def __init__(self, network):
        self._network = network

    def __call__(self, images):
        return self._network.eval()(images)


class Doubled:
    """Passes whose gradients are added up twice."""

    def __init__(self, network):
        self._network = network
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient: 2 * gradient)

    def __call__(self, images):
        return self._network(images)


class OtherRounding:
    """Passes that round every weight to bfloat16 by chance instead of to the nearest."""

    def __init__(self, network):
        self._network = network
        self._generator = torch.Generator().manual_seed(99)

    def __call__(self, images):
        nudged = {
            name: parameter * gpu_equivalence._nudges(parameter, self._generator)
            for name, parameter in self._network.named_parameters()
        }
        return torch.func.functional_call(self._network, nudged, (images,))


@pytest.fixture(scope="module")
def eager_curves():
    return [gpu_equivalence.loss_curve(SMALL_WORK, "eager", CPU, nudge) for nudge in range(SMALL_WORK.eager_runs)]


@pytest.mark.parametrize(
    ("passes", "same"), [(OtherRounding, True), (Stale, False), (FrozenNorm, False), (Doubled, False)]
)
def test_an_engine_that_only_rounds_differently_passes_and_one_that_errs_does_not(
    passes, same, eager_curves, monkeypatch
):
    monkeypatch.setattr(gpu_training, "training_passes", lambda network, engine, num_shapes: passes(network))
    curve = gpu_equivalence.loss_curve(SMALL_WORK, "compile", CPU)
    early = gpu_equivalence.deviation(curve, eager_curves, 4, gpu_equivalence.EARLY_ALLOWED)
    whole = gpu_equivalence.deviation(curve, eager_curves, 40, gpu_equivalence.ALLOWED)
    print(passes.__name__, early.engine / early.noise, whole.engine / whole.noise)
    assert (early.within and whole.within) is same


# ---- a record by hand ----


def shape_price(price=1.02):
    shape = ShapeTime(
        size_px=224, images=256, step_share=0.25, alone=spread(0.1), mixed=spread(0.102), price=spread(1.02)
    )
    memory = Memory(reserved=3 * 2**30, allocated=2 * 2**30, inactive_split=2**29)
    return ShapePrice(
        network="resnet50",
        engine="eager",
        shapes=[shape],
        price=spread(price),
        memory_alone=memory,
        memory_mixed=memory,
    )


def budget(ratio=1.1):
    sizes = [
        SizeCost(size_px=size, images=images, pixels=1.0, seconds=spread(0.1 * r), ratio=spread(r))
        for size, images, r in ((224, 256, 1.0), (96, 1392, ratio))
    ]
    return BudgetCost(network="resnet50", base_px=224, sizes=sizes)


def step_cost(ratio):
    return StepCost(seconds=spread(0.1 * ratio), base_seconds=spread(0.1), ratio=spread(ratio))


def algorithms(ratio=1.004, syncs=1.0):
    return AlgorithmsCost(
        network="resnet50",
        size_px=224,
        images=256,
        all_algorithms=step_cost(ratio),
        smoothing=step_cost(1.001),
        host_syncs=syncs,
        base_host_syncs=1.0,
    )


def epochs(speed_up=2.1):
    regimes = [
        EpochTime(regime=name, with_loader=spread(rate), without_loader=spread(rate + 50))
        for name, rate in (("fixed", 3000.0), ("s144", 6450.0))
    ]
    return Epochs(
        network="resnet50",
        images=21_600,
        threads=16,
        data=FACTS,
        regimes=regimes,
        speed_up=spread(speed_up),
        speed_up_without_loader=spread(2.15),
        pixels=2.16,
    )


def calibration(seconds=6.5):
    return CalibrationTime(
        network="resnet50",
        size_px=288,
        batches=200,
        batch_size=256,
        threads=16,
        with_loader=spread(seconds),
        without_loader=spread(5.0),
    )


def kernel_gaps(engine="eager", seconds=0.012):
    return KernelGaps(
        network="cifar_resnet44",
        engine=engine,
        size_px=32,
        images=256,
        seconds=spread(seconds),
        busy_seconds=0.003,
        launches=900.0,
        preparation_seconds=1.0,
    )


def equivalence(engine="compile", distance=0.02):
    return Equivalence(
        network="cifar_resnet20",
        engine=engine,
        shapes=4,
        eager_runs=6,
        first_loss=2.4,
        last_loss=0.5,
        deviations=[Deviation(steps=200, engine=distance, noise=0.02, allowed=1.5)],
    )


def run(label, own, calibrated, steps=5850, pixels=1000, seed=17):
    return TrainedRun(
        record=RunRecord.model_validate(
            {
                "label": label, "name": f"{label}-{seed}", "seed": seed, "environment": ENVIRONMENT,
                "recipe": {"seed": seed, "model": {"name": "cifar_resnet44"}, "regime": {"base": {"size_px": 32}}},
                "steps": steps, "epochs": 30, "pixels": pixels, "seconds": {"training": 60.0},
                "accuracy": dict(zip(("16", "24", "32"), own, strict=True)),
                "calibrated_accuracy": dict(zip(("16", "24", "32"), calibrated, strict=True)),
            }
        )
    )  # fmt: skip


def make_record(dry_run=False, **parts):
    def part(units):
        records = {
            name: UnitRecord(seconds=1.0, commit="c", dirty=False, figures=figures) for name, figures in units.items()
        }
        return PartRecord(complete=True, units=records)

    return GpuRecord(
        measured="2026-01-02T03:04:05+00:00",
        dry_run=dry_run,
        environment=ENVIRONMENT,
        parts={name: part(units) for name, units in parts.items()},
    )


CIFAR = {
    "fixed, seed 17": run("fixed", (0.5, 0.8, 0.930), (0.6, 0.8, 0.92)),
    "s28_bplus, seed 17": run("s28_bplus", (0.5, 0.7, 0.9), (0.8, 0.91, 0.930), steps=4100, pixels=831),
    "s28_dplus, seed 17": run("s28_dplus", (0.5, 0.7, 0.9), (0.8, 0.91, 0.94), steps=5820),
}
WHOLE = make_record(
    shape_price={"resnet50 eager": shape_price()},
    budget={"resnet50": budget()},
    algorithms={"resnet50": algorithms()},
    epoch={"resnet50": epochs(), "loader": loader_rates(t8=6000.0, t16=12000.0)},
    calibration={"resnet50 288 px": calibration()},
    kernel_gaps={
        "cifar_resnet44 eager": kernel_gaps(),
        "cifar_resnet44 cuda_graphs": kernel_gaps("cuda_graphs", 0.004),
    },
    equivalence={"cifar_resnet20 compile": equivalence()},
    cifar10=CIFAR,
)


BPLUS, DPLUS, BOTH = "CIFAR-10: B+ at least", "CIFAR-10: D+ above", "CIFAR-10: B+ and D+ above"


def met(record, words):
    (verdict,) = [verdict for verdict in verdicts(record) if words in verdict.target]
    return verdict.met


def test_a_record_is_the_same_after_writing_and_reading(tmp_path):
    write_gpu_record(tmp_path / "x.json", WHOLE)
    assert read_gpu_record(tmp_path / "x.json") == WHOLE


TARGETS = {
    "shape price at most +3.0 %: resnet50, eager": ("shape_price", "resnet50 eager", shape_price, (1.03, 1.031)),
    "equal pixels within 15 %": ("budget", "resnet50", budget, (1.15, 1.16)),
    "at most +1.0 % of a step": ("algorithms", "resnet50", algorithms, (1.01, 1.011)),
    "at least 2.0x": ("epoch", "resnet50", epochs, (2.0, 1.99)),
    "under 10 s": ("calibration", "resnet50 288 px", calibration, (9.9, 10.0)),
    "compile within": (
        "equivalence",
        "cifar_resnet20 compile",
        lambda distance: equivalence(distance=distance),
        (0.03, 0.031),
    ),
}


@pytest.mark.parametrize("words", TARGETS)
def test_a_target_is_met_up_to_its_limit_and_missed_beyond(words):
    part, unit, make, (within, beyond) = TARGETS[words]
    assert met(make_record(**{part: {unit: make(within)}}), words) is True
    assert met(make_record(**{part: {unit: make(beyond)}}), words) is False
    assert met(make_record(), words) is None
    # Tiny shapes on the CPU say nothing, whatever they are called.
    assert met(make_record(dry_run=True, **{part: {unit: make(within)}}), words) is None


def test_a_size_that_is_too_cheap_misses_the_budget_as_well():
    assert met(make_record(budget={"resnet50": budget(0.84)}), "equal pixels") is False


def test_one_synchronisation_of_ours_is_one_too_many():
    words = "no host synchronisation"
    assert met(make_record(algorithms={"resnet50": algorithms(syncs=1.0)}), words) is True
    assert met(make_record(algorithms={"resnet50": algorithms(syncs=2.0)}), words) is False


@pytest.mark.parametrize(
    ("rates", "expected"),
    [({"t16": 6500.0}, True), ({"t16": 6499.0}, False), ({"t8": 9000.0}, None)],
)
def test_the_loader_must_deliver_what_the_network_takes_without_it(rates, expected):
    record = make_record(epoch={"resnet50": epochs(), "loader": loader_rates(**rates)})
    assert met(record, "loader not the limit") is expected


def test_cifar_compares_calibrated_mixes_with_the_fixed_sizes_own_statistics():
    assert [met(WHOLE, words) for words in (BPLUS, DPLUS, BOTH)] == [True, True, True]
    fixed, bplus, dplus = CIFAR

    def changed(name, **changes):
        unit = CIFAR[name].record
        return make_record(cifar10={**CIFAR, name: TrainedRun(record=unit.model_copy(update=changes))})

    assert met(changed(fixed, accuracy={"16": 0.5, "24": 0.8, "32": 0.931}), BPLUS) is False
    assert met(changed(bplus, pixels=840), BPLUS) is False
    assert met(changed(dplus, steps=5000), DPLUS) is False
    assert met(changed(dplus, calibrated_accuracy={"16": 0.8, "24": 0.91, "32": 0.93}), DPLUS) is False
    assert met(changed(bplus, calibrated_accuracy={"16": 0.8, "24": 0.8, "32": 0.93}), BOTH) is False


def test_every_part_has_a_table_of_its_figures(tmp_path):
    write_gpu_record(tmp_path / "x.json", WHOLE)
    kinds = [f"gpu_{part.name}" for part in PARTS]
    text = "".join(f"<!-- table: {kind} x.json -->\n<!-- end table -->\n" for kind in ("gpu", *kinds))
    shown = refresh(text, tmp_path)
    for line in (
        "| shape price at most +3.0 %: resnet50, eager | +2.0 % | yes |",
        "| compile within bfloat16's rounding of eager over 200 steps | 0.0200 of 0.0300 nats | yes |",
        "| cuda_graphs within bfloat16's rounding of eager over 200 steps |  | not measured yet |",
        "| resnet50, eager, 224 px | 256 | 25 % | 100 (100-100) | 102 (102-102) | 1.020x (1.020-1.020) |",
        "| resnet50, 96 px | 1,392 | 1.000x | 110 (110-110) | 1.100x (1.100-1.100) |",
        "| resnet50, 256 x 224 px: all algorithms, under Composer | 100.4 (100.4-100.4) | 100 (100-100) |"
        " 1.004x (1.004-1.004) |",
        # 1,281,167 / 6,450
        "| resnet50, s144 | 16 | 6,450 (6,450-6,450) | 6,500 (6,500-6,500) | 199 |",
        "The loader alone delivers the 6,500 images/s that resnet50 takes from 16 threads on.",
        "| resnet50, 288 px | 200 x 256 | 16 | 6.5 (6.5-6.5) | 5.0 (5.0-5.0) |",
        "| cifar_resnet44, 256 x 32 px, cuda_graphs | 4 (4-4) | 3.00 | 25.0 % | 900 | 3.00x | 1 |",
        "| s28_bplus | calibrated | 1 | 4,100 | 0.83x | 60 | 80.0 | 91.0 | 93.0 |",
        "a GPU, 16 cores, PyTorch 2.7.0, 2026-01-02.",
    ):
        assert line in shown, line


def test_a_part_without_figures_has_no_table():
    result = json.loads(make_record().model_dump_json())
    assert "| not measured yet |" in TABLES["gpu"](result)
    with pytest.raises(ValueError, match="part budget has no figures"):
        TABLES["gpu_budget"](result)


# ---- the command ----

UNITS = [
    ("shape_price", "test_resnet eager"),
    ("budget", "test_resnet"),
    ("algorithms", "test_resnet"),
    ("epoch", "test_resnet"),
    ("epoch", "loader"),
    ("calibration", "test_resnet 32 px"),
    ("kernel_gaps", "test_resnet eager"),
    ("equivalence", "test_resnet eager"),
    ("cifar10", "s28_bplus, seed 17"),
]


@pytest.fixture
def launches_noted(monkeypatch):
    """Stands in for the processes of the CIFAR-10 runs, which leave what a run would."""
    started = []

    def launch(suite_run):
        started.append(suite_run.name)
        found = run(suite_run.label, (0.5, 0.6, 0.7), (0.5, 0.6, 0.7)).record
        recipe = suite_run.recipe.model_dump(mode="json")
        suite_run.folder.mkdir(parents=True, exist_ok=True)
        record = found.model_copy(update={"name": suite_run.name, "recipe": recipe})
        (suite_run.folder / "record.json").write_text(record.model_dump_json())

    monkeypatch.setattr(runner, "launch", launch)
    return started


def test_a_dry_run_measures_every_part_and_the_next_one_repeats_nothing(tmp_path, launches_noted, capsys):
    argv = ["bench", "gpu", "--dry-run", "--folder", str(tmp_path / "gpu"), "--out", str(tmp_path / "out.json")]
    assert main(argv) == 0
    record = read_gpu_record(tmp_path / "out.json")
    assert record == read_gpu_record(tmp_path / "gpu/gpu.json")
    assert record.dry_run
    assert [(part, unit) for part, found in record.parts.items() for unit in found.units] == UNITS
    assert all(part.complete for part in record.parts.values())
    # The same form as a GPU's: every part of the hand-made record has the same kinds of figures.
    kinds = {name: {figures.kind for figures in part.figures.values()} for name, part in WHOLE.parts.items()}
    assert {name: {figures.kind for figures in part.figures.values()} for name, part in record.parts.items()} == kinds
    result = json.loads((tmp_path / "out.json").read_text())
    for kind in ("gpu", *(f"gpu_{part.name}" for part in PARTS)):
        assert "| --- |" in TABLES[kind](result)
    assert capsys.readouterr().out.rstrip().endswith(f"result: {tmp_path / 'out.json'}")

    before = [unit.seconds for part in record.parts.values() for unit in part.units.values()]
    assert main(argv) == 0
    again = read_gpu_record(tmp_path / "out.json")
    assert [unit.seconds for part in again.parts.values() for unit in part.units.values()] == before
    assert len(launches_noted) == 1
    assert "cifar10: " not in capsys.readouterr().out


@pytest.fixture(scope="module")
def dry_data(tmp_path_factory):
    return write_dry_data(tmp_path_factory.mktemp("dry"))


def part_of(names, ran, seconds=1.0, failing=()):
    """A part whose units only say that they ran."""

    def measure(name):
        ran.append(name)
        if name in failing:
            raise RuntimeError("out of luck")
        return calibration()

    units = [Unit(name, seconds, lambda name=name: measure(name)) for name in names]
    return Part("calibration", "", lambda bench: units, lambda f: PartTable(["a"], [["b"]]), lambda f: []), units


def session(tmp_path, names, ran, record=None, **options):
    found = part_of(names, ran, **options)
    return Session(record or make_record(), tmp_path / "gpu.json", [found], Console(quiet=True))


def test_what_does_not_fit_into_the_time_is_left_for_the_next_start(tmp_path):
    ran = []
    first = session(tmp_path, ["a", "b", "c"], ran, seconds=100.0)
    first._expected = lambda part, unit: 100.0
    first.measure(50.0)
    # The first begins whatever the time.
    assert ran == ["a"]
    assert [unit.name for _, unit in first.pending] == ["b", "c"]
    saved = read_gpu_record(tmp_path / "gpu.json")
    assert not saved.parts["calibration"].complete
    second = session(tmp_path, ["a", "b", "c"], ran, record=saved)
    second.measure(500.0)
    assert ran == ["a", "b", "c"]
    assert read_gpu_record(tmp_path / "gpu.json").parts["calibration"].complete
    assert list(second.record.parts["calibration"].units) == ["a", "b", "c"]


def test_a_unit_is_expected_to_take_as_long_as_the_longest_of_its_part_did(tmp_path):
    ran = []
    units = {
        name: UnitRecord(seconds=seconds, commit=None, dirty=None, figures=calibration())
        for name, seconds in (("a", 7.0), ("b", 30.0))
    }
    record = make_record().model_copy(update={"parts": {"calibration": PartRecord(complete=False, units=units)}})
    known = session(tmp_path, ["a", "b", "c"], ran, record=record, seconds=100.0)
    ((part, unit),) = known.pending
    assert known._expected(part, unit) == 30.0
    fresh = session(tmp_path, ["a", "b", "c"], ran, seconds=100.0)
    assert fresh._expected(part, unit) == 100.0


def test_a_unit_that_fails_is_noted_the_others_go_on_and_the_next_start_tries_it_again(tmp_path):
    ran = []
    first = session(tmp_path, ["a", "b"], ran, failing=["a"])
    first.measure(500.0)
    assert first.failed == ["calibration: a: RuntimeError: out of luck"]
    saved = read_gpu_record(tmp_path / "gpu.json")
    assert saved.parts["calibration"].units["a"].error == "RuntimeError: out of luck"
    assert not saved.parts["calibration"].complete
    second = session(tmp_path, ["a", "b"], ran, record=saved)
    second.measure(500.0)
    assert ran == ["a", "b", "a"]
    assert read_gpu_record(tmp_path / "gpu.json").parts["calibration"].units["a"].error is None


def test_a_run_that_ended_without_being_recorded_is_not_trained_again(tmp_path, launches_noted, dry_data):
    bench = Bench(CPU, True, tmp_path, dry_data.cifar, dry_data.images, 1, 1, ())
    (first,) = gpu_cifar.units(bench)
    assert first.measure().record.label == "s28_bplus"
    (again,) = gpu_cifar.units(bench)
    assert again.measure().record.name == "cifar10_gpu-s28_bplus-seed17"
    assert launches_noted == ["cifar10_gpu-s28_bplus-seed17"]
    (restarted,) = gpu_cifar.units(replace(bench, items=("output.restart=true",)))
    restarted.measure()
    assert len(launches_noted) == 2


def test_what_a_failed_run_printed_becomes_its_units_error(tmp_path, dry_data, monkeypatch):
    monkeypatch.setattr(runner, "launch", lambda suite_run: "ValueError: no luck\nexit code 1")
    (unit,) = gpu_cifar.units(Bench(CPU, True, tmp_path, dry_data.cifar, dry_data.images, 1, 1, ()))
    with pytest.raises(RuntimeError, match="ValueError: no luck"):
        unit.measure()


def test_the_suite_trains_four_regimes_alike(tmp_path, dry_data):
    bench = Bench(CPU, False, tmp_path, dry_data.cifar, dry_data.images, 1, 2, ("execution.network=compile",))
    units = gpu_cifar.units(bench)
    assert [unit.name for unit in units[:5]] == [
        "fixed, seed 17", "s28_bplus, seed 17", "s28_dplus, seed 17", "progressive, seed 17", "fixed, seed 18",
    ]  # fmt: skip
    assert len(units) == 12
    runs: Runner = units[0].measure.args[0]
    recipes = [suite_run.recipe for suite_run in runs.runs]
    assert {recipe.schedule.name for recipe in recipes} == {"one_cycle"}
    assert {(recipe.optimizer.lr, recipe.optimizer.lr_scaling) for recipe in recipes} == {(0.4, "none")}
    assert {recipe.regime.base.batch_size for recipe in recipes} == {256}
    assert {recipe.max_duration for recipe in recipes} == {"30ep"}
    assert {recipe.calibration.batches for recipe in recipes} == {200}
    assert {recipe.execution.network for recipe in recipes} == {"compile"}
    assert {suite_run.ranks for suite_run in runs.runs} == {2}


def test_restart_measures_the_named_part_anew_and_keeps_the_others(tmp_path):
    folder = ["--folder", str(tmp_path / "gpu")]
    argv = ["bench", "gpu", "--dry-run", "--part", "calibration", *folder]
    assert main(argv) == 0
    first = read_gpu_record(tmp_path / "gpu/gpu.json")
    assert main(["bench", "gpu", "--dry-run", "--part", "kernel_gaps", *folder]) == 0
    assert main([*argv, "--restart"]) == 0
    last = read_gpu_record(tmp_path / "gpu/gpu.json")
    assert list(last.parts) == ["calibration", "kernel_gaps"]
    assert last.parts["calibration"].units != first.parts["calibration"].units


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_is_possible(capsys):
    assert main(["bench", "gpu"]) == 2
    assert "sees no GPU here; --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--part", "budgets"], "--part budgets: the parts are shape_price, budget"),
        (["--minutes", "0"], "--minutes is 0; it must be above 0"),
        (["--ranks", "0"], "--ranks is 0; it must be at least 1"),
        (["--images", "nowhere.beton"], "--images: nowhere.beton is not there; write it with mixsize convert"),
        (["--images", "digits/train.beton"], "digits/train.beton holds raw pixels; decoding is timed from JPEGs"),
        (["--data", "nowhere"], "--data: nowhere/train.beton is not there; write it with mixsize convert cifar10"),
        (["optimizer.lr=0"], "optimizer.lr: must be greater than 0, got 0"),
    ],
)
def test_mistakes_are_named(argv, words, tmp_path, dry_data, capsys):
    shutil.copytree(dry_data.cifar.parent, tmp_path / "gpu/data")
    argv = [word.replace("digits/", f"{dry_data.cifar}/") for word in argv]
    assert main(["bench", "gpu", "--dry-run", "--folder", str(tmp_path / "gpu"), *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dry_run": False}, "is of measured on a GPU, this is a dry run; give another --folder"),
        ({"environment": {**ENVIRONMENT, "torch": "1.0"}}, "was measured elsewhere: .*torch 1.0 "),
        ({"record_version": 9}, "is no record of mixsize bench gpu: record_version"),
        ({"parts": {"budget": {"complete": True}}}, "parts.budget.units"),
    ],
)
def test_figures_of_other_machines_are_not_mixed(changes, words, tmp_path, dry_data, capsys):
    folder = tmp_path / "gpu"
    shutil.copytree(dry_data.cifar.parent, folder / "data")
    content = json.loads(make_record(dry_run=True).model_dump_json()) | changes
    (folder / "gpu.json").write_text(json.dumps(content))
    assert main(["bench", "gpu", "--dry-run", "--folder", str(folder)]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error


def test_an_unmeasured_target_is_said_to_be_so():
    table = targets_table(make_record())
    assert {row[2] for row in table.rows} == {"not measured yet"}
    assert "Not complete: shape_price, budget" in table.notes[0]
    assert Verdict("a").met is None


def test_the_base_is_timed_although_it_is_no_size_of_the_regime():
    work = replace(gpu_shapes.DRY, regime=Regime.from_sizes({32: 1.0}, Base(64, 8), "B+"), rounds=1)
    found = gpu_shapes.measure_budget("test_resnet", work, CPU)
    assert [(size.size_px, size.images, size.pixels) for size in found.sizes] == [(64, 8, 1.0), (32, 32, 1.0)]
    assert found.sizes[0].ratio.median == 1.0


def test_the_page_says_what_each_part_and_target_is():
    page = (Path(__file__).parents[3] / "bench/gpu/README.md").read_text(encoding="utf-8")
    for part in PARTS:
        assert f"`{part.name}`" in page
