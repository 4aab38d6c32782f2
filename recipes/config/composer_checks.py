"""What a recipe's `algorithms` and `callbacks` ask of its other sections."""

import re
from typing import TYPE_CHECKING, Any

from mixsize.recipes.config.composer_arguments import check_arguments, classes, parameters
from mixsize.recipes.config.composer_table import ALGORITHMS, Part
from mixsize.recipes.config.section import Path, fault

if TYPE_CHECKING:
    from mixsize.recipes.config.schema import Recipe

_PART_OF_RUN = re.compile(r"0*[1-9.][0-9.]*dur")


def check_composer(recipe: "Recipe") -> None:
    """Refuse names, arguments and combinations that training could not use.

    Raises:
        PydanticCustomError: the message names the key and the reason.
    """
    check_arguments("algorithms", recipe.algorithms)
    check_arguments("callbacks", recipe.callbacks)
    for name, arguments in recipe.algorithms.items():
        if name in ALGORITHMS:
            _check_algorithm(recipe, ALGORITHMS[name], ("algorithms", name))
        _check_times(recipe, name, arguments)
    for name, arguments in recipe.callbacks.items():
        _check_label(recipe, arguments, ("callbacks", name))


def _check_algorithm(recipe: "Recipe", part: Part, path: Path) -> None:
    if path[-1].startswith("low_precision") and recipe.precision == "fp32":
        raise fault("has no effect with precision: fp32, only with amp_bf16 and amp_fp16", path)
    if part.adds_weights and recipe.optimizer.train != "all":
        raise fault(f"its new weights would not be trained: optimizer.train is {recipe.optimizer.train}", path)
    if part.eager_only and recipe.execution.network != "eager":
        raise fault(f"needs execution.network: eager, it is {recipe.execution.network}", path)
    if not part.resumes and recipe.output.save_every != "never":
        raise fault(
            f"a run cannot go on from a checkpoint with it: set output.save_every: never, it is"
            f" {recipe.output.save_every}",
            path,
        )
    if path[-1] == "sam" and recipe.smoothing is not None:
        raise fault("computes two gradients a step, and smoothing would take them for two steps: use one of them", path)


def _check_times(recipe: "Recipe", name: str, arguments: dict[str, Any]) -> None:
    """A run of given seconds has no fraction of its length for Composer."""
    if recipe.duration[1] != "sec":
        return
    defaults = {key: one.default for key, one in parameters(classes("algorithms")[name]).items()}
    for key, value in {**defaults, **arguments}.items():
        if isinstance(value, str) and _PART_OF_RUN.fullmatch(value) and float(value.removesuffix("dur")):
            raise fault(
                f"{value} is a part of max_duration, which has no known number of steps: {recipe.max_duration}; give"
                " epochs ('5ep')",
                ("algorithms", name, key),
            )


def _check_label(recipe: "Recipe", arguments: dict[str, Any], path: Path) -> None:
    labels = ["train", *(f"eval_{size_px}px" for size_px in recipe.evaluation.sizes)]
    if arguments.get("dataloader_label", "train") not in labels:
        raise fault(f"must be one of {', '.join(labels)}", (*path, "dataloader_label"))
