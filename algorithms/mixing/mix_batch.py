"""Mixup and CutMix of a batch with duplicates, as plain functions.

Composer's and timm's pair a view with a shuffled or mirrored position of the batch. In a batch with duplicates that may
be another view of the same image, and the mixture then is of one label.
"""

from __future__ import annotations

import math

import numpy as np
import torch

#: A rectangle of an image in pixels: (top, bottom, left, right), ends excluded.
Box = tuple[int, int, int, int]


def mixup(
    images: torch.Tensor, labels: torch.Tensor, lam: float, num_classes: int, duplicates: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add to each view ``lam`` times itself and ``1 - lam`` times a view of another image.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    Args:
        images: floating point, shape ``(B * D, C, H, W)``, the D views of an image side by side; at least 2 images.
        labels: int64, shape ``(B * D,)``.
        lam: share of each view's own pixels, in [0, 1].
        num_classes: number of classes.
        duplicates: views D of each image. View d of image i is mixed with view d of image i + 1 + d, counted in a
            circle that leaves out image i: the views of an image get different partners while there are enough.

    Returns:
        New images, and soft labels, float32 of shape ``(B * D, num_classes)``: ``lam`` for a view's own class and
        ``1 - lam`` for its partner's.

    Example:
        >>> images, labels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
        >>> mixed, soft = mixup(images, labels, lam=0.75, num_classes=2)
        >>> mixed.flatten().tolist(), soft.tolist()
        ([0.25, 0.75], [[0.75, 0.25], [0.25, 0.75]])
    """
    other = partners(len(images), duplicates, images.device)
    return torch.lerp(images[other], images, lam), _mixed_labels(labels, other, lam, num_classes)


def cutmix(
    images: torch.Tensor, labels: torch.Tensor, box: Box, num_classes: int, duplicates: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a rectangle of another image's view into each view.

    Source: Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features".

    Args:
        images: see :func:`mixup`; of any dtype.
        labels: see :func:`mixup`.
        box: (top, bottom, left, right) in pixels, ends excluded; the same place in both views.
        num_classes: see :func:`mixup`.
        duplicates: see :func:`mixup`.

    Returns:
        New images, and soft labels as those of :func:`mixup`: the weight of each class is its share of the pixels.

    Example:
        >>> images, labels = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]), torch.tensor([0, 1])
        >>> mixed, soft = cutmix(images, labels, (0, 2, 0, 2), num_classes=2)
        >>> mixed[0].mean().item(), soft[0].tolist()
        (0.25, [0.75, 0.25])
    """
    other = partners(len(images), duplicates, images.device)
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][other]
    lam = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    return mixed, _mixed_labels(labels, other, lam, num_classes)


def mix_batch(
    images: torch.Tensor,
    labels: torch.Tensor,
    rng: np.random.Generator,
    num_classes: int,
    duplicates: int = 1,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch by Mixup or CutMix, as timm's ``Mixup`` draws them in its mode ``batch``: one draw for the batch.

    Labels are not smoothed here: smoothing mixed labels in the loss is the same as mixing smoothed ones.

    Args:
        images: see :func:`mixup`; a batch of one image stays as it is.
        labels: see :func:`mixup`.
        rng: all draws come from it.
        num_classes: see :func:`mixup`.
        duplicates: see :func:`mixup`.
        mixup_alpha: the share ``lam`` is drawn from Beta(alpha, alpha); 0: no Mixup.
        cutmix_alpha: the same for CutMix, where ``1 - lam`` is the area of the box before it is cut at the border.
        prob: probability that a batch is mixed.
        switch_prob: probability of CutMix where both are on.

    Returns:
        Images, and soft labels whether the batch was mixed or not.

    Example:
        >>> import numpy as np
        >>> images, labels = torch.rand(8, 3, 32, 32), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> rng = np.random.default_rng((17, 0, 5))  # seed, epoch, step
        >>> mixed, soft = mix_batch(images, labels, rng, 10, duplicates=2, mixup_alpha=0.2, cutmix_alpha=1.0)
        >>> mixed.shape, soft.shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 10]))
    """
    is_on = mixup_alpha > 0 or cutmix_alpha > 0
    if not is_on or len(images) == duplicates or rng.random() >= prob:
        return images, soft_labels(labels, num_classes)
    if cutmix_alpha > 0 and (mixup_alpha == 0 or rng.random() < switch_prob):
        box = draw_box(images.shape[-2], images.shape[-1], rng.beta(cutmix_alpha, cutmix_alpha), rng)
        return cutmix(images, labels, box, num_classes, duplicates)
    return mixup(images, labels, rng.beta(mixup_alpha, mixup_alpha), num_classes, duplicates)


def draw_box(height: int, width: int, lam: float, rng: np.random.Generator) -> Box:
    """A box of ``1 - lam`` of the image's area around a uniform centre, cut at the border.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        lam: in [0, 1].
        rng: the centre is drawn from it.
    """
    ratio = math.sqrt(1 - lam)
    top, bottom = _span(height, int(height * ratio), rng)
    left, right = _span(width, int(width * ratio), rng)
    return top, bottom, left, right


def _span(length: int, cut: int, rng: np.random.Generator) -> tuple[int, int]:
    centre = int(rng.integers(length))
    return max(0, centre - cut // 2), min(length, centre + (cut + 1) // 2)


def partners(num_views: int, duplicates: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """For each view of a batch the view that it is mixed with, see :func:`mixup`.

    Nothing is drawn: the order of a batch is random already.

    Args:
        num_views: B * D, with at least 2 images B.
        duplicates: D.
        device: of the result.

    Returns:
        Indices of views, int64, shape ``(B * D,)``: a permutation in which no view's partner is of its own image.

    Raises:
        ValueError: views that are no multiple of the duplicates, or of one image only.
    """
    num_images, rest = divmod(num_views, duplicates)
    if rest or num_images < 2:
        raise ValueError(f"{num_views} views with {duplicates} of each image; mixing takes whole images, at least 2")
    view = torch.arange(num_views, device=device)
    image, copy = view // duplicates, view % duplicates
    return (image + 1 + copy % (num_images - 1)) % num_images * duplicates + copy


def soft_labels(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """One-hot labels, float32 of shape ``(N, num_classes)``, of int64 labels ``(N,)``."""
    # PyTorch's one_hot waits for the device.
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)


def _mixed_labels(labels: torch.Tensor, other: torch.Tensor, lam: float, num_classes: int) -> torch.Tensor:
    soft = soft_labels(labels, num_classes)
    return torch.lerp(soft[other], soft, lam)
