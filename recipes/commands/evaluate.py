"""Evaluate trained weights over image sizes."""

from __future__ import annotations

import argparse
import copy
import datetime
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.core import get_precision_context
from tqdm import tqdm

from mixsize.algorithms.batchnorm.layers import batch_norm_layers
from mixsize.algorithms.measurement.evaluation import Score, SizeScore, evaluate_sizes
from mixsize.display.console import plain_console
from mixsize.display.figures import save
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader
from mixsize.recipes.build.trainer import (
    build_calibration_loader,
    build_eval_loader,
    join_ranks,
    open_data,
    torch_device,
)
from mixsize.recipes.callbacks.lost_ranks import naming_lost_ranks
from mixsize.recipes.commands import eval_report
from mixsize.recipes.commands.arguments import add_checkpoint
from mixsize.recipes.commands.eval_report import Accuracy, EvalRecord, SizeRow
from mixsize.recipes.commands.train import share_cores
from mixsize.recipes.config import schema
from mixsize.recipes.config.compose import compose
from mixsize.recipes.models.flops import count_macs
from mixsize.recipes.models.network import check_sizes, network_stride
from mixsize.recipes.models.trained import recipe_for, trained_network
from mixsize.recipes.models.weights import find_recipe, find_weights, sha256
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.records.environment import environment
from mixsize.system.files import write_json, write_text
from mixsize.system.ranks import process_rank

#: S = 224 + 32 m for m = -6..6 (MixSize paper, section 5).
PAPER_SIZES = tuple(range(32, 417, 32))
#: The paper's.
CALIBRATION_BATCHES = 200
_SIZES = re.compile(r"(\d+)(?::(\d+):(\d+))?")


@dataclass(frozen=True)
class Job:
    """An evaluation whose parts were found to fit together.

    Attributes:
        recipe: that it goes by.
        weights: the file.
        network: with these weights, on its device.
        images: that it is evaluated on.
        loaders: image side -> evaluation batches on this rank, sides rising.
        calibration: image side -> training batches that calibrate it; None to leave calibration out.
        calibration_batches: of those, how many to use, at most.
        trained_sizes_px: image sides that the run trained at; empty where no run's recipe says them.
    """

    recipe: schema.Recipe
    weights: Path
    network: torch.nn.Module
    images: Beton
    loaders: dict[int, EvalLoader]
    calibration: dict[int, MixSizeLoader] | None
    calibration_batches: int
    trained_sizes_px: list[int]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize eval``."""
    add_checkpoint(parser)
    parser.add_argument(
        "--sizes",
        type=parse_sizes,
        metavar="LIST",
        help="START:STOP:STEP in pixels, STOP included, or sides with commas between, or both; by default 32:416:32 "
        "for centre crops and else the recipe's evaluation.sizes",
    )
    parser.add_argument(
        "--no-calibrate",
        dest="calibrate",
        action="store_false",
        help="leave out the accuracy with batch norm calibrated at each size; if data.mean and data.std are given, "
        "data.train need not exist",
    )
    parser.add_argument(
        "--calibration-batches",
        type=int,
        metavar="N",
        help=f"batches of training images that calibrate a size; by default the recipe's, else {CALIBRATION_BATCHES}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the record (JSON), the CSV file and the plot go; by default eval/ in the run's folder, or "
        "eval/CHECKPOINT/ here for other files",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORD",
        help="records of other evaluations to draw into the same plot",
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Bring everything together; what is returned evaluates it."""
    others = [eval_report.read_record(path) for path in args.compare]
    share_cores()
    job = build_job(
        args.checkpoint,
        args.items,
        sizes_px=args.sizes,
        calibrate=args.calibrate,
        calibration_batches=args.calibration_batches,
    )
    out = args.out or default_folder(job.weights)
    if process_rank()[0] == 0:
        print(f"{job.weights}: {job.recipe.model.name}, {job.images.num_samples:,} images of {job.images.path}")
        if args.calibrate and job.calibration is None:
            print(f"{job.recipe.model.name} has no batch norm that keeps statistics: there is nothing to calibrate")

    def evaluated() -> int:
        record = measure(job)
        if record is not None:
            report(record, others, out)
        return 0

    return evaluated


