"""The setters of a network's rates that a progression changes."""

from __future__ import annotations

from torch import nn

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.training.setters import Setter, drop_path_setter, dropout_setter


def drop_setters(network: nn.Module, regime: Regime | Progression) -> dict[str, Setter]:
    """Setting -> setter, for those of dropout and stochastic depth that the regime sets.

    Raises:
        ValueError: the network has none; the message starts with ``regime:``.
    """
    makers = {"dropout": dropout_setter, "drop_path": drop_path_setter}
    asked = regime.strengths if isinstance(regime, Progression) else ()
    try:
        return {name: make(network) for name, make in makers.items() if name in asked}
    except ValueError as error:
        raise ValueError(f"regime: {error}") from error
