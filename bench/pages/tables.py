"""The tables of README and of the documentation, made from the result files they rest on.

A table stands between ``<!-- table: KIND FILE -->`` and ``<!-- end table -->``, one that rests on the packaged recipes
alone between ``<!-- table: KIND -->`` and the same; files are relative to the repository's root, on whatever page.
``python -m mixsize.bench.pages.tables`` rewrites all of them, and the figures.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mixsize.bench.gpu.gpu import PARTS
from mixsize.bench.gpu.tables import gpu_table
from mixsize.bench.loader import report as loader_report
from mixsize.bench.loader.fidelity import fidelity_table
from mixsize.bench.pages.page_figures import write_figures
from mixsize.bench.paper import gradients
from mixsize.bench.peers import peers
from mixsize.bench.report.spread import mean_and_spread
from mixsize.display.markdown import markdown_table as _markdown
from mixsize.recipes.planning.table import plans_table

_BLOCK = re.compile(r"(<!-- table: (\w+)(?: (\S+))? -->\n).*?(<!-- end table -->)", re.DOTALL)


def regimes_table(result: dict[str, Any]) -> str:
    """Steps, time, pixels and accuracy by size of a ``mixsize bench regimes`` result."""
    records = {label: [run for run in runs if _finished(run)] for label, runs in result["records"].items()}
    records = {label: runs for label, runs in records.items() if runs}
    first = next(iter(records.values()))
    base = str(first[0]["recipe"]["regime"]["base"]["size_px"])
    sizes = list(_reported(first[0]))
    head = ["regime", "steps", "seconds", "pixels"]
    head += [f"**{size} px**" if size == base else f"{size} px" for size in sizes]
    rows = [
        [
            label,
            f"{runs[0]['steps']:,}",
            mean_and_spread([run["seconds"]["training"] for run in runs], digits=0),
            f"{runs[0]['pixels'] / first[0]['pixels']:.2f}x",
            *(mean_and_spread([100 * _reported(run)[size] for run in runs]) for size in sizes),
        ]
        for label, runs in records.items()
    ]
    seeds = f"\nMean ± standard deviation of {len(first)} seeds.\n" if len(first) > 1 else ""
    calibrates = any(run.get("calibrated_accuracy") for runs in records.values() for run in runs)
    calibrated = "\nCalibrated batch norm where the recipe has it.\n" if calibrates else ""
    return _markdown(head, rows) + seeds + calibrated + _where(result)


def loader_table(result: dict[str, Any]) -> str:
    """Images a second by size of a ``mixsize bench loader`` result, ours and others'."""
    if "choices" in result:
        return _loader_table_before_peers(result)
    lines = "".join(f"\n{line}\n" for line in loader_report.notes(result))
    return _markdown(*loader_report.table(result)) + lines + _where(result)


def _loader_table_before_peers(result: dict[str, Any]) -> str:
    """Of a result file from before other loaders than FFCV's were timed."""
    rates = result["rates"]
    rows = []
    for choice in result["choices"]:
        mine, stock = rates[f"ours {choice['size_px']}"], rates.get(f"ffcv {choice['size_px']}")
        ratio = f"{mine['median'] / stock['median']:.2f}x" if stock else ""
        rows.append(
            [f"{choice['size_px']} px", str(choice["batch_size"]), _rate(mine), _rate(stock) if stock else "", ratio]
        )
    rows.append(["mixed", "", _rate(rates["ours mixed"]), "", ""])
    cost, memory, setting = result["mix_cost"], result["memory"], result["setting"]
    grown = "; ".join(f"{name} {value:.0f} MiB" for name, value in memory.items())
    notes = (
        f"Mixing sizes takes {cost['median']:.3f}x the time of the share-weighted fixed sizes "
        f"({cost['min']:.3f} to {cost['max']:.3f}, n={cost['n']}). Peak memory over an epoch: {grown}; the budget's "
        f"batch is {result['budget_bytes'] / 2**20:.1f} MiB of pixels. {setting['data']['images']:,} images of "
        f"{setting['data']['mean_height']:.0f} x {setting['data']['mean_width']:.0f} px on average, "
        f"{setting['threads']} threads, median (range) of {setting['rounds']} interleaved rounds."
    )
    head = ["size", "batch", "mixsize, images/s", "FFCV, images/s", "ratio"]
    return _markdown(head, rows) + f"\n{notes}\n" + _where(result)


