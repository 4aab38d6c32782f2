"""The table of a loader result and the notes below it, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

#: Loaders in the order in which they are shown.
LABELS: Mapping[str, str] = MappingProxyType(
    {
        "levels": "mixsize, levels",
        "ours": "mixsize",
        "ffcv": "FFCV",
        "torchvision": "torchvision",
        "timm": "timm",
        "composer": "Composer",
    }
)
#: Our loaders, which are compared with FFCV's.
OURS = ("levels", "ours")
#: Loaders that read image files.
FILE_READERS = ("torchvision", "timm", "composer")
#: The loader that reads the file with several stored resolutions.
LEVELS = "levels"


def timed(result: dict[str, Any]) -> list[str]:
    """The loaders that served any case, in the order in which they are shown."""
    return [loader for loader in LABELS if result["rates"].get(loader)]


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: images a second of each loader for each case, and ours relative to FFCV's.

    Cells of cases that a loader cannot serve are empty.
    """
    rates, loaders = result["rates"], timed(result)
    compared = [loader for loader in loaders if loader in OURS] if "ffcv" in loaders else []
    head = ["images/s", "batch", *(LABELS[loader] for loader in loaders)]
    head += [f"{LABELS[loader]} / FFCV" for loader in compared]
    rows = []
    for case in result["cases"]:
        name, cells = case["name"], []
        for loader in loaders:
            rate = rates[loader].get(name)
            cells.append(f"{rate['median']:,.0f} ({rate['min']:,.0f}-{rate['max']:,.0f})" if rate else "")
        stock = _stock_rate(case, rates["ffcv"]) if compared else None
        cells += [f"{rates[loader][name]['median'] / stock:.2f}x" if stock else "" for loader in compared]
        rows.append([name, _batch(case), *cells])
    return head, rows


def _stock_rate(case: dict[str, Any], rates: Mapping[str, Any]) -> float | None:
    """FFCV's images a second at the sizes of a case and in their shares, without duplicates, which it does not have."""
    names = [f"{size} px" for size in case["sizes_px"]]
    if not all(name in rates for name in names):
        return None
    shares = case["sample_shares"]
    return sum(shares) / sum(share / rates[name]["median"] for name, share in zip(names, shares, strict=True))


def notes(result: dict[str, Any]) -> list[str]:
    """The setting, and further measurements."""
    setting, data = result["setting"], result["setting"]["data"]
    lines = [
        f"Training images a second, each of an image's D views counted: median (range) of {setting['rounds']} "
        f"interleaved rounds, {setting['threads']} threads or worker processes on as many cores. {data['images']:,} "
        f"images of {data['mean_height']:.0f} x {data['mean_width']:.0f} px on average, "
        f"{setting['epoch_images']:,} read in an epoch."
    ]
    plain = all(len(case["sizes_px"]) == 1 and case["duplicates"] == [1] for case in result["cases"])
    if result["rates"].get("ffcv") and not plain:
        lines.append(
            "FFCV serves neither mixes nor duplicates: mixes are compared with its share-weighted fixed sizes, "
            "duplicates with single views."
        )
    if not setting["images"] and not setting["pad_crop"]:
        names = [LABELS[loader] for loader in FILE_READERS]
        lines.append(f"{', '.join(names[:-1])} and {names[-1]} read image files (`--images`) and were left out.")
    for loader, by_case in result["mix_cost"].items():
        costs = ", ".join(f"{name} {cost['median']:.3f}x ({_range(cost, 3)})" for name, cost in by_case.items())
        if costs:
            lines.append(
                f"Mixing sizes, against the share-weighted fixed sizes, {LABELS[loader]}: {costs} of their time "
                f"(n={setting['rounds']}, target at most {result['mix_cost_target']})."
            )
    shown = _example(result)
    starts = ", ".join(
        f"{LABELS[loader]} {1000 * by_case[shown]['median']:.0f} ms"
        for loader, by_case in result["first_batch_seconds"].items()
        if shown in by_case
    )
    lines.append(f"First batch of an epoch at {shown} after: {starts}.")
    grown = ", ".join(
        f"{LABELS[loader]} {name} {mebibytes:.0f} MiB"
        for loader, by_case in result["memory_mib"].items()
        for name, mebibytes in by_case.items()
    )
    if grown:
        lines.append(
            f"Peak memory over an epoch: {grown}; the base's batch is {result['base_bytes'] / 2**20:.1f} MiB of pixels."
        )
    return lines


def _example(result: dict[str, Any]) -> str:
    """The case of the notes: the base's size where it was timed."""
    names = [case["name"] for case in result["cases"]]
    base = f"{result['setting']['base'][0]} px"
    return base if base in names else names[0]


def _batch(case: dict[str, Any]) -> str:
    """Distinct images of a step; empty for a mix."""
    return f"{case['batch_sizes'][0]:,}" if len(case["batch_sizes"]) == 1 else ""


def _range(summary: dict[str, float], digits: int) -> str:
    return f"{summary['min']:,.{digits}f}-{summary['max']:,.{digits}f}"
