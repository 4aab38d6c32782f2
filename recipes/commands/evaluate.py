"""Evaluate trained weights over image sizes."""

from __future__ import annotations

import argparse
import copy
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.algorithms.measurement.evaluation import Score, SizeScore, evaluate_sizes
from mixsize.display.console import plain_console
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader
from mixsize.recipes.build.data import (
    build_calibration_loader,
    build_eval_loader,
    count_by_class,
    count_classes,
    open_data,
    sizes_drawn,
)
from mixsize.recipes.build.devices import autocast, check_precision, join_ranks, torch_device
from mixsize.recipes.build.preparation import with_preparation
from mixsize.recipes.commands import eval_report
from mixsize.recipes.commands.eval_report import Accuracy, EvalRecord, SizeRow
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.flops import count_macs
from mixsize.recipes.models.network import check_sizes, network_stride, recipe_for, trained_network
from mixsize.recipes.models.weights import sha256
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.records.environment import environment
from mixsize.recipes.records.run_folder import find_recipe, find_weights
from mixsize.recipes.records.run_record import CALIBRATED, OWN
from mixsize.system.files import write_json, write_text
from mixsize.system.packages import explain
from mixsize.system.ranks import process_rank, share_cores

#: S = 224 + 32 m for m = -6..6 (MixSize paper, section 5).
PAPER_SIZES = tuple(range(32, 417, 32))


