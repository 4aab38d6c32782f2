"""CIFAR-10 under four regimes: the packaged suite ``cifar10_gpu``, run by run."""

from __future__ import annotations

from functools import partial

from mixsize.bench.gpu.case import Case, Row, Setup
from mixsize.bench.regimes.runner import Runner
from mixsize.bench.regimes.suite import Budget, load_suite
from mixsize.bench.regimes.suite_runs import SuiteRun, runs_of
from mixsize.recipes.records.run_record import RUNS_FILE

SUITE = "cifar10_gpu"
_RUN_SECONDS = 120.0
#: A dry run trains one regime for two steps on digits.
_DRY_REGIME = "s28_bplus"
_DRY_SUITE = {"seeds": 1, "budget": Budget.model_validate({"pixels": 2 * 32**2 * 8}), "evaluation_sizes": (16, 32)}
_DRY_ITEMS = (
    "model.name=cifar_resnet20",
    "precision=fp32",
    "device=cpu",
    "data.train_images=1437",
    "regime.base.batch_size=8",
    "calibration.batches=2",
)


def cases(setup: Setup) -> list[Case]:
    """One for each run, seed by seed. Runs that ended before are not trained again."""
    suite = load_suite(SUITE)
    items = [f"data.train={setup.cifar}/train.beton", f"data.eval={setup.cifar}/test.beton", "progress_bar=false"]
    if setup.dry_run:
        suite = suite.model_copy(update={**_DRY_SUITE, "regimes": {_DRY_REGIME: suite.regimes[_DRY_REGIME]}})
        items += _DRY_ITEMS
    folder = setup.folder / SUITE
    runs = runs_of(suite, folder, suite.seeds, items)
    runner = Runner(runs, folder / RUNS_FILE, lambda runner, run: None)
    return [
        Case("cifar10", f"{run.label}, seed {run.recipe.seed}", _RUN_SECONDS, partial(train, runner, run))
        for run in runs
    ]


def train(runner: Runner, run: SuiteRun) -> list[Row]:
    """Train a run unless it has ended; a row by its own batch-norm statistics, one by calibrated ones.

    Raises:
        RuntimeError: the run failed; the words are its own.
    """
    record = runner.records.get(run.name)
    if record is None or not record.finished:
        record = runner.train_one(run)
    if not record.finished:
        raise RuntimeError(record.error)
    common = {
        "steps": record.steps,
        "gigapixels": None if record.pixels is None else record.pixels / 1e9,
        "training_s": record.seconds.training,
    }
    accuracies = {"own": record.accuracy, "calibrated": record.calibrated_accuracy or {}}
    return [
        {**common, "batch_norm": kind, **{f"{size}_px": 100 * value for size, value in by_size.items()}}
        for kind, by_size in accuracies.items()
        if by_size
    ]
