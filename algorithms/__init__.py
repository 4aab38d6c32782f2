"""The regime and the algorithms, each usable from a bare PyTorch loop or attached to a Composer Trainer.

Rooms, each importing only those before it: ``regime``, ``training``, ``mixing``, ``execution``, ``averaging``,
``batchnorm``, ``smoothing``, ``sampling``, ``measurement``. None of them knows a loader. Names load on first use, so
that the regime's arithmetic needs neither torch nor Composer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixsize.system.packages import load

if TYPE_CHECKING:
    from mixsize.algorithms.averaging.model_ema import ModelEMA as ModelEMA
    from mixsize.algorithms.batchnorm.bank import StatisticsBank as StatisticsBank
    from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate as BNCalibrate
    from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm as calibrate_batch_norm
    from mixsize.algorithms.execution.engines import training_passes as training_passes
    from mixsize.algorithms.execution.preflight import Preflight as Preflight
    from mixsize.algorithms.execution.visit import visit_shapes as visit_shapes
    from mixsize.algorithms.measurement.evaluation import Score as Score
    from mixsize.algorithms.measurement.evaluation import SizeScore as SizeScore
    from mixsize.algorithms.measurement.evaluation import evaluate as evaluate
    from mixsize.algorithms.measurement.evaluation import evaluate_sizes as evaluate_sizes
    from mixsize.algorithms.measurement.gradients import compare_gradients as compare_gradients
    from mixsize.algorithms.measurement.gradients import gradient_vector as gradient_vector
    from mixsize.algorithms.measurement.gradients import spearman as spearman
    from mixsize.algorithms.mixing.mix_batch import cutmix as cutmix
    from mixsize.algorithms.mixing.mix_batch import mix_batch as mix_batch
    from mixsize.algorithms.mixing.mix_batch import mixup as mixup
    from mixsize.algorithms.mixing.mixing import Mixing as Mixing
    from mixsize.algorithms.regime.phases import Phase as Phase
    from mixsize.algorithms.regime.plan import EpochPlan as EpochPlan
    from mixsize.algorithms.regime.plan import Step as Step
    from mixsize.algorithms.regime.plan import plan_epoch as plan_epoch
    from mixsize.algorithms.regime.progression import Progression as Progression
    from mixsize.algorithms.regime.regime import SIZE_DISTRIBUTIONS as SIZE_DISTRIBUTIONS
    from mixsize.algorithms.regime.regime import Base as Base
    from mixsize.algorithms.regime.regime import Choice as Choice
    from mixsize.algorithms.regime.regime import Regime as Regime
    from mixsize.algorithms.regime.shapes import shapes_of as shapes_of
    from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling as MixSizeSampling
    from mixsize.algorithms.sampling.progressive_resize import ProgressiveResize as ProgressiveResize
    from mixsize.algorithms.sampling.resizing import resize_batch as resize_batch
    from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing as GradSmoothing
    from mixsize.algorithms.smoothing.gradient_smoother import GradientSmoother as GradientSmoother
    from mixsize.algorithms.training.curriculum import Curriculum as Curriculum
    from mixsize.algorithms.training.epoch_schedule import EpochSchedule as EpochSchedule
    from mixsize.algorithms.training.schedules import constant as constant
    from mixsize.algorithms.training.schedules import cosine as cosine
    from mixsize.algorithms.training.schedules import multistep as multistep
    from mixsize.algorithms.training.schedules import one_cycle as one_cycle
    from mixsize.algorithms.training.schedules import step_decay as step_decay
    from mixsize.algorithms.training.setters import attribute_setter as attribute_setter
    from mixsize.algorithms.training.setters import drop_path_setter as drop_path_setter
    from mixsize.algorithms.training.setters import dropout_setter as dropout_setter
    from mixsize.algorithms.training.step_seed import StepSeed as StepSeed
    from mixsize.algorithms.training.training_clock import TrainingClock as TrainingClock

_MODULES = {
    "averaging.model_ema": ("ModelEMA",),
    "batchnorm.bn_calibrate": ("BNCalibrate",),
    "batchnorm.bank": ("StatisticsBank",),
    "batchnorm.calibration": ("calibrate_batch_norm",),
    "execution.engines": ("training_passes",),
    "execution.preflight": ("Preflight",),
    "execution.visit": ("visit_shapes",),
    "measurement.evaluation": ("Score", "SizeScore", "evaluate", "evaluate_sizes"),
    "measurement.gradients": ("compare_gradients", "gradient_vector", "spearman"),
    "mixing.mix_batch": ("cutmix", "mix_batch", "mixup"),
    "mixing.mixing": ("Mixing",),
    "regime.phases": ("Phase",),
    "regime.plan": ("EpochPlan", "Step", "plan_epoch"),
    "regime.progression": ("Progression",),
    "regime.regime": ("SIZE_DISTRIBUTIONS", "Base", "Choice", "Regime"),
    "regime.shapes": ("shapes_of",),
    "sampling.mixsize_sampling": ("MixSizeSampling",),
    "sampling.progressive_resize": ("ProgressiveResize",),
    "sampling.resizing": ("resize_batch",),
    "smoothing.grad_smoothing": ("GradSmoothing",),
    "smoothing.gradient_smoother": ("GradientSmoother",),
    "training.curriculum": ("Curriculum",),
    "training.epoch_schedule": ("EpochSchedule",),
    "training.schedules": ("constant", "cosine", "multistep", "one_cycle", "step_decay"),
    "training.setters": ("attribute_setter", "drop_path_setter", "dropout_setter"),
    "training.step_seed": ("StepSeed",),
    "training.training_clock": ("TrainingClock",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return load(f"{__name__}.{_HOMES[name]}", name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
