"""One run of a peer: the recipe's network, data, epochs, optimiser and learning rates, with the peer's own image sizes.

Started by ``mixsize bench peers`` as a process of its own, in :data:`ENVIRONMENT`. All runs go through Composer's
Trainer, so that its clock times them alike and what differs is the loader and the sizes.

``composer``
    Composer's ``ProgressiveResizing`` as it comes (from half the base's size, growing in the middle 30 % of the epochs,
    resized on the device) on torchvision's ``ImageFolder`` and PyTorch's ``DataLoader`` at the base's batch.
``timm``
    timm's scheduled batch sampler, constant: a size and its batch drawn for each step.
``timm_progressive``
    The same with timm's progressive window, which moves from the smallest size to the largest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from composer import Trainer
from composer.algorithms import ProgressiveResizing
from composer.core import Algorithm, Callback, DataSpec, State
from composer.loggers import Logger
from composer.utils import reproducibility
from pydantic import BaseModel, ConfigDict
from timm.data.loader import PrefetchLoader

from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training.epoch_schedule import EpochSchedule
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.bench.peers.loaders import normalisation, timm_loader, torchvision_augment, torchvision_loader
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.pipeline.staging import IMAGENET_MEAN, IMAGENET_STD
from mixsize.recipes.build.data import build_evaluators, evaluator_label, open_data
from mixsize.recipes.build.devices import torch_device
from mixsize.recipes.build.model import ACCURACY, build_model
from mixsize.recipes.build.optimisation import build_optimizer, build_schedule, epochs_of
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.config.regimes import FixedRegime
from mixsize.recipes.models.network import network_stride
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.records.environment import environment
from mixsize.system.files import write_json
from mixsize.system.ranks import default_threads

Peer = Literal["composer", "timm", "timm_progressive"]
PEERS: tuple[Peer, ...] = get_args(Peer)
#: Importing FFCV starts numba's threads. Where they are TBB's and worker processes are forked beside them, numba waits
#: for them for ever at the interpreter's end; so a peer's process is started with another kind.
ENVIRONMENT = {"NUMBA_THREADING_LAYER": "omp"}
#: The peers that take their sizes from a regime.
MIXING: frozenset[Peer] = frozenset({"timm", "timm_progressive"})


class PeerJob(BaseModel):
    """What a process is to train.

    Attributes:
        peer: how sizes are scheduled.
        items: of the recipe, its regime included: for timm's the sizes it mixes, for Composer's the base.
        images: class folders that ``data.train`` was written from.
        out: where the record goes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    peer: Peer
    items: tuple[str, ...]
    images: Path
    out: Path


class Shapes(Callback):
    """Counts the shapes that the network is trained on, as they are when the step begins.

    Attributes:
        steps: (image side in pixels, batch) -> steps.
    """

    def __init__(self) -> None:
        self.steps: Counter[tuple[int, int]] = Counter()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Every algorithm that resizes has done so."""
        images = state.batch[0]
        self.steps[int(images.shape[-1]), len(images)] += 1


class TimmEpoch(Callback):
    """Tells timm's sampler the epoch before it is iterated, as timm's train script does."""

    def __init__(self, loader: PrefetchLoader) -> None:
        self._sampler = loader.batch_sampler

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Choose the epoch's schedule."""
        self._sampler.set_epoch(int(state.timestamp.epoch))


def mixed_regime(recipe: schema.Recipe, stride_px: int) -> Regime:
    """The sizes, batches and shares that timm is given.

    Raises:
        ValueError: a recipe that does not mix sizes without duplicates.
    """
    regime = build_regime(recipe, stride_px, ranks=1)
    mixes = isinstance(regime, Regime) and len(regime.choices) > 1
    if not (mixes and all(choice.duplicates == 1 for choice in regime.choices)):
        raise ValueError(
            f"timm's scheduled sizes are a mix of sizes without duplicates, which {recipe.regime.mode} is not; give a "
            "regime such as regime/s28_bplus"
        )
    return regime


