"""The network of a recipe, and how its training passes run."""

from __future__ import annotations

import torch
from composer.loss import soft_cross_entropy
from composer.metrics import CrossEntropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mixsize.algorithms.execution.composer_model import EngineClassifier
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime
from mixsize.algorithms.regime.shapes import shapes_of
from mixsize.recipes.build.devices import DTYPES
from mixsize.recipes.build.losses import build_loss
from mixsize.recipes.config import schema
from mixsize.recipes.models.finetuning import train_head_and_batch_norm
from mixsize.recipes.models.network import create_network
from mixsize.recipes.models.surgery import Surgery
from mixsize.system.ranks import process_rank

#: Names of the evaluation metrics.
ACCURACY = "MulticlassAccuracy"
LOSS = "CrossEntropy"


class MeanCrossEntropy(CrossEntropy):
    """Mean over images. Composer's is a mean of batch means, in which an image of a smaller batch counts for more."""

    def update(self, preds: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch."""
        self.sum_loss += soft_cross_entropy(preds, targets, reduction="sum")
        self.total_batches += len(targets)


class Accuracy(MulticlassAccuracy):
    """Top-1 over all images, which counts the hits of each class too.

    Attributes:
        class_hits: int64 ``(classes,)``, of this rank.
    """

    class_hits: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, average="micro")
        self.add_state("class_hits", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch of outputs and classes."""
        super().update(preds, target)
        self.class_hits.index_add_(0, target, (preds.argmax(1) == target).long())

    def hits_by_class(self) -> list[int]:
        """Over all ranks; each must call it."""
        with self.sync_context():
            return self.class_hits.tolist()


def build_model(recipe: schema.Recipe, num_classes: int, device: torch.device) -> EngineClassifier:
    """The network with its loss and metrics.

    Args:
        recipe: the recipe.
        num_classes: outputs of the network.
        device: that will train; the model is not moved to it.
    """
    module = create_network(recipe.model, num_classes, Surgery.of(recipe))
    if recipe.optimizer.train == "head_and_batch_norm":
        train_head_and_batch_norm(module)
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return EngineClassifier(
        module,
        cpu_dtype=DTYPES[recipe.precision] if device.type == "cpu" else None,
        num_classes=num_classes,
        val_metrics=MetricCollection({LOSS: MeanCrossEntropy(), ACCURACY: Accuracy(num_classes)}),
        loss_fn=build_loss(recipe.loss),
    )


def set_engine(
    recipe: schema.Recipe, model: EngineClassifier, regime: Regime | Progression, device: torch.device
) -> None:
    """Set how the network's training passes run: eager, compiled or from CUDA graphs.

    Raises:
        ValueError: CUDA graphs without CUDA, or on several ranks.
    """
    engine, ranks = recipe.execution.network, process_rank()[1]
    if engine == "cuda_graphs":
        if ranks > 1:
            raise ValueError(
                f"execution.network: cuda_graphs runs on one rank and this run has {ranks}, whose gradients are "
                "averaged during the backward pass; choose compile"
            )
        if device.type != "cuda":
            raise ValueError(f"execution.network: cuda_graphs needs a GPU, and this runs on the {device}; choose eager")
        # A graph is captured at fixed addresses, so the Trainer must not move the model afterwards.
        model.to(device)
    model.use_engine(engine, len(shapes_of(regime, ranks, recipe.microbatch_images)))
