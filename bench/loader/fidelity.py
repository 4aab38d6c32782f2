"""Fidelity to Pillow, and speed, of views that are read from smaller copies of an image."""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mixsize.bench.result_files import keep_result
from mixsize.display.console import plain_console, print_table
from mixsize.display.markdown import markdown_table
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import Augment, CenterCrop, RandomResizedCrop, draw_windows
from mixsize.ffcv_loaders.decode.decode import EVALUATION_MIN_OVERSAMPLING, MIN_OVERSAMPLING, Decoder
from mixsize.ffcv_loaders.torch_loader import cut_with_pillow

#: Target of the mean PSNR of the views of a size that are read from smaller copies.
TARGET_DB = 35.0
#: Target of the mean shift of a channel, in levels.
TARGET_SHIFT = 0.1

_SIZES = (32, 96, 128, 160, 192, 224, 256, 320)
_THRESHOLDS = (0.7, MIN_OVERSAMPLING, 0.9, EVALUATION_MIN_OVERSAMPLING, 1.25)
_TRANSFORMS: dict[str, Augment] = {"training": RandomResizedCrop(), "evaluation": CenterCrop()}
_BATCH = 300


def compare(beton: Beton, augment: Augment, size_px: int, thresholds: Sequence[float], rounds: int) -> list[dict]:
    """One view of every image at one size: a row for each threshold, and one for reading full images alone.

    The reference is Pillow. A view that is nowhere more than one level off counts as read from the full image, and has
    no part in the PSNR and the shift.

    Args:
        beton: the images.
        augment: how views are cut.
        size_px: side of the views.
        thresholds: see :class:`~mixsize.ffcv_loaders.decode.decode.Decoder`.
        rounds: number of timings, of which the median counts.
    """
    decoders = {threshold: Decoder(beton, 1, threshold) for threshold in (math.inf, *thresholds)}
    errors: dict[float, list[tuple[float, ...]]] = {threshold: [] for threshold in decoders}
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
                expected = [_by_pillow(beton, *view, size_px) for view in zip(samples.tolist(), windows, strict=True)]
                for threshold in decoders:
                    errors[threshold] += [_error(*pair) for pair in zip(views[threshold], expected, strict=True)]
        for threshold, value in spent.items():
            seconds[threshold].append(value)
    return [_row(t, np.array(errors[t]), seconds[math.inf], seconds[t]) for t in decoders]


def _by_pillow(beton: Beton, sample: int, window: np.ndarray, size_px: int) -> np.ndarray:
    data = beton.stored(sample)
    if beton.is_jpeg[sample]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    else:
        image = Image.frombytes("RGB", (int(beton.widths[sample]), int(beton.heights[sample])), data)
    return cut_with_pillow(image, window, size_px, "bilinear")


def _error(view: np.ndarray, expected: np.ndarray) -> tuple[float, ...]:
    """Greatest difference, mean square, and mean of each channel."""
    difference = view.astype(np.float32) - expected
    return float(np.abs(difference).max()), float((difference**2).mean()), *difference.mean((0, 1)).tolist()


def _row(threshold: float, errors: np.ndarray, full: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    reduced = errors[errors[:, 0] > 1]
    psnr = 10 * np.log10(255**2 / reduced[:, 1])
    return {
        "threshold": threshold if math.isfinite(threshold) else None,
        "from_copies": len(reduced) / len(errors),
        "psnr_db": float(psnr.mean()) if len(psnr) else None,
        "psnr_p5_db": float(np.percentile(psnr, 5)) if len(psnr) else None,
        "shift": np.abs(errors[:, 2:].mean(0)).max(),
        "speed": float(np.median([base / mine for base, mine in zip(full, own, strict=True)])),
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row for each transform and size, a column for each threshold."""
    first = result["rows"][0]["by_threshold"]
    head = ["views", "size", *("full" if row["threshold"] is None else f"{row['threshold']:g}" for row in first)]
    rows = []
    for row in result["rows"]:
        cells = []
        for found in row["by_threshold"]:
            share = f"{100 * found['from_copies']:.0f} % of views"
            psnr = "" if found["psnr_db"] is None else f"{found['psnr_db']:.1f} dB, "
            cells.append(f"{psnr}{share}, shift {found['shift']:.2f}, {found['speed']:.2f}x")
        rows.append([row["views"], f"{row['size_px']} px", *cells])
    return head, rows


def note(result: dict[str, Any]) -> str:
    """Explanation of the table."""
    images = result["data"]
    return (
        "By column, the least oversampling at which a smaller copy is read; full: never. In each cell: mean PSNR "
        "against Pillow of the views that are anywhere more than one level off; their share; the mean shift over all "
        "views, in levels of 255, of the channel that is shifted most; and the speed of decoding on one core, against "
        "full. "
        f"{images['images']} images of {images['mean_height']:.0f} x {images['mean_width']:.0f} px on average, "
        f"{images['levels']} stored resolutions. The default is {MIN_OVERSAMPLING:g} in training and "
        f"{EVALUATION_MIN_OVERSAMPLING:g} in evaluation; the targets are {TARGET_DB:g} dB and a shift of "
        f"{TARGET_SHIFT:g} at every size."
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
