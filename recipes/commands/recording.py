"""The record of a run that has ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
from composer.utils import dist
from torchmetrics import Metric

from mixsize.algorithms.execution.composer_model import network_of
from mixsize.algorithms.regime.plan import plan_epoch
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.recipes.build.evaluators import evaluator_label
from mixsize.recipes.build.model import ACCURACY, LOSS, Accuracy
from mixsize.recipes.build.trainer import Run
from mixsize.recipes.planning.costs import Costs
from mixsize.recipes.records.environment import environment, peak_memory
from mixsize.recipes.records.run_record import PeakMemory, RunRecord, Seconds, ShapeRow


@dataclass(frozen=True)
class LastEvaluation:
    """Of a run, by size in pixels: top-1 accuracy as a fraction, and the hits of each class."""

    accuracy: dict[str, float]
    class_hits: dict[str, list[int]]


def last_evaluation(run: Run) -> LastEvaluation:
    """What the metrics of the last evaluation hold, over all ranks."""
    metrics = {str(size): _metrics(run, size)[ACCURACY] for size in run.recipe.evaluation.sizes}
    assert all(isinstance(metric, Accuracy) for metric in metrics.values())
    return LastEvaluation(
        {size: float(metric.compute()) for size, metric in metrics.items()},
        {size: cast(Accuracy, metric).hits_by_class() for size, metric in metrics.items()},
    )


def make_record(run: Run, source: tuple[str | None, bool | None], calibrated: LastEvaluation | None) -> RunRecord:
    """The record of a run, the same on every rank except for times.

    Args:
        run: has ended, with an evaluation that used the network's own batch-norm statistics.
        source: commit of the source tree, and whether tracked files differ from it.
        calibrated: with calibrated statistics; None without calibration.
    """
    state, own = run.trainer.state, last_evaluation(run)
    shapes = [
        ShapeRow(
            size_px=size,
            batch_size=batch,
            duplicates=duplicates,
            steps=steps,
            seconds=run.times.step_seconds((size, batch, duplicates)),
        )
        for (size, batch, duplicates), steps in sorted(run.sampling.shapes.items(), reverse=True)
    ]
    sizes = sorted({*run.recipe.evaluation.sizes, *(row.size_px for row in shapes)})
    costs = Costs(network_of(state), run.recipe.model.name)
    images, samples = run.loader.dataset.num_samples, int(state.timestamp.sample)
    return RunRecord(
        label=run.recipe.name,
        name=run.recipe.name,
        seed=run.recipe.seed,
        recipe=run.recipe.model_dump(mode="json"),
        train_images=images,
        eval_images=sum(run.class_images.values()),
        earlier_lengths=run.lengths.earlier,
        regime_digest=run.regime.digest(),
        plan_digest=plan_digest(run.regime, images, run.recipe.seed),
        sequence_crc=_agreed(run.sampling.sequence_crc),
        shapes=shapes,
        steps=int(state.timestamp.batch),
        epochs=int(state.timestamp.epoch),
        samples=samples,
        distinct_samples=distinct_samples(run.regime, images, run.recipe.seed, samples),
        pixels=sum(row.pixels for row in shapes),
        seconds=Seconds(training=run.clock.seconds, **run.times.seconds_so_far()),
        peak_memory_bytes=_largest(peak_memory()),
        weights="averaged" if run.ema is not None and run.ema.has_begun else "last",
        accuracy=own.accuracy,
        loss={str(size): float(_metrics(run, size)[LOSS].compute()) for size in run.recipe.evaluation.sizes},
        calibrated_accuracy=calibrated and calibrated.accuracy,
        class_images=run.class_images,
        class_hits=own.class_hits,
        calibrated_class_hits=calibrated and calibrated.class_hits,
        macs={str(size): macs for size in sizes if (macs := costs.macs(size)) is not None},
        curve=run.curve.points,
        gradient_norms=run.gradient_norms.rows(),
        commit=source[0],
        dirty=source[1],
        environment=environment(dist.get_world_size()),
    )


def plan_digest(regime: Regime | Progression, images: int, seed: int) -> str:
    """Twelve hexadecimal digits that identify a plan on any number of ranks.

    The digest covers the arguments and the first epoch as drawn, so it also changes with the code that draws.

    Args:
        regime: the regime.
        images: in the training data.
        seed: the run's.
    """
    plan = plan_epoch(regime.at_epoch(0), images, seed, 0)
    found = hashlib.sha256(f"{regime.digest()} {images} {seed}".encode())
    for drawn in (plan.size_px, plan.batch_size, plan.duplicates, plan.samples):
        found.update(drawn.astype("<i8").tobytes())
    return found.hexdigest()[:12]


def distinct_samples(regime: Regime | Progression, images: int, seed: int, samples: int) -> int:
    """The number of different images among the first ``samples`` drawn.

    Args:
        regime: the regime.
        images: in the training data.
        seed: the run's.
        samples: images drawn over all ranks; the duplicates of an image count once.
    """
    seen = np.zeros(images, dtype=bool)
    epoch, left = 0, samples
    while left and not seen.all():
        drawn = plan_epoch(regime.at_epoch(epoch), images, seed, epoch).samples[:left]
        seen[drawn] = True
        left -= len(drawn)
        epoch += 1
    return int(seen.sum())


def _agreed(sequence_crc: int) -> int:
    """The checksum of the shapes trained on, after a check that all ranks have the same."""
    of_ranks = dist.all_gather_object(sequence_crc)
    if len(set(of_ranks)) > 1:
        raise RuntimeError(f"the ranks trained on different shapes: checksums {of_ranks}")
    return sequence_crc


def _largest(mine: PeakMemory) -> PeakMemory:
    of_ranks = dist.all_gather_object(mine)
    host = [memory.host for memory in of_ranks if memory.host is not None]
    gpu = [memory.gpu for memory in of_ranks if memory.gpu is not None]
    return PeakMemory(host=max(host, default=None), gpu=max(gpu, default=None))


def _metrics(run: Run, size_px: int) -> dict[str, Metric]:
    return run.trainer.state.eval_metrics[evaluator_label(size_px)]
