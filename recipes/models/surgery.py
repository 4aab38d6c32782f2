"""Composer's algorithms that change the network's layers, applied when it is built: for training, plans, evaluation.

Composer itself changes a network inside of its Trainer, where the optimiser's groups, the engine of the passes and the
checks of sizes already hold the network as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mixsize.recipes.config.compose import parse_file
from mixsize.recipes.config.composer_arguments import check_arguments
from mixsize.recipes.config.composer_table import ALGORITHMS
from mixsize.recipes.config.schema import Recipe

_SAME = ("LayerNorm", "GroupNorm")


@dataclass(frozen=True)
class Surgery:
    """The algorithms of a recipe that change its network.

    Attributes:
        algorithms: name -> arguments, in the recipe's order.
        precision: the recipe's; layers of low precision depend on it.
    """

    algorithms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precision: str = "fp32"

    @classmethod
    def of(cls, recipe: Recipe) -> Surgery:
        """That of a recipe."""
        return cls(_changing(recipe.algorithms), recipe.precision)

    @classmethod
    def of_file(cls, recipe: Path | None) -> Surgery:
        """That of a run's ``recipe.yaml``; none where there is no file.

        Raises:
            ValueError: it cannot be read, or its section ``algorithms`` has arguments that Composer refuses.
        """
        if recipe is None or not recipe.is_file():
            return cls()
        # No other key: weights of a version with other keys serve as well.
        data = parse_file(str(recipe))
        algorithms = data.get("algorithms") or {}
        if not (isinstance(algorithms, dict) and all(isinstance(one, dict) for one in algorithms.values())):
            raise ValueError(f"{recipe}: algorithms must be a mapping of names to arguments")
        changing = _changing(algorithms)
        try:
            check_arguments("algorithms", changing)
        except ValueError as error:
            raise ValueError(f"{recipe}: algorithms: {error}") from error
        return cls(changing, data.get("precision", "fp32"))

    def apply(self, network: nn.Module) -> None:
        """Change a network's layers in place.

        Raises:
            ValueError: an algorithm finds no layer to change, refuses its arguments, or would put plain layers in the
                place of layers that compute something else.
        """
        for name, arguments in self.algorithms.items():
            before, special = _layers(network), _special_layers(network)
            try:
                self._change(network, name, arguments)
            except (TypeError, ValueError) as error:
                raise ValueError(f"algorithms.{name}: {error}") from error
            if _layers(network) == before:
                given = f" with {dict(arguments)}" if arguments else ""
                raise ValueError(f"algorithms.{name}: {type(network).__name__} has no layer that it changes{given}")
            lost = [cls.__name__ for cls, count in special.items() if _count(network, cls) < count]
            if lost:
                raise ValueError(f"algorithms.{name}: would put plain layers in the place of {', '.join(sorted(lost))}")

    def _change(self, network: nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
        from composer import functional  # It takes seconds, which networks without surgery need not wait for.
        from composer.algorithms.warnings import NoEffectWarning
        from composer.core import Precision

        function = ALGORITHMS[name].surgery
        assert function is not None
        extra = {"precision": Precision(self.precision)} if name.startswith("low_precision") else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # An error follows instead.
            getattr(functional, function)(network, **arguments, **extra)


def _changing(algorithms: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: one for name, one in algorithms.items() if name in ALGORITHMS and ALGORITHMS[name].surgery}


def _special_layers(network: nn.Module) -> dict[type, int]:
    """Class -> number of the layers of classes that are not PyTorch's; timm's of these names compute the same."""
    classes = {type(layer) for layer in network.modules()}
    own = [cls for cls in classes if not cls.__module__.startswith("torch.") and cls.__name__ not in _SAME]
    return {cls: _count(network, cls) for cls in own}


def _count(network: nn.Module, cls: type) -> int:
    return sum(isinstance(layer, cls) for layer in network.modules())


def _layers(network: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(layer)) for name, layer in network.named_modules()]