def parse_sizes(text: str) -> list[int]:
    """Image sides in pixels, rising, each once, out of ``32:416:32``, ``160,224,288`` or both with commas between.

    Raises:
        argparse.ArgumentTypeError: another form, a side below 1, or a range that does not end in its stop.
    """
    sizes: set[int] = set()
    for part in text.split(","):
        match = _SIZES.fullmatch(part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is neither a number of pixels nor START:STOP:STEP, as in 32:416:32"
            )
        start, stop, step = (int(number) if number else None for number in match.groups())
        if stop is None or step is None:
            stop, step = start, 1
        if start < 1 or step < 1 or stop < start:
            raise argparse.ArgumentTypeError(f"{part.strip()!r}: needs START and STEP of at least 1 and STOP >= START")
        if (stop - start) % step:
            last = stop - (stop - start) % step
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} does not end in {stop}: write {start}:{last}:{step} or {start}:{last + step}:{step}"
            )
        sizes.update(range(start, stop + 1, step))
    return sorted(sizes)


def build_job(
    checkpoint: Path,
    items: Sequence[str] = (),
    *,
    sizes_px: Sequence[int] | None = None,
    calibrate: bool = True,
    calibration_batches: int | None = None,
) -> Job:
    """Read weights and recipe, open the data, and see that all of it fits.

    Args:
        checkpoint: a run's folder, one of its checkpoints, or any other file of weights.
        items: see :func:`~mixsize.recipes.config.compose.compose`; on top of the run's own recipe where there is one.
        sizes_px: image sides in pixels; by default the paper's sweep for centre crops, else the recipe's.
        calibrate: whether to evaluate with calibrated batch norm too; has no effect on a network without.
        calibration_batches: forward passes that calibrate a size, on each rank, at most; by default the recipe's, else
            the paper's 200.

    Raises:
        ValueError: parts that do not fit each other, or this machine.
        OSError: a file that cannot be read.
    """
    if calibration_batches is not None and (not calibrate or calibration_batches < 1):
        raise ValueError(
            f"--calibration-batches is {calibration_batches}; it must be at least 1, and has no effect without "
            "calibration"
        )
    weights = find_weights(checkpoint)
    own_recipe = find_recipe(weights)
    recipe = recipe_for(weights, items)
    device = torch_device(recipe.device)
    if device.type == "cpu" and recipe.precision != "fp32":
        raise ValueError(f"precision: {recipe.precision} needs a GPU, and this runs on the CPU; give precision=fp32")
    train, images = _open(recipe.data, calibrate)
    num_classes = recipe.model.num_classes or (train or images).num_classes
    for beton in filter(None, (train, images)):
        beton.check_labels(num_classes)
    network = trained_network(recipe, weights, num_classes)
    sizes = sorted(set(sizes_px or _default_sizes(recipe)))
    check_sizes(network, recipe.model.name, sizes)
    loaders = {
        size_px: build_eval_loader(recipe, train, images, size_px, _batch_size(recipe, size_px), device)
        for size_px in sizes
    }
    calibration = None
    if calibrate and batch_norm_layers(network):
        assert train is not None
        calibration = {size_px: _calibration_loader(recipe, train, size_px, device) for size_px in sizes}
    network.to(device, memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)
    batches = calibration_batches or (recipe.calibration.batches if recipe.calibration else CALIBRATION_BATCHES)
    trained = _trained_sizes(own_recipe, network_stride(network)) if own_recipe else []
    return Job(recipe, weights, network, images, loaders, calibration, batches, trained)


def measure(job: Job) -> EvalRecord | None:
    """Evaluate at every size, over all ranks.

    Returns:
        the record, on the first rank; None on the others.

    Raises:
        ConnectionError: another rank has ended.
    """
    rank, world_size = process_rank()
    started = time.perf_counter()
    # They stay joined to the process's end: gloo deadlocks where its group is destroyed soon after a collective.
    with naming_lost_ranks():
        join_ranks(job.device)
    bar = _Bar(_passes(job), shown=rank == 0 and job.recipe.progress_bar)
    rows = evaluate_sizes(
        job.network,
        lambda size_px: bar.over(job.loaders[size_px], f"{size_px} px"),
        list(job.loaders),
        calibration_loader_for=_calibration_at(job, bar),
        calibration_batches=job.calibration_batches,
    )
    scores = []
    try:
        # As the Trainer evaluates, and calibrates.
        with naming_lost_ranks(), get_precision_context(job.recipe.precision):
            for score in rows:
                assert score.own.images == job.images.num_samples
                scores.append(score)
                bar.tell(score)
    finally:
        bar.close()
    return _record(job, scores, time.perf_counter() - started, world_size) if rank == 0 else None


