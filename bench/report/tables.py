"""Tables of a report about single runs and regimes: cost, shapes, gradient norms, runs and environments."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from mixsize.bench.report.comparison import Comparison
from mixsize.bench.report.content import Table
from mixsize.bench.report.quantities import NONE, count, mean_and_spread, ratio, time
from mixsize.recipes.records.class_accuracy import class_caption, worst_classes
from mixsize.recipes.records.run_record import CALIBRATED, OWN, GradientNormRow, RunRecord, by_label


def regime_table(records: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: runs, steps, training time, pixels relative to the first regime, accuracy by size.

    A regime has one row; where any regime calibrates, a row for each kind of batch-norm statistics, which its name then
    tells. A run that failed is in no mean.

    Args:
        records: of one recipe; at least one of a finished run.
    """
    groups = by_label(records)
    finished = {label: [run for run in runs if run.finished] for label, runs in groups.items()}
    first = next(run for run in records if run.finished)
    sizes = list(first.accuracy)
    calibrates = _calibrates(records)
    head = ["regime", "runs", "steps", "training time, s", "pixels"]
    head += [f"{size} px{'*' if size == str(first.base_size_px) else ''}" for size in sizes]
    rows = []
    for label, group in groups.items():
        runs = finished[label]
        if not runs:
            rows.append([label, f"0/{len(group)}", *[NONE] * (len(head) - 2)])
            continue
        costs = [
            str(len(runs)) if len(runs) == len(group) else f"{len(runs)}/{len(group)}",
            f"{runs[0].steps:,}",
            mean_and_spread([run.seconds.training or 0.0 for run in runs], digits=0),
            ratio(runs[0].pixels or 0, first.pixels or 0),
        ]
        rows.append([f"{label}, {OWN}" if calibrates else label, *costs])
        rows[-1] += _by_size([run.accuracy for run in runs], sizes)
        calibrated = [run.calibrated_accuracy for run in runs if run.calibrated_accuracy]
        if calibrated:
            rows.append([f"{label}, {CALIBRATED}", *[""] * len(costs), *_by_size(calibrated, sizes)])
    return head, rows


def regime_notes(records: Sequence[RunRecord]) -> list[str]:
    """Explanations to print below :func:`regime_table`."""
    most = max(len(runs) for runs in by_label(records).values())
    text = "Top-1 accuracy in per cent" if _calibrates(records) else f"Top-1 accuracy in per cent, {OWN},"
    text += " by evaluation size (*: the size of fixed-size training)"
    return [text + (f"; mean ± standard deviation of {most} seeds." if most > 1 else "; one seed.")]


def _calibrates(records: Sequence[RunRecord]) -> bool:
    return any(run.calibrated_accuracy for run in records)


def _by_size(accuracies: Sequence[dict[str, float]], sizes: Sequence[str]) -> list[str]:
    found = [[100 * of_run[size] for of_run in accuracies if size in of_run] for size in sizes]
    return [mean_and_spread(values) if values else NONE for values in found]


def class_table(found: Comparison) -> Table:
    """Top-1 of the worst classes at the compared size, mean over seeds; no rows where a record does not count classes.

    The statistics are those of the comparison.
    """
    images = next(iter(found.runs.values()))[0].class_images
    hits: list[list[float]] = []
    for label, runs in found.runs.items():
        calibrated = found.statistics[label] == CALIBRATED
        by_size = [(run.calibrated_class_hits or {}) if calibrated else run.class_hits for run in runs]
        of_runs = [of_run.get(str(found.size_px), []) for of_run in by_size]
        if any(run.class_images != images for run in runs) or not all(of_runs):
            return Table("", [], [])
        hits.append([statistics.fmean(of_class) for of_class in zip(*of_runs, strict=True)])
    rows = worst_classes(images, hits)
    return Table(
        class_caption(found.size_px, rows, images),
        ["class", "images", *map(found.named, found.runs)],
        [[name, f"{total:,}", *(f"{100 * value:.1f}" for value in top1)] for name, total, top1 in rows],
    )


def work_table(found: Comparison) -> Table:
    """Steps, images and pixels of each regime."""
    quantities: dict[str, Callable[[RunRecord], float | None]] = {
        "images drawn": lambda run: run.samples,
        "different images": lambda run: run.distinct_samples,
        "pixels": lambda run: run.pixels,
    }
    base = _mean(found.runs[found.baseline], lambda run: run.steps)
    rows = []
    for label, runs in found.runs.items():
        steps = _mean(runs, lambda run: run.steps)
        assert steps is not None
        assert base is not None
        cells = [_words(_mean(runs, value), count) for value in quantities.values()]
        rows.append([label, f"{steps:,.0f}", ratio(steps, base), *cells])
    return Table(
        "Steps, images and pixels, mean over seeds", ["regime", "steps", "of the baseline's", *quantities], rows
    )


