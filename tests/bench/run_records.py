"""Run records made by hand, for the tests of what is read off them."""

from __future__ import annotations

from mixsize.recipes.run_record import RunRecord

ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.7.0", "composer": "0.32.1", "timm": "1.0.31", "ffcv": "1.0.2",
    "cpu": "a processor", "cores": 2, "gpu": None, "ranks": 1,
}  # fmt: skip


def make_record(label="fixed", seed=17, curve=(), **changes) -> RunRecord:
    """A finished run; ``curve`` has (epoch, step, seconds, pixels, accuracy at 16 px) and gives the totals."""
    points = [
        {"epoch": e, "step": t, "seconds": s, "pixels": p, "train_loss": None, "accuracy": {"16": a}}
        for e, t, s, p, a in curve
    ]
    totals = {}
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
