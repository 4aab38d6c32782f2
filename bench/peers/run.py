"""One run of a peer: the recipe's network, data, epochs, optimiser and learning rates, with the peer's own image sizes.

``mixsize bench peers`` starts it as a process of its own. All runs use Composer's Trainer, so that they differ in the
loader and the sizes only.

``composer``
    Composer's ``ProgressiveResizing`` with its defaults (from half the base's size, growing in the middle 30 % of the
    epochs, resized on the device) on torchvision's ``ImageFolder`` and PyTorch's ``DataLoader`` at the base's batch.
``timm``
    timm's scheduled batch sampler, constant: a size and its batch drawn for each step.
``timm_progressive``
    The same with timm's progressive window, which moves from the smallest size to the largest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from composer import Trainer
from composer.algorithms import ProgressiveResizing
from composer.core import Algorithm, Callback, DataSpec, State
from composer.loggers import Logger
from composer.utils import reproducibility
from timm.data.scheduled_sampler import ScheduledBatchSampler

from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training.epoch_schedule import EpochSchedule
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.bench.loader.torchvision_loader import normalisation, torchvision_loader
from mixsize.bench.peers.loaders import timm_loader, torchvision_augment
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.data import open_data
from mixsize.recipes.build.devices import check_precision, torch_device, trainer_precision
from mixsize.recipes.build.evaluators import build_evaluators, evaluator_label
from mixsize.recipes.build.model import ACCURACY, build_model
from mixsize.recipes.build.preparation import with_preparation
from mixsize.recipes.build.trainer import run_folder
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.regimes import FixedRegime
from mixsize.recipes.models.network import network_stride
from mixsize.recipes.models.optimizer import build_optimizer
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.planning.schedule import schedule_of_run
from mixsize.recipes.records.environment import environment
from mixsize.recipes.records.run_folder import RECORD_FILE
from mixsize.recipes.records.run_record import RunRecord, Seconds, ShapeRow
from mixsize.system.files import write_text
from mixsize.system.ranks import default_threads

Peer = Literal["composer", "timm", "timm_progressive"]
PEERS: tuple[Peer, ...] = get_args(Peer)
#: Peers that take their sizes from a regime.
MIXING: frozenset[Peer] = frozenset({"timm", "timm_progressive"})


class Shapes(Callback):
    """Counts the shapes that the network is trained on.

    Attributes:
        steps: (image side in pixels, batch) -> steps.
    """

    def __init__(self) -> None:
        self.steps: Counter[tuple[int, int]] = Counter()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Count the batch, which algorithms have resized by now."""
        images = state.batch[0]
        self.steps[int(images.shape[-1]), len(images)] += 1


class TimmEpoch(Callback):
    """Sets the epoch of timm's sampler before it is iterated, as timm's train script does."""

    def __init__(self, sampler: ScheduledBatchSampler) -> None:
        self._sampler = sampler

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Choose the epoch's schedule."""
        self._sampler.set_epoch(int(state.timestamp.epoch))


def mixed_regime(recipe: schema.Recipe, stride_px: int) -> Regime:
    """The sizes, batches and shares for timm.

    Raises:
        ValueError: a recipe that does not mix sizes without duplicates.
    """
    regime = build_regime(recipe, stride_px, ranks=1)
    if isinstance(regime, Regime) and len(regime.choices) > 1 and all(c.duplicates == 1 for c in regime.choices):
        return regime
    raise ValueError(
        f"regime.mode: timm's scheduled sizes are a mix of sizes without duplicates, got {recipe.regime.mode}; give "
        "a regime such as regime/s28_bplus"
    )


