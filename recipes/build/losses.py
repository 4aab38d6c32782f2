"""The loss of a recipe, for labels as class indices and for soft labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy  # pyright: ignore[reportPrivateImportUsage]

from mixsize.algorithms.mixing.mix_batch import soft_labels
from mixsize.recipes.config import optimisation


class CrossEntropy:
    """Cross-entropy, averaged over images.

    Args:
        label_smoothing: probability spread evenly over all classes, in [0, 1).

    Attributes:
        label_smoothing: may be set between steps.
    """

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of outputs ``(N, classes)`` for int64 labels ``(N,)`` or soft labels ``(N, classes)``."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy:
    """timm's binary cross-entropy, whose label smoothing leaves out soft labels; here they are smoothed as others are.

    Args:
        label_smoothing: a label is multiplied by ``1 - label_smoothing``, and ``label_smoothing / classes`` is added.
        target_threshold: labels above it count as 1 and others as 0; None: as they are.
        sum_classes: sum over classes in place of the average.

    Attributes:
        label_smoothing: may be set between steps.
    """

    def __init__(self, label_smoothing: float, target_threshold: float | None, sum_classes: bool) -> None:
        self.label_smoothing = label_smoothing
        self._loss = TimmBinaryCrossEntropy(0.0, target_threshold, sum_classes=sum_classes)

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of outputs ``(N, classes)`` for int64 labels ``(N,)`` or soft labels ``(N, classes)``."""
        classes = outputs.shape[1]
        soft = soft_labels(targets, classes) if targets.ndim == 1 else targets
        return self._loss(outputs, soft * (1 - self.label_smoothing) + self.label_smoothing / classes)


def build_loss(config: optimisation.Loss) -> CrossEntropy | BinaryCrossEntropy:
    """The loss of a recipe."""
    if isinstance(config, optimisation.BinaryCrossEntropy):
        return BinaryCrossEntropy(config.label_smoothing, config.target_threshold, config.sum_classes)
    return CrossEntropy(config.label_smoothing)