def time_table(found: Comparison) -> Table:
    """Time of each regime, from start to end and by activity, and peak memory."""
    times: dict[str, Callable[[RunRecord], float | None]] = {
        "wall-clock": lambda run: run.seconds.wall_clock,
        "training time": lambda run: run.seconds.training,
        "waiting for data, included": lambda run: run.seconds.data_wait,
        "evaluation": lambda run: run.seconds.evaluation,
        "calibration": lambda run: run.seconds.calibration,
        "set-up": lambda run: run.seconds.set_up,
    }
    memory: dict[str, Callable[[RunRecord], float | None]] = {
        "peak host memory": lambda run: run.peak_memory_bytes.host,
        "peak GPU memory": lambda run: run.peak_memory_bytes.gpu,
    }
    rows = [
        [
            label,
            *(_words(_mean(runs, value), time) for value in times.values()),
            *(_words(_mean(runs, value), lambda mean: f"{mean / 2**20:,.0f} MiB") for value in memory.values()),
        ]
        for label, runs in found.runs.items()
    ]
    return Table("Time and memory, mean over seeds", ["regime", *times, *memory], rows)


def shape_table(found: Comparison) -> Table:
    """Step shapes that occurred, with their share of a regime's steps."""
    rows = []
    for label, runs in found.runs.items():
        steps: Counter[tuple[int, int, int]] = Counter()
        seconds: dict[tuple[int, int, int], list[float]] = {}
        for row in (row for run in runs for row in run.shapes):
            shape = (row.size_px, row.batch_size, row.duplicates)
            steps[shape] += row.steps
            if row.seconds is not None:
                seconds.setdefault(shape, []).append(row.seconds)
        for shape, n in sorted(steps.items()):
            taken = f"{1000 * statistics.fmean(seconds[shape]):,.4g} ms" if shape in seconds else NONE
            rows.append([label, *map(str, shape), f"{n / len(runs):,.0f}", f"{100 * n / steps.total():.1f}", taken])
    head = ["regime", "size, px", "batch", "duplicates", "steps", "share of steps, %", "time of a step"]
    return Table("Step shapes, mean over seeds", head, rows)


def gradient_norm_table(found: Comparison) -> Table:
    """L2 norm of the whole network's gradient at each image side, over all steps of all runs."""
    rows = []
    for label, runs in found.runs.items():
        by_size: dict[int, list[GradientNormRow]] = {}
        for row in (row for run in runs for row in run.gradient_norms):
            by_size.setdefault(row.size_px, []).append(row)
        for size, of_size in sorted(by_size.items()):
            before = _pooled([(row.steps, row.mean, row.std) for row in of_size])
            after = _pooled([(row.steps, row.smoothed_mean, row.smoothed_std) for row in of_size])
            rows.append([label, str(size), before, after])
    head = ["regime", "size, px", "before smoothing", "after smoothing"]
    return Table("Gradient norm, mean ± standard deviation over steps", head, rows)


def run_table(records: Sequence[RunRecord]) -> Table:
    """Every run with its outcome, length and plan."""
    rows = [
        [
            run.name,
            run.label,
            str(run.seed),
            run.outcome,
            _words(run.epochs, str),
            _words(run.steps, lambda steps: f"{steps:,}"),
            _words(run.seconds.training, time),
            run.plan_digest or NONE,
            _words(run.sequence_crc, lambda crc: f"{crc:08x}"),
        ]
        for run in records
    ]
    head = ["run", "regime", "seed", "outcome", "epochs", "steps", "training time", "plan", "shapes' checksum"]
    return Table("All runs", head, rows)


def environment_table(records: Sequence[RunRecord]) -> tuple[Table, list[str]]:
    """Source, hardware and versions of the runs, one row for each combination, and warnings where they differ."""
    found: Counter[tuple[str, ...]] = Counter()
    for run in records:
        where = run.environment
        commit = (run.commit or "unknown")[:12] + (" with changes" if run.dirty else "")
        gpu = f"{where.gpu}, driver {where.driver or 'unknown'}" if where.gpu else "none"
        hardware = (where.cpu, _words(where.cores, str), gpu, str(where.ranks))
        versions = (where.python, where.torch, where.composer or NONE, where.timm, where.ffcv or NONE)
        found[(commit, *hardware, *versions)] += 1
    head = ["runs", "commit", "CPU", "cores", "GPU", "ranks", "Python", "PyTorch", "Composer", "timm", "FFCV"]
    notes = []
    if len({key[0] for key in found}) > 1:
        notes.append("The runs were made from different sources.")
    if len({key[1:] for key in found}) > 1:
        notes.append("The runs were made in different environments: their times do not compare.")
    return Table("Source, hardware and versions", head, [[str(n), *key] for key, n in found.items()]), notes


def _mean(runs: Iterable[RunRecord], value: Callable[[RunRecord], float | None]) -> float | None:
    known = [found for run in runs if (found := value(run)) is not None]
    return statistics.fmean(known) if known else None


def _words(value: float | None, words: Callable) -> str:
    return NONE if value is None else words(value)


def _pooled(parts: Sequence[tuple[int, float | None, float | None]]) -> str:
    """Mean and standard deviation over the steps of several runs, from steps, mean and deviation of each."""
    known = [(steps, mean, std or 0.0) for steps, mean, std in parts if mean is not None]
    if not known:
        return NONE
    n = sum(steps for steps, _, _ in known)
    middle = sum(steps * mean for steps, mean, _ in known) / n
    squares = sum((steps - 1) * std**2 + steps * (mean - middle) ** 2 for steps, mean, std in known)
    return f"{middle:.4g} ± {math.sqrt(squares / (n - 1)):.3g}" if n > 1 else f"{middle:.4g}"
