"""The strengths of training settings that a progression sets, and what each of them is set on."""

from __future__ import annotations

from composer.core import Algorithm

from mixsize.algorithms.execution.composer_model import EngineClassifier
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training.curriculum import Curriculum
from mixsize.algorithms.training.setters import attribute_setter
from mixsize.recipes.config.schema import Model
from mixsize.recipes.models.drops import drop_setters

#: Settings that are attributes of their names: of an algorithm, or of the loss.
_ATTRIBUTES = ("mixup", "cutmix", "label_smoothing")


def build_curriculum(
    config: Model, regime: Regime | Progression, model: EngineClassifier, algorithms: list[Algorithm]
) -> Curriculum | None:
    """The algorithm that sets strengths; None for a regime that sets none but the loader's.

    Args:
        config: what the network was made from.
        regime: the regime.
        model: with the network and the loss.
        algorithms: of the run, among them that of Mixup and CutMix.

    Raises:
        ValueError: a strength of something that the run does not have.
    """
    if not isinstance(regime, Progression) or not set(regime.strengths) - {"magnitude"}:
        return None
    setters = drop_setters(model.module, config, regime)
    for name in _ATTRIBUTES:
        for target in (model._loss_fn, *algorithms):
            if hasattr(target, name):
                setters[name] = attribute_setter(target, name)
    return Curriculum(regime, setters)