def train(job: PeerJob) -> dict[str, Any]:
    """Train and evaluate; returns the record, in plain values, with the keys that a run's own record has too."""
    recipe = compose(job.items)
    device = torch_device(recipe.device)
    train_images, evaluation = open_data(recipe.data)
    reproducibility.seed_all(recipe.seed)
    model = build_model(recipe, recipe.model.num_classes or train_images.num_classes)
    stride_px = network_stride(model.module)
    base_regime = build_regime(recipe.model_copy(update={"regime": fixed_at_base(recipe)}), stride_px, ranks=1)
    assert isinstance(base_regime, Regime)
    spec, extras = _loader(job, recipe, train_images, stride_px)
    shapes, clock = Shapes(), TrainingClock()
    trainer = Trainer(
        model=model,
        train_dataloader=spec,
        device_train_microbatch_size=recipe.regime.base.batch_size,  # Asked for, and of no effect: nothing is split.
        eval_dataloader=build_evaluators(recipe, train_images, evaluation, stride_px, device),
        eval_interval=f"{recipe.evaluation.every_epochs}ep",
        optimizers=build_optimizer(recipe.optimizer, model.module, base_regime),
        algorithms=[
            *(part for part in extras if isinstance(part, Algorithm)),
            EpochSchedule(build_schedule(recipe, epochs_of(recipe, base_regime, train_images.num_samples))),
        ],
        callbacks=[*(part for part in extras if isinstance(part, Callback)), shapes, clock],
        max_duration=recipe.max_duration,
        seed=recipe.seed,
        precision=recipe.precision,
        device={"auto": None, "cpu": "cpu", "gpu": "gpu"}[recipe.device],
        run_name=recipe.name,
        progress_bar=False,
        auto_log_hparams=False,
    )
    try:
        trainer.fit()
        return _record(job, recipe, trainer.state, shapes, clock)
    finally:
        trainer.close()


def fixed_at_base(recipe: schema.Recipe) -> FixedRegime:
    """The recipe's baseline as a regime."""
    return FixedRegime(mode="fixed", base=recipe.regime.base)


def _loader(
    job: PeerJob, recipe: schema.Recipe, train_images: Beton, stride_px: int
) -> tuple[DataSpec, list[Algorithm | Callback]]:
    """The peer's batches, and what it adds to the Trainer."""
    info, data = train_images.info, recipe.data
    mean = data.mean or (info.mean if info else IMAGENET_MEAN)
    std = data.std or (info.std if info else IMAGENET_STD)
    workers = recipe.loader.num_workers or default_threads()
    base = recipe.regime.base
    if job.peer == "composer":
        augment = torchvision_augment(data.augment, base.size_px, train_images)
        loader = torchvision_loader(job.images, augment, base.batch_size, workers)
        return _unsplit(loader, normalisation(mean, std)), [ProgressiveResizing()]
    regime = mixed_regime(recipe, stride_px)
    scheduled = timm_loader(
        job.images,
        regime,
        [torchvision_augment(data.augment, choice.size_px, train_images) for choice in regime.choices],
        workers,
        mean,
        std,
        recipe.seed,
        progressive_epochs=recipe.duration[0] if job.peer == "timm_progressive" else None,
    )
    return _unsplit(scheduled), [TimmEpoch(scheduled)]


def _unsplit(loader: Iterable[Any], transform: Callable[[Any], Any] | None = None) -> DataSpec:
    return DataSpec(loader, batch_transforms=transform, split_batch=lambda batch, microbatch_size: [batch])


def _record(job: PeerJob, recipe: schema.Recipe, state: State, shapes: Shapes, clock: TrainingClock) -> dict[str, Any]:
    rows = [
        {"size_px": size, "batch_size": batch, "duplicates": 1, "steps": steps}
        for (size, batch), steps in sorted(shapes.steps.items(), reverse=True)
    ]
    return {
        "peer": job.peer,
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "steps": int(state.timestamp.batch),
        "epochs": int(state.timestamp.epoch),
        "samples": int(state.timestamp.sample),
        "pixels": sum(row["steps"] * row["size_px"] ** 2 * row["batch_size"] for row in rows),
        "shapes": rows,
        "seconds": {"training": clock.seconds},
        "accuracy": {
            str(size): float(state.eval_metrics[evaluator_label(size)][ACCURACY].compute())
            for size in recipe.evaluation.sizes
        },
        "environment": environment(1).model_dump(),
    }


def main(file: Path) -> None:
    """Train what a job's file says."""
    torch.set_num_threads(default_threads())
    job = PeerJob.model_validate_json(file.read_text(encoding="utf-8"))
    write_json(job.out, train(job))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
