"""The record of an evaluation over image sizes, and the table and CSV file made from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from mixsize.recipes.records.class_accuracy import class_caption, worst_classes
from mixsize.recipes.records.run_record import CALIBRATED, OWN

RECORD_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Accuracy(_Part):
    """Accuracy at one size with one set of batch-norm statistics.

    Attributes:
        top1: fraction of the images whose class has the highest output.
        top5: fraction of the images whose class is among the five highest; None with five classes or fewer.
        loss: mean cross-entropy in nats; None if it is not finite.
        class_hits: images of each class whose class has the highest output; empty where classes were not counted.
    """

    top1: float
    top5: float | None
    loss: float | None
    class_hits: list[int] = []


class SizeRow(_Part):
    """Results at one size.

    Attributes:
        size_px: image size S in pixels.
        macs: multiply-accumulates of one image's forward pass.
        own: with the batch-norm statistics of the checkpoint.
        calibrated: with statistics measured at this size; None without calibration.
        calibration_images: images that these were measured on.
    """

    size_px: int
    macs: int
    own: Accuracy
    calibrated: Accuracy | None
    calibration_images: int


class EvalRecord(_Part):
    """The evaluation of one checkpoint, in plain values.

    Attributes:
        record_version: version of these keys.
        measured: time in UTC, ISO 8601.
        name: of the recipe.
        checkpoint: name of the file, without its folder.
        sha256: of the file.
        recipe: the resolved recipe of the evaluation.
        trained_sizes_px: image sizes of the training, ascending; empty if there is no recipe beside the checkpoint.
        images: number of images evaluated at each size.
        data: fingerprint of these images.
        calibration_batches: forward passes that calibrated a size, on each rank, at most; None without calibration.
        seconds: of all sizes, calibration included.
        sizes: ascending.
        environment: versions and hardware.
        class_images: class -> number of images, in the order of the labels; empty where classes were not counted.
    """

    record_version: Literal[1]
    measured: str
    name: str
    checkpoint: str
    sha256: str
    recipe: dict[str, Any]
    trained_sizes_px: list[int]
    images: int
    data: str
    calibration_batches: int | None
    seconds: float
    sizes: list[SizeRow]
    environment: dict[str, Any]
    class_images: dict[str, int] = {}


def read_record(path: Path) -> EvalRecord:
    """Read a record of ``mixsize eval``.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds something else.
    """
    try:
        return EvalRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path} is not a record of mixsize eval: {place + ': ' if place else ''}{first['msg']}"
        ) from error


def make_table(record: EvalRecord) -> Table:
    """A table for the terminal with a row for each size and set of batch-norm statistics."""
    in_five = record.sizes[0].own.top5 is not None
    table = Table(title=f"{record.name}: {record.checkpoint} on {record.images:,} images")
    table.caption = "GMACs: billions of multiply-accumulates for one image"
    columns = ["size px", "GMACs", "batch norm", "top-1 %", *["top-5 %"] * in_five, "loss"]
    for column in columns:
        table.add_column(column, justify="left" if column == "batch norm" else "right")
    for row in record.sizes:
        size = (str(row.size_px), f"{row.macs / 1e9:#.3g}".rstrip("."))
        for kind, found in accuracies(row):
            shown = [f"{100 * value:.2f}" for value in (found.top1, found.top5) if value is not None]
            loss = "not finite" if found.loss is None else f"{found.loss:.4f}"
            table.add_row(*size, kind, *shown, loss)
            size = ("", "")
    return table


def class_table(record: EvalRecord) -> Table:
    """A table for the terminal: the worst classes at the base size, or at the evaluated size nearest to it."""
    base_px = record.recipe["regime"]["base"]["size_px"]
    row = min(record.sizes, key=lambda row: abs(row.size_px - base_px))
    kinds = dict(accuracies(row))
    rows = worst_classes(record.class_images, [found.class_hits for found in kinds.values()])
    table = Table(title=class_caption(row.size_px, rows, record.class_images))
    table.add_column("class")
    for column in ("images", *kinds):
        table.add_column(column, justify="right")
    for name, images, top1 in rows:
        table.add_row(name, f"{images:,}", *(f"{100 * value:.2f}" for value in top1))
    return table


def to_csv(record: EvalRecord) -> str:
    """A line for each size and set of batch-norm statistics; accuracies are fractions, None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["size_px", "macs", "batch_norm", "top1", "top5", "loss", "images"])
    for row in record.sizes:
        for kind, found in accuracies(row):
            writer.writerow([row.size_px, row.macs, kind, found.top1, found.top5, found.loss, record.images])
    return text.getvalue()


def accuracies(row: SizeRow) -> Iterator[tuple[str, Accuracy]]:
    """The accuracies at a size, each after the name of its batch-norm statistics."""
    yield OWN, row.own
    if row.calibrated is not None:
        yield CALIBRATED, row.calibrated
