"""A loader result as a table and what is to be said below it: the same in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
#: Those of ours, which are compared with FFCV.
OURS = ("levels", "ours")
#: Those that read image files.
FILE_READERS = ("torchvision", "timm", "composer")
#: Those that read the file with several stored resolutions.
LEVELS_READERS = ("levels", "floor levels")


def timed(result: dict[str, Any]) -> list[str]:
    """The loaders that could serve anything, in the order in which they are shown."""
    return [loader for loader in LABELS if result["rates"].get(loader)]


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: images a second of each loader for each case, and ours against FFCV's.

    What a loader cannot do is left empty.
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
    """FFCV's images a second for a case; of a mix in its shares, and of duplicates, which it has none of, without."""
    names = [f"{size} px" for size in case["sizes_px"]]
    if not all(name in rates for name in names):
        return None
    shares = case["sample_shares"]
    return sum(shares) / sum(share / rates[name]["median"] for name, share in zip(names, shares, strict=True))


def notes(result: dict[str, Any]) -> list[str]:
    """What the table rests on, and what else was measured; a line each."""
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
            "FFCV serves neither mixes nor duplicates: a mix is compared with its share-weighted fixed sizes, an image "
            "with duplicates with one without."
        )
    if not setting["images"] and not setting["pad_crop"]:
        names = [LABELS[loader] for loader in FILE_READERS]
        lines.append(f"{', '.join(names[:-1])} and {names[-1]} read image files (`--images`) and were left out.")
    for loader, by_case in result["mix_cost"].items():
        costs = _joined(f"{name} {cost['median']:.3f}x ({_range(cost, 3)})" for name, cost in by_case.items())
        if costs:
            lines.append(
                f"Mixing sizes, against the share-weighted fixed sizes, {LABELS[loader]}: {costs} of their time "
                f"(n={setting['rounds']}, target at most {result['mix_cost_target']})."
            )
    lines += [
        f"Entropy decoding of whole images, alone: {rate['median']:,.0f} ({_range(rate, 0)}) images/s. Whoever decodes "
        "images whole stays below it; decoding for a crop may stop at the crop's last row."
        for rate in result["rates"].get("floor", {}).values()
    ]
    shown = _example(result)
    per_core = _joined(
        f"{LABELS[loader]} {result['rates'][loader][shown]['per_core']:,.0f}"
        for loader in timed(result)
        if shown in result["rates"][loader]
    )
    lines.append(f"Images/s per core at {shown}: {per_core}.")
    starts = _joined(
        f"{LABELS[loader]} {1000 * by_case[shown]['median']:.0f} ms"
        for loader, by_case in result["first_batch_seconds"].items()
        if shown in by_case
    )
    lines.append(f"First batch of an epoch at {shown} after: {starts}.")
    grown = _joined(
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
    """The case that single figures are given for: the base's size where it was timed."""
    names = [case["name"] for case in result["cases"]]
    base = f"{result['setting']['base'][0]} px"
    return base if base in names else names[0]


def _batch(case: dict[str, Any]) -> str:
    """The distinct images of a step; a mix has several."""
    return f"{case['batch_sizes'][0]:,}" if len(case["batch_sizes"]) == 1 else ""


def _range(summary: dict[str, float], digits: int) -> str:
    return f"{summary['min']:,.{digits}f}-{summary['max']:,.{digits}f}"


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(parts)
