"""The setters of a network's rates that a progression changes."""

from __future__ import annotations

from torch import nn

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training.setters import Setter, drop_path_setter, dropout_setter
from mixsize.recipes.config.schema import Model


def drop_setters(network: nn.Module, config: Model, regime: Regime | Progression) -> dict[str, Setter]:
    """Setting -> setter, for those of dropout and stochastic depth that the regime sets.

    Args:
        network: as it was made.
        config: what it was made from, with the rates.
        regime: the regime.

    Raises:
        ValueError: the network has none; the message starts with ``regime:``.
    """
    asked = regime.strengths if isinstance(regime, Progression) else ()
    setters = {}
    try:
        for name, make in (("dropout", dropout_setter), ("drop_path", drop_path_setter)):
            if name in asked:
                rate = config.kwargs.get("drop_rate" if name == "dropout" else "drop_path_rate")
                setters[name] = make(network, float(rate) if isinstance(rate, (int, float)) else None)
    except ValueError as error:
        raise ValueError(f"regime: {error}") from error
    return setters