def report(record: EvalRecord, others: Sequence[EvalRecord], folder: Path) -> None:
    """Write the record, the CSV file and the plot, and print the table.

    Args:
        record: of this evaluation.
        others: further ones, drawn into the same plot.
        folder: where files named after the checkpoint go.
    """
    stem = folder / Path(record.checkpoint).stem
    paths = {"record": stem.with_name(f"{stem.name}.json"), "csv": stem.with_name(f"{stem.name}.csv")}
    paths["plot"] = stem.with_name(f"{stem.name}.png")
    write_json(paths["record"], record.model_dump(mode="json"))
    write_text(paths["csv"], eval_report.to_csv(record))
    save(eval_report.draw([record, *others]), paths["plot"])
    plain_console().print(eval_report.make_table(record))
    for other in others:
        if other.data != record.data:
            print(f"note: {other.name} was evaluated on other images than {record.name}")
    for what, path in paths.items():
        print(f"{what}: {path}")


def default_folder(weights: Path) -> Path:
    """Where an evaluation of these weights is kept: with their run, or here."""
    recipe = find_recipe(weights)
    if recipe is None:
        return Path("eval") / weights.resolve().stem
    folder = recipe.parent / "eval"
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


class _Bar:
    """On standard error, a bar over the batches of all sizes where it is a terminal, and a line for each size.

    Args:
        total: batches.
        shown: whether to draw at all.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self._bar = tqdm(
            total=total,
            unit="batch",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not (shown and sys.stderr.isatty()),  # A log file wants the lines alone.
        )
        self._tells = shown

    def over(self, batches: Iterable[Any], words: str) -> Iterator[Any]:
        self._bar.set_description(words, refresh=False)
        for batch in batches:
            # Before the batch: whoever takes only so many does not come back after the last.
            self._bar.update()
            yield batch

    def tell(self, score: SizeScore) -> None:
        if not self._tells:
            return
        words = f"{score.size_px} px: top-1 {100 * score.own.top1:.2f} %"
        if score.calibrated is not None:
            words += f", calibrated {100 * score.calibrated.top1:.2f} %"
        self._bar.write(words, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _default_sizes(recipe: schema.Recipe) -> Sequence[int]:
    return PAPER_SIZES if isinstance(recipe.data.eval_transform, schema.CenterCrop) else recipe.evaluation.sizes


def _open(data: schema.Data, calibrate: bool) -> tuple[Beton | None, Beton]:
    """The training file, where it is needed, and the evaluation file."""
    if not calibrate and data.mean and data.std:
        return None, Beton.open(data.eval)
    if not Path(data.train).exists():
        raise ValueError(
            f"data.train: no file {data.train}; it is what batch norm is calibrated on and what mean and std are taken "
            "from: give data.train, or --no-calibrate with data.mean and data.std"
        )
    return open_data(data)


def _batch_size(recipe: schema.Recipe, size_px: int) -> int:
    """Over all ranks: the recipe's, less beyond its largest size, so that no batch has more pixels than there."""
    largest = max(recipe.regime.base.size_px, *recipe.evaluation.sizes)
    batch = recipe.evaluation.batch_size
    return min(batch, batch * largest**2 // size_px**2)


def _calibration_loader(recipe: schema.Recipe, train: Beton, size_px: int, device: torch.device) -> MixSizeLoader:
    # Batch norm behind a global pooling sees one value of each image, and needs two to have a variance.
    batch = max(2 * process_rank()[1], _batch_size(recipe, size_px))
    bounded = recipe.evaluation.model_copy(update={"batch_size": batch})
    return build_calibration_loader(recipe.model_copy(update={"evaluation": bounded}), train, size_px, device)


def _trained_sizes(own_recipe: Path, stride_px: int) -> list[int]:
    regime = build_regime(compose([str(own_recipe)]), stride_px, ranks=1)
    return sorted({choice.size_px for part in regime.regimes for choice in part.choices})


def _calibration_at(job: Job, bar: _Bar) -> Callable[[int], Iterable[Any]] | None:
    calibration = job.calibration
    if calibration is None:
        return None
    return lambda size_px: bar.over(calibration[size_px], f"{size_px} px, calibrating")


def _passes(job: Job) -> int:
    """Batches of all sizes on this rank."""
    evaluation = sum(map(len, job.loaders.values()))
    if job.calibration is None:
        return evaluation
    return 2 * evaluation + sum(min(job.calibration_batches, len(loader)) for loader in job.calibration.values())


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
    )


def _accuracy(score: Score) -> Accuracy:
    return Accuracy(top1=score.top1, top5=score.top5, loss=score.loss if math.isfinite(score.loss) else None)
