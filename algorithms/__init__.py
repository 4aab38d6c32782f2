"""The regime and the algorithms, each usable from a bare PyTorch loop or attached to a Composer Trainer.

Names load on first use, so that the regime's arithmetic needs neither torch nor Composer.
"""

from __future__ import annotations

from typing import Any

from mixsize.packages import load

_HOMES = {
    "SIZE_DISTRIBUTIONS": "regime",
    "BNCalibrate": "bn_calibrate",
    "Base": "regime",
    "Choice": "regime",
    "Regime": "regime",
    "Score": "evaluation",
    "SizeScore": "evaluation",
    "StatisticsBank": "calibration",
    "calibrate_batch_norm": "calibration",
    "compare_gradients": "gradients",
    "evaluate": "evaluation",
    "evaluate_sizes": "evaluation",
    "gradient_vector": "gradients",
    "resize_batch": "mixsize_sampling",
    "smooth_norm": "smoothing",
    "spearman": "gradients",
    "EpochSchedule": "epoch_schedule",
    "GradSmoothing": "grad_smoothing",
    "GradientSmoother": "smoothing",
    "MixSizeSampling": "mixsize_sampling",
    "InputShape": "shapes",
    "Phase": "progression",
    "Preflight": "preflight",
    "ProgressiveResize": "progressive_resize",
    "Progression": "progression",
    "ShapeGraphs": "engines",
    "StepSeed": "step_seed",
    "shapes_of": "shapes",
    "TrainingClock": "training_clock",
    "training_passes": "engines",
    "visit_shapes": "shapes",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return load(f"{__name__}.{_HOMES[name]}", name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