@dataclass(frozen=True)
class Job:
    """An evaluation that is ready to run.

    Attributes:
        recipe: the recipe of the evaluation; has a calibration if batch norm is calibrated.
        weights: the file of the weights.
        network: has these weights, and is on its device.
        images: the evaluation file.
        loaders: image size -> evaluation batches of this rank, sizes ascending.
        calibration: image size -> training batches that calibrate batch norm; None without calibration.
        calibration_batches: batches of these to use for a size, at most.
        trained_sizes_px: image sizes of the training; empty if there is no recipe of a run beside the weights.
        class_images: number of evaluation images of each class; empty where classes are not counted.
    """

    recipe: schema.Recipe
    weights: Path
    network: torch.nn.Module
    images: Beton
    loaders: dict[int, EvalLoader]
    calibration: dict[int, MixSizeLoader] | None
    calibration_batches: int
    trained_sizes_px: list[int]
    class_images: dict[str, int]

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read and check everything; the function returned evaluates."""
    others = [eval_report.read_record(path) for path in args.compare]
    if others:
        # Without matplotlib, a comparison ends before it measures.
        import_module("mixsize.recipes.commands.eval_plot")
    share_cores()
    job = build_job(
        args.checkpoint,
        args.items,
        sizes_px=args.sizes,
        calibrate=args.calibrate,
        calibration_batches=args.calibration_batches,
        per_class=args.per_class,
    )
    if process_rank()[0] == 0:
        print(f"{job.weights}: {job.recipe.model.name}, {job.images.num_samples:,} images of {job.images.path}")
        if args.calibrate and job.calibration is None:
            print(f"{job.recipe.model.name} has no batch norm that keeps statistics: there is nothing to calibrate")

    def evaluated() -> int:
        record = measure(job)
        if record is not None:
            report(record, others, args.out or _default_folder(job.weights))
        return 0

    return evaluated


def build_job(
    checkpoint: Path,
    items: Sequence[str] = (),
    *,
    sizes_px: Sequence[int] | None = None,
    calibrate: bool = True,
    calibration_batches: int | None = None,
    per_class: bool = False,
) -> Job:
    """Read the weights and the recipe, open the data, and check that they fit together.

    Args:
        checkpoint: a run's folder, one of its checkpoints, or any other file of weights.
        items: see :func:`~mixsize.recipes.config.compose.compose`; on top of the run's own recipe if there is one.
        sizes_px: image sizes in pixels; by default the paper's for centre crops, else the recipe's.
        calibrate: also evaluate with calibrated batch norm, if the network has batch norm.
        calibration_batches: forward passes that calibrate a size, on each rank, at most; by default the recipe's
            ``calibration.batches``.
        per_class: count by class too.

    Raises:
        ValueError: the parts do not fit each other, or this machine.
        OSError: a file cannot be read.
    """
    if calibration_batches is not None and (not calibrate or calibration_batches < 1):
        raise ValueError(
            f"--calibration-batches is {calibration_batches}; it must be at least 1, and has no effect without "
            "calibration"
        )
    weights = find_weights(checkpoint)
    recipe = recipe_for(weights, items)
    device = torch_device(recipe.device)
    check_precision(device, recipe.precision)
    train, images = _open(recipe.data, calibrate)
    num_classes = count_classes(recipe, *([train] if train else []), images)
    network = trained_network(recipe, weights, num_classes)
    recipe = with_preparation(recipe, network, train)
    sizes = sorted(set(sizes_px or _default_sizes(recipe)))
    check_sizes(network, recipe.model.name, sizes)
    memory_format = torch.channels_last if recipe.channels_last else torch.preserve_format
    network.to(device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    batches = {size_px: _batch_size(recipe, size_px) for size_px in sizes}
    calibration = None
    settings = recipe.calibration or schema.Calibration.model_validate({})
    if calibration_batches is not None:
        settings = settings.model_copy(update={"batches": calibration_batches})
    if calibrate and batch_norm_layers(network):
        assert train is not None
        recipe = recipe.model_copy(update={"calibration": settings})
        # Batch norm behind a global pooling sees one value of each image, and needs two to have a variance.
        least = 2 * process_rank()[1]
        calibration = {
            size_px: build_calibration_loader(recipe, train, size_px, max(least, batch), device)
            for size_px, batch in batches.items()
        }
    return Job(
        recipe=recipe,
        weights=weights,
        network=network,
        images=images,
        loaders={s: build_eval_loader(recipe, images, s, batch, device) for s, batch in batches.items()},
        calibration=calibration,
        calibration_batches=settings.batches,
        trained_sizes_px=_trained_sizes(weights, network),
        class_images=count_by_class(images, num_classes) if per_class else {},
    )


def measure(job: Job) -> EvalRecord | None:
    """Evaluate at every size, over all ranks.

    Returns:
        The record on rank zero; None on the others.
    """
    rank, world_size = process_rank()
    is_shown = rank == 0 and job.recipe.progress_bar
    started = time.perf_counter()
    # The ranks stay joined until the process ends: gloo can deadlock if its group is destroyed after a collective.
    join_ranks(job.device)

    def counted(batches: EvalLoader | MixSizeLoader, words: str, most: int | None = None) -> Iterable[Any]:
        total = min(len(batches), most or len(batches))
        hidden = not (is_shown and sys.stderr.isatty())
        return tqdm(batches, words, total, leave=False, unit="batch", dynamic_ncols=True, disable=hidden)

    def calibrating(size_px: int) -> Iterable[Any]:
        assert job.calibration is not None
        return counted(job.calibration[size_px], f"{size_px} px, calibrating", job.calibration_batches)

    scores = []
    # The Trainer evaluates and calibrates in this precision as well.
    with autocast(job.device, job.recipe.precision):
        for score in evaluate_sizes(
            job.network,
            lambda size_px: counted(job.loaders[size_px], f"{size_px} px"),
            list(job.loaders),
            calibration_loader_for=None if job.calibration is None else calibrating,
            calibration_batches=job.calibration_batches,
            num_classes=len(job.class_images),
        ):
            assert score.own.images == job.images.num_samples
            scores.append(score)
            if is_shown:
                tqdm.write(_line(score), file=sys.stderr)
    return _record(job, scores, time.perf_counter() - started, world_size) if rank == 0 else None


def report(record: EvalRecord, others: Sequence[EvalRecord], folder: Path) -> None:
    """Write the record, the CSV file and, where matplotlib is installed, the plot; print the table.

    Args:
        record: of this evaluation.
        others: of other evaluations, drawn into the same plot.
        folder: the files go here, named after the checkpoint.
    """
    stem = Path(record.checkpoint).stem
    paths = {"record": folder / f"{stem}.json", "csv": folder / f"{stem}.csv"}
    write_json(paths["record"], record.model_dump(mode="json"))
    write_text(paths["csv"], eval_report.to_csv(record))
    plain_console().print(eval_report.make_table(record))
    if record.class_images:
        plain_console().print(eval_report.class_table(record))
    for other in others:
        if other.data != record.data:
            print(f"note: {other.name} was evaluated on other images than {record.name}")
    for kind, path in paths.items():
        print(f"{kind}: {path}")
    print(f"plot: {_plot([record, *others], folder / f'{stem}.png')}")


def _plot(records: Sequence[EvalRecord], path: Path) -> str:
    """Draw, and return the path, or the reason why there is no plot."""
    try:
        from mixsize.display.figures import save
        from mixsize.recipes.commands.eval_plot import draw
    except ImportError as error:
        words = explain(error)
        if words is None:
            raise
        return f"not drawn; {words}"
    save(draw(records), path)
    return str(path)


def _default_folder(weights: Path) -> Path:
    """``eval`` in the run's folder, or here for weights without a run."""
    recipe = find_recipe(weights)
    if recipe is None:
        return Path("eval") / weights.resolve().stem
    folder = recipe.parent / "eval"
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _default_sizes(recipe: schema.Recipe) -> Sequence[int]:
    return PAPER_SIZES if isinstance(recipe.data.eval_transform, schema.CenterCrop) else recipe.evaluation.sizes


