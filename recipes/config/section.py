"""The types that a recipe's sections are made of: ranges of numbers, lists, text, and the section itself."""

import math
from typing import Annotated, Any

from annotated_types import Interval
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from mixsize.algorithms.regime.regime import MAX_SIZE_PX

#: A dotted key in parts, with list positions: ``("regime", "choices", 0, "share")``.
Path = tuple[Any, ...]

#: The largest count: floats hold every whole number up to it.
MAX_COUNT = 2**53

PositiveInt = Annotated[int, Interval(ge=1, le=MAX_COUNT)]
NaturalInt = Annotated[int, Interval(ge=0, le=MAX_COUNT)]
Pixels = Annotated[int, Interval(ge=1, le=MAX_SIZE_PX)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
PositiveFloat = Annotated[float, Interval(gt=0)]
NaturalFloat = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
FractionBelowOne = Annotated[float, Interval(ge=0, lt=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
InnerFraction = Annotated[float, Interval(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

# A YAML list becomes a tuple. Only the container is converted; its items stay strict.
LIST = Field(strict=False)
FILLED_LIST = Field(strict=False, min_length=1)


def fault(message: str, at: Path = ()) -> PydanticCustomError:
    """Return the error that a validator raises; `at` is the path of the faulty key below the validated section."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "at": at})


def _check_value(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise fault("must be a finite number")
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            _check_value(part)
    return value


#: A number, text, true, false, a list or a mapping.
Value = Annotated[JsonValue, BeforeValidator(_check_value)]


def check_distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse a size that is listed twice."""
    if len(set(sizes)) < len(sizes):
        raise fault("lists a size twice")
    return sizes


class Section(BaseModel):
    """A mapping of the recipe: frozen, strict about types, closed to unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