def train(peer: Peer, items: Sequence[str], images: Path) -> RunRecord:
    """Train and evaluate.

    Args:
        peer: the schedule of sizes.
        items: of the recipe with its regime: the sizes that timm mixes, or the base of Composer's sizes.
        images: class folders that ``data.train`` was written from.
    """
    recipe = compose(items)
    device = torch_device(recipe.device)
    check_precision(device, recipe.precision)
    train_images, evaluation = open_data(recipe.data)
    reproducibility.seed_all(recipe.seed)
    model = build_model(recipe, recipe.model.num_classes or train_images.num_classes, device)
    recipe = with_preparation(recipe, model.module, train_images)
    stride_px = network_stride(model.module)
    base_alone = FixedRegime.model_validate({"mode": "fixed", "base": recipe.regime.base})
    base_regime = build_regime(recipe.model_copy(update={"regime": base_alone}), stride_px, ranks=1)
    assert isinstance(base_regime, Regime)
    spec, extras = _loader(peer, images, recipe, train_images, stride_px)
    shapes, clock = Shapes(), TrainingClock()
    trainer = Trainer(
        model=model,
        train_dataloader=spec,
        device_train_microbatch_size=recipe.regime.base.batch_size,  # Required, without effect: nothing is split.
        eval_dataloader=build_evaluators(recipe, evaluation, stride_px, device),
        eval_interval=f"{recipe.evaluation.every_epochs}ep",
        optimizers=build_optimizer(recipe.optimizer, model.module, base_regime),
        algorithms=[
            *(part for part in extras if isinstance(part, Algorithm)),
            EpochSchedule(schedule_of_run(recipe, base_regime, train_images.num_samples)),
        ],
        callbacks=[*(part for part in extras if isinstance(part, Callback)), shapes, clock],
        max_duration=recipe.max_duration,
        seed=recipe.seed,
        precision=trainer_precision(device, recipe.precision),
        device={"auto": None, "cpu": "cpu", "gpu": "gpu"}[recipe.device],
        run_name=recipe.name,
        progress_bar=False,
        auto_log_hparams=False,
    )
    try:
        trainer.fit()
        return _record(recipe, trainer.state, shapes, clock, train_images.num_samples, evaluation.num_samples)
    finally:
        trainer.close()


def _loader(
    peer: Peer, images: Path, recipe: schema.Recipe, train_images: Beton, stride_px: int
) -> tuple[DataSpec, list[Algorithm | Callback]]:
    """The peer's batches, and the algorithms and callbacks that it adds to the Trainer."""
    data = recipe.data
    mean, std = data.mean, data.std
    assert mean is not None
    assert std is not None
    workers = recipe.loader.num_workers or default_threads()
    base = recipe.regime.base
    if peer == "composer":
        augment = torchvision_augment(data.augment, base.size_px, train_images)
        loader = torchvision_loader(images, augment, base.batch_size, workers)
        return _unsplit(loader, normalisation(mean, std)), [ProgressiveResizing()]
    regime = mixed_regime(recipe, stride_px)
    augments = [torchvision_augment(data.augment, choice.size_px, train_images) for choice in regime.choices]
    epochs = recipe.duration[0] if peer == "timm_progressive" else None
    sampler, scheduled = timm_loader(
        images, regime, augments, workers, mean, std, recipe.seed, progressive_epochs=epochs
    )
    return _unsplit(scheduled), [TimmEpoch(sampler)]


def _unsplit(loader: Iterable[Any], transform: Callable[[Any], Any] | None = None) -> DataSpec:
    return DataSpec(loader, batch_transforms=transform, split_batch=lambda batch, microbatch_size: [batch])


def _record(
    recipe: schema.Recipe, state: State, shapes: Shapes, clock: TrainingClock, train_images: int, eval_images: int
) -> RunRecord:
    rows = [
        ShapeRow(size_px=size, batch_size=batch, duplicates=1, steps=steps)
        for (size, batch), steps in sorted(shapes.steps.items(), reverse=True)
    ]
    return RunRecord(
        label=recipe.name,
        name=recipe.name,
        seed=recipe.seed,
        recipe=recipe.model_dump(mode="json"),
        train_images=train_images,
        eval_images=eval_images,
        steps=int(state.timestamp.batch),
        epochs=int(state.timestamp.epoch),
        samples=int(state.timestamp.sample),
        pixels=sum(row.pixels for row in rows),
        shapes=rows,
        seconds=Seconds(training=clock.seconds),
        accuracy={
            str(size): float(state.eval_metrics[evaluator_label(size)][ACCURACY].compute())
            for size in recipe.evaluation.sizes
        },
        environment=environment(1),
    )


def main(peer: Peer, images: str, items: Sequence[str]) -> None:
    """Train, and write the record into the run's folder."""
    torch.set_num_threads(default_threads())
    record = train(peer, items, Path(images))
    write_text(run_folder(compose(items)) / RECORD_FILE, record.model_dump_json())


if __name__ == "__main__":
    main(cast(Peer, sys.argv[1]), sys.argv[2], sys.argv[3:])