def _open(data: schema.Data, calibrate: bool) -> tuple[Beton | None, Beton]:
    """The training file, if it is needed, and the evaluation file."""
    normalizes = data.normalization == "file" and not (data.mean and data.std)
    if not calibrate and not normalizes:
        return None, Beton.open(data.eval)
    if not Path(data.train).exists():
        reason = "gives mean and std (data.normalization: file)" if normalizes else "calibrates batch norm"
        raise ValueError(
            f"data.train: no file {data.train}; it {reason}: give data.train, or --no-calibrate"
            + (" with data.mean and data.std" if normalizes else "")
        )
    return open_data(data)


def _batch_size(recipe: schema.Recipe, size_px: int) -> int:
    """Over all ranks: the recipe's, reduced for larger images so that no batch has more pixels than in training."""
    largest = max(recipe.regime.base.size_px, *recipe.evaluation.sizes)
    batch = recipe.evaluation.batch_size
    return min(batch, batch * largest**2 // size_px**2)


def _trained_sizes(weights: Path, network: torch.nn.Module) -> list[int]:
    recipe = find_recipe(weights)
    return sizes_drawn(build_regime(compose([str(recipe)]), network_stride(network), ranks=1)) if recipe else []


def _line(score: SizeScore) -> str:
    words = f"{score.size_px} px: top-1 %, {OWN} {100 * score.own.top1:.2f}"
    return words if score.calibrated is None else f"{words}, {CALIBRATED} {100 * score.calibrated.top1:.2f}"


def _record(job: Job, scores: Sequence[SizeScore], seconds: float, world_size: int) -> EvalRecord:
    weights = job.weights.resolve()
    shapes = copy.deepcopy(job.network).to("meta")
    return EvalRecord(
        record_version=eval_report.RECORD_VERSION,
        measured=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        name=job.recipe.name,
        checkpoint=weights.name,
        sha256=sha256(weights),
        recipe=job.recipe.model_dump(mode="json"),
        trained_sizes_px=job.trained_sizes_px,
        images=job.images.num_samples,
        data=job.images.fingerprint,
        calibration_batches=job.calibration_batches if job.calibration else None,
        seconds=seconds,
        sizes=[
            SizeRow(
                size_px=score.size_px,
                macs=count_macs(shapes, score.size_px),
                own=_accuracy(score.own),
                calibrated=_accuracy(score.calibrated) if score.calibrated else None,
                calibration_images=score.calibration_images,
            )
            for score in scores
        ],
        environment=environment(world_size).model_dump(),
        class_images=job.class_images,
    )


def _accuracy(score: Score) -> Accuracy:
    loss = score.loss if math.isfinite(score.loss) else None
    return Accuracy(top1=score.top1, top5=score.top5, loss=loss, class_hits=list(score.class_hits))
