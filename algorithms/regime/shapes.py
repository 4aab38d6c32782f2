"""The input shapes that a rank's network is trained on under a regime."""

from __future__ import annotations

from typing import NamedTuple

from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.regime.regime import Regime


class InputShape(NamedTuple):
    """The shape ``(images, 3, size_px, size_px)`` of one forward pass.

    Attributes:
        images: B * D on this rank.
        size_px: image side S, in pixels.
    """

    images: int
    size_px: int


def shapes_of(
    regime: Regime | Progression, ranks: int = 1, microbatch_images: int | None = None
) -> tuple[InputShape, ...]:
    """Every shape that a rank's network will be trained on under a regime, the largest in pixels first.

    Args:
        regime: the triples that may be drawn.
        ranks: processes that share each batch.
        microbatch_images: images of a rank in one forward pass; an image's duplicates stay together. None for all.

    Example:
        >>> regime = Regime.from_sizes({32: 0.5, 16: 0.5}, Base(size_px=32, batch_size=64), "B+")
        >>> shapes_of(regime, ranks=2)
        (InputShape(images=128, size_px=16), InputShape(images=32, size_px=32))
    """
    found = set()
    for part in regime.regimes:
        for choice in part.choices:
            images = choice.batch_size // ranks * choice.duplicates
            chunk = images
            if microbatch_images is not None:
                chunk = min(images, max(1, microbatch_images // choice.duplicates) * choice.duplicates)
            found |= {InputShape(count, choice.size_px) for count in (chunk, images % chunk) if count}
    return tuple(sorted(found, key=lambda shape: (shape.images * shape.size_px**2, shape), reverse=True))
