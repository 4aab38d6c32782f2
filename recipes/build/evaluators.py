"""Composer's evaluators of a recipe, one for each evaluation size."""

from __future__ import annotations

import torch
from composer import Evaluator

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.recipes.build.data import build_eval_loader
from mixsize.recipes.build.model import ACCURACY, LOSS
from mixsize.recipes.config import schema
from mixsize.recipes.planning.checks import check_evaluation_stride


def build_evaluators(recipe: schema.Recipe, evaluation: Beton, stride_px: int, device: torch.device) -> list[Evaluator]:
    """One evaluator for each evaluation size.

    Raises:
        ValueError: a size is not a multiple of the network's stride.
    """
    check_evaluation_stride(recipe, stride_px)
    evaluators = []
    for size_px in recipe.evaluation.sizes:
        loader = build_eval_loader(recipe, evaluation, size_px, recipe.evaluation.batch_size, device)
        evaluators.append(Evaluator(label=evaluator_label(size_px), dataloader=loader, metric_names=[ACCURACY, LOSS]))
    return evaluators


def evaluator_label(size_px: int) -> str:
    """Composer's label of the evaluator of a size."""
    return f"eval_{size_px}px"
