"""Run records made by hand, for tests of everything that reads records."""

from __future__ import annotations

from mixsize.recipes.records.run_record import RunRecord

ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
}  # fmt: skip


def make_point(epoch, step, seconds, pixels, accuracy) -> dict:
    """An evaluation; ``accuracy`` at 16 px, or by size."""
    by_size = accuracy if isinstance(accuracy, dict) else {"16": accuracy}
    times = {"epoch": epoch, "step": step, "seconds": seconds, "pixels": pixels}
    return {**times, "train_loss": None, "accuracy": by_size}


def make_record(label="fixed", seed=17, curve=(), **changes) -> RunRecord:
    """A finished run; ``curve`` has the arguments of `make_point` and gives the totals."""
    points = [make_point(*point) for point in curve]
    totals = {"epochs": 1, "steps": 1, "pixels": 1, "seconds": {"training": 1.0}}
    if points:
        last = points[-1]
        totals = {"epochs": last["epoch"], "steps": last["step"], "pixels": last["pixels"]}
        totals |= {"seconds": {"training": last["seconds"]}, "accuracy": last["accuracy"]}
    return RunRecord.model_validate(
        {
            "label": label,
            "name": f"digits-{label}-seed{seed}",
            "seed": seed,
            "recipe": {"seed": seed, "calibration": None, "regime": {"base": {"size_px": 16}}},
            "environment": ENVIRONMENT,
            "curve": points,
            **totals,
            **changes,
        }
    )


#: label -> (size, batch, duplicates, share of the steps), steps, final accuracy at 16 px, whether it smooths.
_REGIMES = {
    "fixed": ([(16, 32, 1, 1.0)], 1056, 0.95, False),
    "digits_bplus": ([(24, 14, 1, 0.3), (16, 32, 1, 0.45), (8, 128, 1, 0.25)], 864, 0.953, True),
    "digits_dplus": ([(24, 14, 1, 0.2), (16, 32, 1, 0.4), (8, 32, 4, 0.4)], 1008, 0.98, True),
    "progressive": ([(8, 64, 1, 0.3), (16, 32, 1, 0.7)], 846, 0.91, False),
}
_SIZES = (8, 12, 16, 20, 24)


def make_suite(seeds: int = 3, suite: str = "digits") -> list[RunRecord]:
    """A whole suite with all that a record can hold: four regimes, and one run that failed."""
    records = []
    for place, (label, (shapes, steps, top, smooths)) in enumerate(_REGIMES.items()):
        for seed in range(17, 17 + seeds):
            # Some spread, the same in every run of the tests.
            noise = 0.003 * (5 * seed * (place + 1) % 7 - 3)
            rows = [
                {
                    "size_px": s,
                    "batch_size": b,
                    "duplicates": d,
                    "steps": round(steps * share),
                    "seconds": 0.03 + s / 1e3,
                }
                for s, b, d, share in shapes
            ]
            pixels = sum(row["steps"] * row["size_px"] ** 2 * row["batch_size"] * row["duplicates"] for row in rows)
            narrow = 3.2 if len(shapes) > 1 else 14.0
            own = {
                str(s): round(top + noise - narrow * (s / 16 - 1) ** 2 / (6 if s > 16 else 3) / 4, 4) for s in _SIZES
            }
            own = {size: max(value, 0.1) for size, value in own.items()}
            rate = 2.0 + 0.2 * place
            seconds = steps * (0.045 + 0.004 * place) * (1 + noise)
            curve = []
            for epoch in range(1, 13):
                learnt = 1 if epoch == 12 else 1 - 0.8 * 2 ** (-rate * epoch / 4)
                accuracy = {size: round(value * learnt, 4) for size, value in own.items()}
                done = (epoch, steps * epoch // 12, seconds * epoch / 12, pixels * epoch // 12)
                curve.append((*done, accuracy))
            records.append(
                make_record(
                    label,
                    seed,
                    curve,
                    suite=suite,
                    recipe={
                        "seed": seed,
                        "model": {"name": "resnet10t"},
                        "calibration": {"when": "last"} if label != "fixed" else None,
                        "regime": {"base": {"size_px": 16}},
                    },
                    regime_digest=f"{place:012x}",
                    plan_digest=f"{place * 100 + seed:012x}",
                    sequence_crc=1000 * place + seed,
                    shapes=rows,
                    steps=steps,
                    epochs=12,
                    samples=17_244,
                    distinct_samples=1437,
                    pixels=pixels,
                    seconds={
                        "fit": seconds + 12,
                        "set_up": 3.0,
                        "training": seconds,
                        "data_wait": 1.5,
                        "steps": seconds - 1.5,
                        "evaluation": 6.0,
                        "calibration": 3.0 if label != "fixed" else 0.0,
                    },
                    peak_memory_bytes={"host": (900 + 10 * place) * 2**20, "gpu": None},
                    accuracy=own,
                    loss={size: 1 - value for size, value in own.items()},
                    calibrated_accuracy=None
                    if label == "fixed"
                    else {size: round(value + (0.999 - value) / 3, 4) for size, value in own.items()},
                    macs={str(s): 40_000 * s**2 for s in _SIZES},
                    gradient_norms=[
                        {
                            "size_px": row["size_px"],
                            "steps": row["steps"],
                            "mean": 24 / row["size_px"] + noise,
                            "std": 6 / row["size_px"],
                            "smoothed_mean": 1.6 + noise if smooths else None,
                            "smoothed_std": 0.2 if smooths else None,
                        }
                        for row in rows
                    ],
                    commit="b31dfe7a0c1d2e3f405162738495a6b7c8d9eaf0",
                    dirty=False,
                )
            )
    error = "Traceback (most recent call last):\n  ...\nRuntimeError: CUDA out of memory <at 16 px> & nowhere else"
    commit = records[0].commit
    records.append(make_record("s8_dplus", 17, suite=suite, outcome="failed", error=error, commit=commit, dirty=False))
    return records
