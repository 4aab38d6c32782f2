"""The tables of a loader result and the notes below it, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixsize.bench.loader.loaders import LOADERS, OURS

#: Serves no images; has no first batch.
FLOOR = "entropy_floor"

Table = tuple[list[str], list[list[str]]]


def timed(result: dict[str, Any]) -> list[str]:
    """The loaders that served any case, in the order in which they are shown."""
    return [loader for loader in LOADERS if result["rates"].get(loader)]


def tables(result: dict[str, Any]) -> list[Table]:
    """Head and rows of two tables, with a row for each loader and a column for each case.

    The first has images a second, and ours relative to FFCV's; the second has CPU time. Cells of cases that a loader
    cannot serve are empty.
    """
    names = [case["name"] for case in result["cases"]]
    times = _rows(result, "cpu_ms", lambda cpu: f"{cpu['median']:#.3g}")
    return [(["images/s", *names], _rate_rows(result)), (["CPU ms/image", *names], times)]


def _rate_rows(result: dict[str, Any]) -> list[list[str]]:
    rates, cases = result["rates"], result["cases"]
    rows = [["batch", *map(_batch, cases)]]
    rows += _rows(result, "rates", lambda rate: f"{rate['median']:,.0f} ({_range(rate, 0)})")
    if rates.get("ffcv"):
        stock = {case["name"]: _stock_rate(case, rates["ffcv"]) for case in cases}
        for loader in OURS:
            if rates.get(loader):
                compared = [
                    f"{rates[loader][name]['median'] / rate:.2f}x" if rate else "" for name, rate in stock.items()
                ]
                rows.append([f"{LOADERS[loader].label} / FFCV", *compared])
    return rows


def _rows(result: dict[str, Any], key: str, words: Callable[[dict[str, Any]], str]) -> list[list[str]]:
    names = [case["name"] for case in result["cases"]]
    return [
        [
            LOADERS[loader].label,
            *(words(result[key][loader][name]) if name in result[key][loader] else "" for name in names),
        ]
        for loader in timed(result)
    ]


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
        f"{setting['epoch_images']:,} read in an epoch.",
        "CPU time: user and system time of a loader's process, its threads and its worker processes; medians.",
    ]
    if FLOOR in timed(result):
        lines.append(
            "The floor reads the entropy code of whole images and makes no batches. Loaders of crops can stop below a "
            "crop's last row, and smaller stored copies have less to read."
        )
    plain = all(len(case["sizes_px"]) == 1 and case["duplicates"] == [1] for case in result["cases"])
    if result["rates"].get("ffcv") and not plain:
        lines.append(
            "FFCV serves neither mixes nor duplicates: mixes are compared with its share-weighted fixed sizes, "
            "duplicates with single views."
        )
    if not setting["images"] and not setting["pad_crop"]:
        lines.append("Loaders that read image files (`--images`) were left out.")
    for loader, by_case in result["mix_cost"].items():
        costs = ", ".join(f"{name} {cost['median']:.3f}x ({_range(cost, 3)})" for name, cost in by_case.items())
        if costs:
            lines.append(
                f"Mixing sizes, against the share-weighted fixed sizes, {LOADERS[loader].label}: {costs} of their time "
                f"(n={setting['rounds']}, target at most {result['mix_cost_target']})."
            )
    shown = _example(result)
    starts = ", ".join(
        f"{LOADERS[loader].label} {1000 * by_case[shown]['median']:.0f} ms"
        for loader, by_case in result["first_batch_seconds"].items()
        if shown in by_case and loader != FLOOR
    )
    if starts:
        lines.append(f"First batch of an epoch at {shown} after: {starts}.")
    grown = ", ".join(
        f"{LOADERS[loader].label} {name} {mebibytes:.0f} MiB"
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
