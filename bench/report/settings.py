"""What the regimes of a comparison were trained with: what they have in common, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mixsize.bench.report.comparison import Comparison
from mixsize.bench.report.content import Table
from mixsize.bench.report.quantities import NONE
from mixsize.recipes.records.run_record import RunRecord


def setting_tables(found: Comparison) -> list[Table]:
    """The settings that all regimes share, and those that differ, regime by regime."""
    values = {
        name: {label: _distinct(runs, words) for label, runs in found.runs.items()} for name, words in _SETTINGS.items()
    }
    common = {name: next(iter(of.values())) for name, of in values.items() if len(set(of.values())) == 1}
    differing = [name for name in values if name not in common]
    tables = [Table("Setting of all runs", ["setting", "value"], list(common.items()))]
    if differing:
        rows = [[label, *(values[name][label] for name in differing)] for label in found.runs]
        tables.append(Table("Settings that differ", ["regime", *differing], rows))
    return tables


def _distinct(runs: Sequence[RunRecord], words: Callable[[RunRecord], str]) -> str:
    return ", ".join(dict.fromkeys(words(run) for run in runs))


def _training_data(run: RunRecord) -> str:
    return _images(run.train_images or _key(run, "data", "train_images"), _key(run, "data", "train"))


def _test_data(run: RunRecord) -> str:
    return _images(run.eval_images, _key(run, "data", "eval"))


def _images(count: int | None, file: str | None) -> str:
    return f"{'number not recorded' if count is None else f'{count:,}'}, {file or 'file not recorded'}"


def _optimiser(run: RunRecord) -> str:
    settings = _key(run, "optimizer") or {}
    shown = [settings.get("name") or NONE]
    shown += [f"{key} {settings[key]}" for key in ("momentum", "betas", "weight_decay") if settings.get(key)]
    return ", ".join(shown)


def _peak_rate(run: RunRecord) -> str:
    rate, scaling = _key(run, "optimizer", "lr"), _key(run, "optimizer", "lr_scaling")
    scaled = "" if scaling in (None, "none") else f", times the regime's {scaling} scale"
    return NONE if rate is None else f"{rate:g}{scaled}"


def _regime(run: RunRecord) -> str:
    base, mode = run.recipe["regime"]["base"], _key(run, "regime", "mode") or "mode not recorded"
    return f"{mode}, base {base['size_px']} px x {base.get('batch_size', NONE)}"


def _sizes(run: RunRecord) -> str:
    return ", ".join(str(size) for size in sorted({row.size_px for row in run.shapes})) or NONE


def _smoothing(run: RunRecord) -> str:
    return "yes" if _key(run, "smoothing") is not None else "no"


def _key(run: RunRecord, *path: str) -> Any:
    """A key of the recipe; None where the recipe lacks it."""
    value: Any = run.recipe
    for part in path:
        value = (value or {}).get(part)
    return value


_SETTINGS: dict[str, Callable[[RunRecord], str]] = {
    "training images": _training_data,
    "test images": _test_data,
    "network": lambda run: _key(run, "model", "name") or NONE,
    "optimiser": _optimiser,
    "peak learning rate": _peak_rate,
    "schedule": lambda run: _key(run, "schedule", "name") or NONE,
    "length": lambda run: _key(run, "max_duration") or NONE,
    "kind of regime": _regime,
    "sizes, px": _sizes,
    "gradient smoothing": _smoothing,
    "seeds": lambda run: str(run.seed),
}
