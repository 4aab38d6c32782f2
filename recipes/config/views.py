"""What changes training views at their side: the keys that every crop of `data.augment` has."""

from collections.abc import Mapping
from typing import Annotated

from annotated_types import MinLen
from pydantic import AfterValidator, Discriminator, Field, Tag

from mixsize.ffcv_loaders.decode.view_policies import RandAugment, parse_policy
from mixsize.recipes.config.section import LIST, Fraction, NaturalFloat, Path, Pixels, Text, fault

_MAX_HUE = 0.5
_POLICIES = (
    "none; timm's rand-... (RandAugment, such as rand-m9-mstd0.5-inc1), original or v0 (AutoAugment for ImageNet); or"
    " trivial (TrivialAugmentWide); they change the view at the step's size"
)


def _check_policy(text: str) -> str:
    parse_policy(text)
    return text


def _check_stored_policy(text: str) -> str:
    return text if text == "cifar10" else _check_policy(text)


def _check_jitter(parts: tuple[float, ...]) -> tuple[float, ...]:
    if len(parts) not in (3, 4) or (len(parts) == 4 and parts[3] > _MAX_HUE):
        raise fault(
            "must be a number of at least 0, a list of three for brightness, contrast and saturation, or of four, the"
            f" last for hue in [0, {_MAX_HUE}]"
        )
    return parts


def _in_one_order(magnitudes: dict[int, float]) -> dict[int, float]:
    # The order of a mapping has no meaning in a recipe.
    return dict(sorted(magnitudes.items()))


ViewPolicy = Annotated[Text, AfterValidator(_check_policy), Field(description=_POLICIES)]
StoredPolicy = Annotated[
    Text,
    AfterValidator(_check_stored_policy),
    Field(
        description=f"{_POLICIES}. Or cifar10 (AutoAugment for CIFAR-10), after the flip and before the resize, for"
        " images of one stored size"
    ),
]
_BySize = Annotated[dict[Pixels, NaturalFloat], MinLen(1), AfterValidator(_in_one_order), Tag("by_size")]
Magnitude = Annotated[
    Annotated[
        Annotated[NaturalFloat, Tag("number")] | _BySize,
        Discriminator(lambda value: "by_size" if isinstance(value, Mapping) else "number"),
    ]
    | None,
    Field(
        description="of a policy rand-..., in place of its m; a mapping gives it for some sizes in pixels, interpolated"
        " linearly between them and constant outside; null: the policy's"
    ),
]
ColorJitter = Annotated[
    Annotated[
        Annotated[NaturalFloat, Tag("number")]
        | Annotated[tuple[NaturalFloat, ...], LIST, AfterValidator(_check_jitter), Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
    ]
    | None,
    Field(
        description="greatest changes of brightness, contrast and saturation, as torchvision's ColorJitter: one for all"
        " three, or a list, of which a fourth turns hues; null: none"
    ),
]
Erasing = Annotated[
    Fraction, Field(description="probability that a random rectangle of the view gets the mean colour, after all else")
]


def check_magnitude(magnitude: float | Mapping[int, float] | None, policy: str, at: Path) -> None:
    """Refuse a magnitude that the policy does not have; ``at`` is its path below the validated section.

    Raises:
        PydanticCustomError: as a validator raises it.
    """
    if magnitude is None:
        return
    parsed = None if policy == "cifar10" else parse_policy(policy)
    if not isinstance(parsed, RandAugment):
        raise fault(f"has no effect with policy {policy}, only with rand-...", at)
    if max(magnitude.values() if isinstance(magnitude, Mapping) else [magnitude]) > parsed.magnitude_max:
        raise fault(
            f"must be at most {parsed.magnitude_max:g} with policy {policy}; mmax in the policy's string, such as"
            " -mmax20, raises it",
            at,
        )
