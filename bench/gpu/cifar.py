"""CIFAR-10 under four regimes, three seeds each: the packaged suite ``cifar10_gpu``, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from mixsize.bench.gpu.part import Bench, Part, PartTable, Unit, UnitFigures, Verdict
from mixsize.bench.gpu.record import TrainedRun
from mixsize.bench.regimes.runner import Runner
from mixsize.bench.regimes.suite import Budget, Suite, load_suite
from mixsize.bench.regimes.suite_runs import SuiteRun, runs_of
from mixsize.bench.report.quantities import mean_and_spread
from mixsize.recipes.records.run_record import RUNS_FILE, RunRecord, by_label

SUITE = "cifar10_gpu"
FIXED, BPLUS, DPLUS = "fixed", "s28_bplus", "s28_dplus"
#: Sizes at which both mixes are to beat the fixed size.
SMALL_PX = (16, 24)
#: B+ is to need no more of the baseline's pixels than its shares and rounded batches say: 0.83x.
PIXELS_TARGET = 0.835
#: D+ is to take the baseline's steps, but for what whole batches of each size leave over: a hundredth.
STEPS_TARGET = 0.01

# A step or two of one of the suite's regimes, on digits in place of photographs.
_DRY_REGIMES = (BPLUS,)
_DRY_SIZES = (16, 32)
_DRY_PIXELS = 2 * 32**2 * 8
_DRY_ITEMS = (
    "model.name=cifar_resnet20",
    "precision=fp32",
    "device=cpu",
    "data.train_images=1437",
    "regime.base.batch_size=8",
    "calibration.batches=2",
)
_RUN_SECONDS = 120.0


def units(bench: Bench) -> list[Unit]:
    """One for each run, seed by seed."""
    suite = load_suite(SUITE).model_copy(update={"ranks": bench.ranks})
    extra = [f"data.train={bench.cifar / 'train.beton'}", f"data.eval={bench.cifar / 'test.beton'}"]
    if bench.dry_run:
        suite = _shrunk(suite)
        extra += _DRY_ITEMS
    folder = bench.folder / SUITE
    runs = runs_of(suite, folder, suite.seeds, [*extra, "progress_bar=false", *bench.items])
    runner = Runner(runs, folder / RUNS_FILE, lambda runner, run: None)
    return [Unit(f"{run.label}, seed {run.recipe.seed}", _RUN_SECONDS, partial(_train, runner, run)) for run in runs]


def _shrunk(suite: Suite) -> Suite:
    regimes = {label: suite.regimes[label] for label in _DRY_REGIMES}
    small = {"seeds": 1, "budget": Budget(pixels=_DRY_PIXELS), "evaluation_sizes": _DRY_SIZES}
    return suite.model_copy(update={"regimes": regimes, **small})


def _train(runner: Runner, run: SuiteRun) -> TrainedRun:
    record = runner.records.get(run.name)
    if record is None or not record.finished:
        record = runner.train_one(run)
    if not record.finished:
        raise RuntimeError(record.error)
    return TrainedRun(record=record)


def table(found: UnitFigures) -> PartTable:
    """Two rows for each regime: by the network's own batch-norm statistics, and by calibrated ones."""
    records = _records(found)
    rows = []
    for label, runs in records.items():
        first = runs[0]
        common = [
            f"{first.steps:,}",
            f"{_pixels(runs) / _pixels(records.get(FIXED, runs)):.2f}x",
            mean_and_spread([run.seconds.training for run in runs if run.seconds.training is not None], digits=0),
        ]
        for kind, accuracies in (
            ("own", [run.accuracy for run in runs]),
            ("calibrated", [run.calibrated_accuracy for run in runs if run.calibrated_accuracy]),
        ):
            if accuracies:
                cells = [mean_and_spread([100 * by_size[size] for by_size in accuracies]) for size in first.accuracy]
                rows.append([label, kind, str(len(runs)), *common, *cells])
    sizes = list(next(iter(records.values()))[0].accuracy)
    head = ["regime", "batch norm", "runs", "steps", "pixels", "seconds", *(f"{size} px" for size in sizes)]
    first = next(iter(records.values()))[0]
    model = first.recipe["model"]["name"]
    return PartTable(
        head,
        rows,
        [f"{model}, {first.epochs} epochs; top-1 in per cent, mean ± standard deviation where there are several runs."],
    )


def verdicts(found: UnitFigures) -> list[Verdict]:
    """Mixes by calibrated statistics, the fixed size by its own, as the paper reports them; means over the runs."""
    targets = {
        BPLUS: f"CIFAR-10: B+ at least the baseline's accuracy with 0.83x its pixels: {SUITE}",
        DPLUS: f"CIFAR-10: D+ above the baseline's accuracy at equal steps: {SUITE}",
    }
    small = f"CIFAR-10: B+ and D+ above the baseline at {' and '.join(map(str, SMALL_PX))} px: {SUITE}"
    records = _records(found)
    fixed = records.get(FIXED)
    if fixed is None:
        return [*(Verdict(target) for target in targets.values()), Verdict(small)]
    base_px = fixed[0].base_size_px
    rows = []
    for label, target in targets.items():
        runs = records.get(label)
        if runs is None:
            rows.append(Verdict(target))
            continue
        mine, base = _accuracy(runs, base_px), _accuracy(fixed, base_px)
        pixels = _pixels(runs) / _pixels(fixed)
        words = f"{100 * mine:.2f} against {100 * base:.2f} % at {base_px} px"
        if label == BPLUS:
            rows.append(Verdict(target, f"{words}, {pixels:.2f}x pixels", mine >= base and pixels <= PIXELS_TARGET))
        else:
            steps, base_steps = runs[0].steps, fixed[0].steps
            words = f"{words}, {steps:,} against {base_steps:,} steps"
            rows.append(Verdict(target, words, mine > base and abs(steps - base_steps) <= STEPS_TARGET * base_steps))
    mixes = [records[label] for label in (BPLUS, DPLUS) if label in records]
    if len(mixes) < 2 or not all(str(size) in fixed[0].accuracy for size in SMALL_PX):
        return [*rows, Verdict(small)]
    gains = [_accuracy(runs, size) - _accuracy(fixed, size) for runs in mixes for size in SMALL_PX]
    words = ", ".join(f"{100 * gain:+.2f}" for gain in gains) + " points"
    return [*rows, Verdict(small, words, min(gains) > 0)]


def _records(found: UnitFigures) -> dict[str, list[RunRecord]]:
    return by_label([unit.record for unit in found.values() if isinstance(unit, TrainedRun)])


def _accuracy(runs: Sequence[RunRecord], size_px: int) -> float:
    """The mean at a size; with calibrated statistics where the regime is not the fixed one."""
    calibrated = runs[0].label != FIXED
    return fmean(((run.calibrated_accuracy if calibrated else None) or run.accuracy)[str(size_px)] for run in runs)


def _pixels(runs: Sequence[RunRecord]) -> float:
    return fmean(run.pixels for run in runs if run.pixels is not None)


PART = Part(
    "cifar10",
    "CIFAR-10, ResNet-44: fixed, B+, D+ and progressive, 30 epochs, three seeds",
    units,
    table,
    verdicts,
    frozenset({"cifar"}),
)
