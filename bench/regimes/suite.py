"""A suite: recipes, regimes and seeds that are trained on one budget to be put side by side.

A suite file is YAML with the keys of `Suite`; a suite that comes with the package is named, another is the path of a
file that ends in ``.yaml``. A run's recipe is composed of the recipe's items, the regime's, those of the command line,
and the settings that the suite fixes for all: length, evaluation sizes, name, seed and folder.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from mixsize.recipes.config import yamltext
from mixsize.recipes.config.compose import SUFFIXES
from mixsize.recipes.config.errors import error_lines, nearest
from mixsize.recipes.config.section import (
    FILLED_LIST,
    LIST,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    check_distinct,
    fault,
)

if TYPE_CHECKING:
    from importlib.abc import Traversable  # In importlib.resources.abc from Python 3.11 on.


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class SuiteError(ValueError):
    """A suite that cannot be read or accepted; one line for each fault."""


def _label(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise fault("must be of letters, digits and _ - . +, with a letter or digit first, as it names files")
    return text


Label = Annotated[Text, AfterValidator(_label)]
Items = Annotated[tuple[Text, ...], LIST]


class Budget(Section):
    """What every run of the suite may spend; exactly one key."""

    epochs: PositiveInt | None = Field(None, description="passes over the training images")
    seconds: PositiveInt | None = Field(None, description="of training, evaluations not counted")
    pixels: PositiveFloat | None = Field(
        None,
        description="pixels trained on, the sum of S^2 * B * D over the steps; the step that reaches it is the last",
    )

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(value is not None for _, value in self) != 1:
            raise fault("needs exactly one of epochs, seconds and pixels")
        return self


class Data(Section):
    """Data that the suite writes itself where it is missing, as ``mixsize convert SOURCE FOLDER`` would."""

    source: Literal["digits"] = Field(description="scikit-learn's digits, which need no download")
    folder: Text = Field(description="where train.beton and test.beton go")


class Suite(Section):
    """Recipes x regimes x seeds on one budget."""

    name: Label = Field(description="names the folder of its runs")
    recipes: Annotated[dict[Label, Items], Field(min_length=1)] = Field(
        description="label -> the items a recipe is composed from; each is trained under every regime"
    )
    regimes: Annotated[dict[Label, Items], Field(min_length=1)] = Field(
        description="label -> the items that set the regime, applied after the recipe's; the first is the baseline"
    )
    seeds: PositiveInt = Field(1, description="runs of each, with seeds that count up from the recipe's")
    budget: Budget = Field(description="the budget of each run")
    evaluation_sizes: Annotated[tuple[Pixels, ...], FILLED_LIST, AfterValidator(check_distinct)] = Field(
        description="image sides in pixels to evaluate at"
    )
    ranks: PositiveInt = Field(1, description="processes of each run")
    data: Data | None = Field(None, description="data to write first; null: the recipes' data must be there")


def load_suite(name: str) -> Suite:
    """Read a suite.

    Args:
        name: of a packaged suite (``digits``), or the path of a file that ends in ``.yaml`` or ``.yml``.

    Raises:
        SuiteError: no such suite, or one that is not valid; one line for each fault, with its dotted key.
    """
    text, place = _text(name)
    try:
        content = yamltext.load(text)
    except ValueError as error:
        raise SuiteError(f"{place}: {error}") from error
    if not isinstance(content, dict):
        raise SuiteError(f"{place}: a suite is a mapping with the keys {', '.join(Suite.model_fields)}")
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        lines = error_lines(error, content, root=Suite)
        raise SuiteError("\n".join(f"{place}: {line}" for line in lines)) from error


def packaged_suites() -> list[str]:
    """Names of the suites that come with the package, sorted."""
    return sorted(_packaged())


def _packaged() -> dict[str, Traversable]:
    files = (resources.files("mixsize.bench") / "suites").iterdir()
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def _text(name: str) -> tuple[str, str]:
    """A suite's text, and what errors call it."""
    packaged = _packaged()
    if not name.endswith(SUFFIXES):
        if name not in packaged:
            close = nearest(name, sorted(packaged))
            hint = f"did you mean {close}?" if close else f"the packaged suites are {', '.join(sorted(packaged))}"
            raise SuiteError(f"{name!r}: no packaged suite has this name, and a file's path ends in .yaml; {hint}")
        return packaged[name].read_text("utf-8"), f"packaged suite {name}"
    try:
        return Path(name).read_bytes().decode("utf-8"), name
    except UnicodeDecodeError as error:
        raise SuiteError(f"{name}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SuiteError(f"{name}: cannot be read: {error.strerror}") from error
