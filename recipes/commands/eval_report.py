"""The record of an evaluation over image sizes, and the table, CSV file and plot made from it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from mixsize.display.figures import COLOURS, MARKERS, new_figure, with_plain_text

RECORD_VERSION = 1
#: More ticks would overlap; the paper evaluates at 13 sizes.
_MAX_TICKS = 15
_LINE_STYLES = {"own": {"linestyle": "--", "markerfacecolor": "white"}, "calibrated": {}}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Accuracy(_Part):
    """Accuracy at one size with one set of batch-norm statistics.

    Attributes:
        top1: fraction of the images whose class has the highest output.
        top5: fraction of the images whose class is among the five highest; None with five classes or fewer.
        loss: mean cross-entropy in nats; None if it is not finite.
    """

    top1: float
    top5: float | None
    loss: float | None


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
        seconds: wall-clock time of all sizes.
        sizes: ascending.
        environment: versions and hardware.
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
    kinds = record.calibration_batches is not None
    in_five = record.sizes[0].own.top5 is not None
    table = Table(title=f"{record.name}: {record.checkpoint} on {record.images:,} images")
    table.caption = "GFLOPs: billions of multiply-accumulates for one image"
    columns = ["size px", "GFLOPs", *["batch norm"] * kinds, "top-1 %", *["top-5 %"] * in_five, "loss"]
    for column in columns:
        table.add_column(column, justify="left" if column == "batch norm" else "right")
    for row in record.sizes:
        size = (str(row.size_px), f"{row.macs / 1e9:#.3g}".rstrip("."))
        for kind, found in _accuracies(row):
            accuracies = [f"{100 * value:.2f}" for value in (found.top1, found.top5) if value is not None]
            loss = "not finite" if found.loss is None else f"{found.loss:.4f}"
            table.add_row(*size, *[kind] * kinds, *accuracies, loss)
            size = ("", "")
    return table


def to_csv(record: EvalRecord) -> str:
    """A line for each size and set of batch-norm statistics; accuracies are fractions, None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["size_px", "macs", "batch_norm", "top1", "top5", "loss", "images"])
    for row in record.sizes:
        for kind, found in _accuracies(row):
            writer.writerow([row.size_px, row.macs, kind, found.top1, found.top5, found.loss, record.images])
    return text.getvalue()


@with_plain_text
def draw(records: Sequence[EvalRecord]) -> Figure:
    """Top-1 accuracy by size and by computation, as in figures 1 and 3 of the MixSize paper.

    Each record has a colour. Dashed lines show its own batch-norm statistics, solid lines calibrated ones. Ticks above
    the axis of sizes mark the sizes of its training.
    """
    figure, (by_size, by_macs) = new_figure(columns=2, width=6.0, height=4.4)
    for index, (record, label) in enumerate(zip(records, _labels(records), strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        common = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linewidth": 1.6}
        for kind in ["own"] if record.calibration_batches is None else ["own", "calibrated"]:
            points = [(row, 100 * found.top1) for row in record.sizes for k, found in _accuracies(row) if k == kind]
            top1 = [value for _, value in points]
            style: dict[str, Any] = {**common, **_LINE_STYLES[kind]}
            by_size.plot([row.size_px for row, _ in points], top1, label=f"{label}, {kind}", **style)
            by_macs.plot([row.macs / 1e9 for row, _ in points], top1, **style)
        if record.trained_sizes_px:
            _mark_trained(by_size, record.trained_sizes_px, index, colour, f"{label}, sizes trained at")
    sizes = sorted({row.size_px for record in records for row in record.sizes})
    if len(sizes) <= _MAX_TICKS:
        by_size.set_xticks(sizes)
    by_size.set_xlabel("image size, px")
    by_size.set_ylabel("top-1 accuracy, %")
    by_macs.set_xlabel("GFLOPs per image (multiply-accumulates)")
    by_macs.set_ylabel("top-1 accuracy, %")
    by_macs.set_xscale("log")
    by_macs.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_macs.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    by_macs.xaxis.set_minor_formatter(NullFormatter())
    # matplotlib fills the columns of a legend one after the other: one for each record.
    figure.legend(loc="outside lower center", ncols=3 if len(records) == 1 else len(records), frameon=False)
    return figure


def _mark_trained(axes: Axes, sizes_px: Sequence[int], index: int, colour: str, label: str) -> None:
    axes.plot(
        sizes_px,
        [0.02 + 0.04 * index] * len(sizes_px),
        # Heights are fractions of the axes, so the marks stand above the axis at any accuracy.
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="|",
        markersize=9,
        markeredgewidth=2.2,
        color=colour,
        label=label,
    )


def _accuracies(row: SizeRow) -> Iterator[tuple[str, Accuracy]]:
    yield "own", row.own
    if row.calibrated is not None:
        yield "calibrated", row.calibrated


def _labels(records: Sequence[EvalRecord]) -> list[str]:
    """Names; the runs of a name that occurs twice also get the first digits of their files."""
    names = Counter(record.name for record in records)
    return [r.name if names[r.name] == 1 else f"{r.name} {r.sha256[:6]}" for r in records]