def calibration_table(result: dict[str, Any]) -> str:
    """Accuracy by size of a ``mixsize bench regimes calibration`` result, by own and by calibrated statistics."""
    runs = {label: run for label, (run, *_) in result["records"].items()}
    first = next(iter(runs.values()))
    rows = [
        [label, kind, *(f"{100 * run[key][size]:.1f}" for size in first["accuracy"])]
        for label, run in runs.items()
        for kind, key in (("own", "accuracy"), ("calibrated", "calibrated_accuracy"))
    ]
    recipe = first["recipe"]
    notes = (
        f"{recipe['model']['name']}, {recipe['data']['train_images']:,} training images, {first['epochs']} epochs, "
        "one seed; top-1 in per cent."
    )
    head = ["regime", "batch norm", *(f"{size} px" for size in first["accuracy"])]
    return _markdown(head, rows) + f"\n{notes}\n" + _where(result)


def overhead_table(result: dict[str, Any]) -> str:
    """Ratios of a ``mixsize bench overhead`` result."""
    rows = []
    for name, row in result["comparisons"].items():
        low, high = row["quartiles"]
        target = f"at most {row['target']}" if row["target"] else ""
        rows.append([name, f"{row['ratio']:.3f}", f"{low:.3f}-{high:.3f}", str(row["n"]), target])
    setting = result["setting"]
    shape = f"{setting['batch_size']} x {setting['size_px']} px"
    notes = f"{setting['model']}, {shape}, interleaved; median and quartiles of n."
    return _markdown(["what", "ratio", "quartiles", "n", "target"], rows) + f"\n{notes}\n" + _where(result)


def gradients_table(result: dict[str, Any]) -> str:
    """Rank correlations and variances of a ``mixsize bench gradients`` result."""
    return _markdown(*gradients.table_rows(result)) + f"\n{gradients.setting_words(result)}\n" + _where(result)


def peers_table(result: dict[str, Any]) -> str:
    """Accuracy and wall-clock of a ``mixsize bench peers`` result."""
    return _markdown(*peers.table_rows(result)) + f"\n{peers.setting_words(result)}\n" + _where(result)


def gpu_part_table(result: dict[str, Any], part: str) -> str:
    """The figures of one part of a ``mixsize bench gpu`` result."""
    return gpu_table(result, part) + _where(result)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "calibration": calibration_table,
    "fidelity": lambda result: fidelity_table(result) + _where(result),
    **{f"gpu_{part}": partial(gpu_part_table, part=part) for part in PARTS},
    "gradients": gradients_table,
    "loader": loader_table,
    "overhead": overhead_table,
    "peers": peers_table,
    "regimes": regimes_table,
}
#: Those that need no result file.
RECIPE_TABLES: dict[str, Callable[[], str]] = {"plans": plans_table}


def refresh(text: str, root: Path) -> str:
    """The text with every table made anew from its file, which is named relative to ``root``."""

    def table(match: re.Match[str]) -> str:
        start, kind, file, end = match.groups()
        if file is None:
            return start + RECIPE_TABLES[kind]() + end
        return start + TABLES[kind](json.loads((root / file).read_text(encoding="utf-8"))) + end

    return _BLOCK.sub(table, text)


def _finished(run: dict[str, Any]) -> bool:
    """Records before version 3 are of finished runs alone."""
    return run.get("outcome", "finished") == "finished"


def _reported(run: dict[str, Any]) -> dict[str, float]:
    """Size -> accuracy, with calibrated batch norm where the recipe has it; older records have one accuracy only."""
    return run.get("calibrated_accuracy") or run["accuracy"]


def _rate(rate: dict[str, float]) -> str:
    return f"{rate['median']:,.0f} ({rate['min']:,.0f}-{rate['max']:,.0f})"


def _where(result: dict[str, Any]) -> str:
    found = result["environment"]
    hardware = f"{found['gpu'] or found['cpu']}, {found['cores']} cores"
    return f"\n{hardware}, PyTorch {found['torch']}, {result['measured'][:10]}.\n"


def pages(root: Path) -> list[Path]:
    """The pages of a repository that may show results."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


if __name__ == "__main__":
    here = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for page in pages(here):
        fresh = refresh(page.read_text(encoding="utf-8"), here)
        page.write_text(fresh, encoding="utf-8")
        write_figures(fresh, here, here)
