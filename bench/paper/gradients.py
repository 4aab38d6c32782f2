"""How alike gradients are between image sizes and between images: the paper's table 2 for any recipe and checkpoint.

Gradients are those of the recipe's loss over its own training batches, in float32, without weight decay; see
:func:`mixsize.algorithms.compare_gradients` for the state of the network. Each batch is cut by the recipe's
augmentation, in the same windows at every size.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

from mixsize.algorithms.measurement.gradients import Correlation, GradientComparison, compare_gradients
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.loader import MixSizeLoader
from mixsize.recipes.build.data import build_augment, filled
from mixsize.recipes.build.devices import torch_device
from mixsize.recipes.build.preparation import with_preparation
from mixsize.recipes.commands.arguments import add_checkpoint, parse_sizes
from mixsize.recipes.config import schema
from mixsize.recipes.models.network import check_sizes, network_stride, recipe_for, trained_network
from mixsize.recipes.models.weights import sha256
from mixsize.recipes.records.run_folder import CHECKPOINT_FOLDER, find_weights, saved_checkpoints

PAPER = (
    "For orientation, the paper's table 2 (ResNet-44, CIFAR-10, epochs 1 / 50 / 100): same images at 32 and 24 px "
    "0.20 / 0.08 / 0.03, different images at 32 px 0.086 / 0.02 / -0.004; variance at 32 px 1.03e-6 / 1.44e-6 / "
    "6.24e-7, at 24 px 1.95e-6 / 6.34e-6 / 2.26e-5."
)
#: The paper compares 32 px with 24.
_PAPER_RATIO = 24 / 32
#: Checkpoints that fit beside each other on a terminal of 80 columns.
_BESIDE = 3
_EPOCH = re.compile(r"ep(\d+)-ba\d+\.pt")


@dataclass(frozen=True)
class Job:
    """A comparison whose parts fit together.

    Attributes:
        recipe: gives network, loss and data.
        weights: the checkpoints, a column of the table each.
        train: the training images.
        num_classes: outputs of the network.
        sizes_px: image sides in pixels, falling.
        batch_size: images in a batch.
        batches: batches at each size.
        device: where gradients are computed.
    """

    recipe: schema.Recipe
    weights: list[Path]
    train: Beton
    num_classes: int
    sizes_px: list[int]
    batch_size: int
    batches: int
    device: torch.device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench gradients``."""
    add_checkpoint(parser)
    parser.add_argument(
        "--sizes",
        type=parse_sizes,
        metavar="LIST",
        help="image sides in pixels, as for mixsize eval; by default the base's and 3/4 of it, the paper's 32 and 24",
    )
    parser.add_argument("--batches", type=int, default=20, metavar="N", help="batches at each size (default: 20)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images in a batch; by default the base's")
    parser.add_argument(
        "--every-checkpoint",
        action="store_true",
        help="a column for each checkpoint that the run's folder holds (output.keep_checkpoints=0 keeps them all)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result file; by default bench/results/ with hardware and date"
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Read recipe, weights and images; the returned function measures."""
    job = build_job(
        args.checkpoint,
        args.items,
        sizes_px=args.sizes,
        batches=args.batches,
        batch_size=args.batch_size,
        every_checkpoint=args.every_checkpoint,
    )

    def measured() -> int:
        result = measure(job)
        print_tables(result, plain_console())
        keep_result(args.out, "gradients", result)
        return 0

    return measured


def build_job(
    checkpoint: Path,
    items: Sequence[str] = (),
    *,
    sizes_px: Sequence[int] | None = None,
    batches: int = 20,
    batch_size: int | None = None,
    every_checkpoint: bool = False,
) -> Job:
    """Read the recipe, open the training images and check that they fit; arguments as on the command line.

    Raises:
        ValueError: parts that do not fit each other, or this machine.
        OSError: a file that cannot be read.
    """
    if batches < 2:
        raise ValueError(f"--batches is {batches}; it must be at least 2, as different images are compared")
    if batch_size is not None and batch_size < 2:
        raise ValueError(f"--batch-size is {batch_size}; it must be at least 2, as batch norm has no variance of one")
    weights = _every_checkpoint(checkpoint) if every_checkpoint else [find_weights(checkpoint)]
    recipe = recipe_for(weights[-1], items)
    train = Beton.open(recipe.data.train)
    num_classes = recipe.model.num_classes or train.num_classes
    train.check_labels(num_classes)
    network = trained_network(recipe, weights[-1], num_classes)
    recipe = with_preparation(recipe, network, train)
    base = recipe.regime.base
    sizes = sorted(set(sizes_px or _default_sizes(base.size_px, network_stride(network))), reverse=True)
    check_sizes(network, recipe.model.name, sizes)
    batch_size = batch_size or base.batch_size
    if batches * batch_size > train.num_samples:
        raise ValueError(
            f"{batches} batches of {batch_size} take {batches * batch_size:,} images and {recipe.data.train} has "
            f"{train.num_samples:,}; give fewer --batches or a smaller --batch-size"
        )
    return Job(recipe, weights, train, num_classes, sizes, batch_size, batches, torch_device(recipe.device))


def measure(job: Job) -> dict[str, Any]:
    """Compare the gradients of every checkpoint; returns the result in plain values."""
    layout = torch.channels_last if job.recipe.channels_last else torch.preserve_format
    loss = partial(F.cross_entropy, label_smoothing=job.recipe.loss.label_smoothing)
    columns = []
    for weights in job.weights:
        network = trained_network(job.recipe, weights, job.num_classes)
        network.to(job.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        columns.append({**_origin(weights), **_plain(compare_gradients(network, same_images(job), job.sizes_px, loss))})
    return {
        "name": job.recipe.name,
        "recipe": job.recipe.model_dump(mode="json"),
        "images": job.train.num_samples,
        "sizes_px": job.sizes_px,
        "batch_size": job.batch_size,
        "batches": job.batches,
        "checkpoints": columns,
    }


def same_images(job: Job) -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Batches as size -> (images, classes): the same images at every size, other images in every batch."""
    data = job.recipe.data
    loaders = [
        MixSizeLoader(
            job.train,
            Regime.fixed(Base(size_px, job.batch_size)),
            augment=build_augment(data.augment),
            mean=filled(data.mean),
            std=filled(data.std),
            seed=job.recipe.seed,
            num_workers=job.recipe.loader.num_workers,
            batches_ahead=1,
            device=job.device,
            channels_last=job.recipe.channels_last,
        )
        for size_px in job.sizes_px
    ]
    for batch in islice(zip(*loaders, strict=True), job.batches):
        # Seed and epoch alone order a plan's images.
        assert all(torch.equal(labels, batch[0][1]) for _, labels in batch)
        yield dict(zip(job.sizes_px, batch, strict=True))


def table_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows as in the paper's table 2: correlations, then variances; a column for each checkpoint."""
    columns = result["checkpoints"]
    rows = []
    for index, row in enumerate(columns[0]["between_sizes"]):
        larger, smaller = row["sizes_px"]
        cells = (_figure(column["between_sizes"][index]) for column in columns)
        rows.append([f"same images, {larger} and {smaller} px", *cells])
    for index, row in enumerate(columns[0]["between_images"]):
        cells = (_figure(column["between_images"][index]) for column in columns)
        rows.append([f"different images, {row['size_px']} px", *cells])
    for index, row in enumerate(columns[0]["variance"]):
        cells = (f"{column['variance'][index]['value']:.2e}" for column in columns)
        rows.append([f"variance, {row['size_px']} px", *cells])
    names = [row["checkpoint"] if row["epoch"] is None else f"epoch {row['epoch']}" for row in columns]
    return ["rank correlation", *names], rows


def setting_words(result: dict[str, Any]) -> str:
    """The setting of a result and the meaning of its figures, in sentences."""
    parameters = result["checkpoints"][0]["parameters"]
    return (
        f"{result['recipe']['model']['name']}, {parameters:,} parameters, {result['batches']} batches of "
        f"{result['batch_size']} training images, batch norm by the batch's own statistics. Spearman's rank "
        "correlation of whole gradients: mean ± standard deviation over batches (same images) or over pairs of "
        "consecutive batches (different images). Variance of a gradient's component over batches, mean over components."
    )


def print_tables(result: dict[str, Any], console: Console) -> None:
    """The table, three checkpoints beside each other, and the paper's own figures below."""
    columns = result["checkpoints"]
    for first in range(0, len(columns), _BESIDE):
        head, rows = table_rows({**result, "checkpoints": columns[first : first + _BESIDE]})
        title = f"{result['name']}: gradients between sizes and between images"
        print_table(console, head, rows, title=title)
    console.print(setting_words(result))
    console.print(PAPER)


def _default_sizes(base_px: int, stride_px: int) -> list[int]:
    smaller = max(1, round(base_px * _PAPER_RATIO / stride_px)) * stride_px
    return [base_px, smaller]


def _every_checkpoint(folder: Path) -> list[Path]:
    found = saved_checkpoints(folder / CHECKPOINT_FOLDER)
    if not found:
        raise ValueError(f"--every-checkpoint: {folder} has no checkpoints in {CHECKPOINT_FOLDER}/")
    return found


def _origin(weights: Path) -> dict[str, Any]:
    match = _EPOCH.fullmatch(weights.name)
    return {"checkpoint": weights.name, "epoch": int(match[1]) if match else None, "sha256": sha256(weights)}


def _plain(found: GradientComparison) -> dict[str, Any]:
    return {
        "parameters": found.parameters,
        "between_sizes": [{"sizes_px": [*sizes], **_finite(row)} for sizes, row in found.between_sizes.items()],
        "between_images": [{"size_px": size, **_finite(row)} for size, row in found.between_images.items()],
        "variance": [{"size_px": size, "value": value} for size, value in found.variance.items()],
    }


def _finite(correlation: Correlation) -> dict[str, Any]:
    """Without NaN, which JSON does not have."""
    return {key: None if math.isnan(value) else value for key, value in correlation._asdict().items()}


def _figure(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "undefined"
    spread = "" if row["std"] is None else f" ± {row['std']:.3f}"
    return f"{row['mean']:.3f}{spread}"
