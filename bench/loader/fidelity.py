"""Fidelity and speed of views that are read from smaller copies of an image, against views of the full image."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.display.markdown import markdown_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import Augment, CenterCrop, RandomResizedCrop, draw_windows
from mixsize.ffcv_loaders.decode.decode import EVALUATION_MIN_OVERSAMPLING, MIN_OVERSAMPLING, Decoder

#: Target of the mean PSNR of the views of a size that are read from smaller copies.
TARGET_DB = 35.0

_SIZES = (96, 128, 160, 192, 224, 256, 320)
_THRESHOLDS = (0.9, MIN_OVERSAMPLING, EVALUATION_MIN_OVERSAMPLING, 1.25)
_TRANSFORMS: dict[str, Augment] = {"training": RandomResizedCrop(), "evaluation": CenterCrop()}
_BATCH = 300


def compare(beton: Beton, augment: Augment, size_px: int, thresholds: Sequence[float], rounds: int) -> list[dict]:
    """One view of every image at one size: a row for each threshold.

    The reference views are cut from the full image, decoded whole and area-resized. A view with the same pixels counts
    as not read from a copy and has no part in the PSNR.

    Args:
        beton: the images.
        augment: how views are cut.
        size_px: side of the views.
        thresholds: see :class:`~mixsize.ffcv_loaders.decode.decode.Decoder`.
        rounds: number of timings, of which the median counts.
    """
    decoders = {threshold: Decoder(beton, 1, threshold) for threshold in (math.inf, *thresholds)}
    errors: dict[float, list[np.ndarray]] = {threshold: [] for threshold in thresholds}
    seconds: dict[float, list[float]] = {threshold: [] for threshold in decoders}
    for number in range(rounds):
        spent = dict.fromkeys(decoders, 0.0)
        for start in range(0, beton.num_samples, _BATCH):
            samples = np.arange(start, min(start + _BATCH, beton.num_samples))
            windows = draw_windows(augment, beton.heights[samples], beton.widths[samples], samples, 1, size_px, 0, 0)
            views = {threshold: np.empty((len(samples), size_px, size_px, 3), np.uint8) for threshold in decoders}
            for threshold, decoder in decoders.items():
                begun = time.process_time()
                decoder.decode(samples, 1, windows, views[threshold])
                spent[threshold] += time.process_time() - begun
            if number == 0:
                full = views[math.inf].astype(np.float32)
                for threshold in thresholds:
                    errors[threshold].append(((views[threshold] - full) ** 2).mean((1, 2, 3)))
        for threshold, value in spent.items():
            seconds[threshold].append(value)
    rows = []
    for threshold in thresholds:
        error = np.concatenate(errors[threshold])
        psnr = 10 * np.log10(255**2 / error[error > 0])
        gains = [base / mine for base, mine in zip(seconds[math.inf], seconds[threshold], strict=True)]
        rows.append(
            {
                "threshold": threshold,
                "from_copies": float((error > 0).mean()),
                "psnr_db": float(psnr.mean()) if len(psnr) else None,
                "psnr_p5_db": float(np.percentile(psnr, 5)) if len(psnr) else None,
                "speed": float(np.median(gains)),
            }
        )
    return rows


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row for each transform and size, a column for each threshold."""
    first = result["rows"][0]["by_threshold"]
    head = ["views", "size", *(f"threshold {row['threshold']:g}" for row in first)]
    rows = []
    for row in result["rows"]:
        cells = []
        for found in row["by_threshold"]:
            share = f"{100 * found['from_copies']:.0f} % of views"
            psnr = "" if found["psnr_db"] is None else f"{found['psnr_db']:.1f} dB, "
            cells.append(f"{psnr}{share}, {found['speed']:.2f}x")
        rows.append([row["views"], f"{row['size_px']} px", *cells])
    return head, rows


def note(result: dict[str, Any]) -> str:
    """Explanation of the table."""
    images = result["data"]
    return (
        "Mean PSNR of the views that are read from a smaller copy, against full decode and area resize; their share; "
        f"and the speed of decoding on one core, against always decoding the full image. {images['images']} "
        f"images of {images['mean_height']:.0f} x {images['mean_width']:.0f} px on average, {images['levels']} stored "
        f"resolutions. By default the threshold is {MIN_OVERSAMPLING:g} in training and "
        f"{EVALUATION_MIN_OVERSAMPLING:g} in evaluation; the target is {TARGET_DB:g} dB at every size."
    )


def fidelity_table(result: dict[str, Any]) -> str:
    """The table of a ``mixsize bench fidelity`` result."""
    return markdown_table(*table(result)) + f"\n{note(result)}\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize bench fidelity``."""
    parser.add_argument("data", type=Path, metavar="DATA.beton", help="file with several stored resolutions")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="PX", default=_SIZES, help="sides of the views")
    parser.add_argument("--thresholds", type=float, nargs="+", metavar="T", default=_THRESHOLDS)
    parser.add_argument("--rounds", type=int, default=3, help="number of timings (default: 3)")
    parser.add_argument("--out", type=Path, help="result file; by default in bench/results/ with hardware and date")


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """Check the options; the returned function measures."""
    for name, values, least in (("--sizes", args.sizes, 1), ("--rounds", [args.rounds], 1)):
        if min(values) < least:
            raise ValueError(f"{name}: {min(values)} must be at least {least}")
    if min(args.thresholds) <= 0:
        raise ValueError(f"--thresholds: {min(args.thresholds):g} must be above 0")
    beton = Beton.open(args.data)

    def measured() -> int:
        rows = []
        work = [(views, size_px) for views in _TRANSFORMS for size_px in args.sizes]
        for views, size_px in tqdm(work, unit="size"):
            found = compare(beton, _TRANSFORMS[views], size_px, args.thresholds, args.rounds)
            rows.append({"views": views, "size_px": size_px, "by_threshold": found})
        data = {
            "file": args.data.name,
            "images": beton.num_samples,
            "mean_height": float(beton.heights.mean()),
            "mean_width": float(beton.widths.mean()),
            "levels": beton.num_levels,
        }
        result = {"data": data, "rounds": args.rounds, "target_db": TARGET_DB, "rows": rows}
        print_table(plain_console(), *table(result), notes=[note(result)])
        keep_result(args.out, "fidelity", result)
        return 0

    return measured
