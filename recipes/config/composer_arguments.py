"""Composer's classes by the names that a recipe gives them, and their arguments checked against their signatures.

Nothing here imports Composer, which takes seconds, before it is called.
"""

import inspect
import types
import typing
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from mixsize.recipes.config.composer_table import ALGORITHMS, CALLBACKS, Part
from mixsize.recipes.config.errors import nearest
from mixsize.recipes.config.section import Path, fault

Kind = Literal["algorithms", "callbacks"]
_TABLES: dict[str, dict[str, Part]] = {"algorithms": ALGORITHMS, "callbacks": CALLBACKS}
_PLAIN = (bool, int, float, str, type(None))


@cache
def classes(kind: Kind) -> dict[str, type]:
    """Return name -> class of all algorithms or callbacks that the installed Composer exports.

    The name is that of Composer's module, the snake case of the class. `ema` is `ModelEMA` of this package.
    """
    if kind == "callbacks":
        from composer import callbacks as package
        from composer.core import Callback as Base
    else:
        from composer import algorithms as package
        from composer.core import Algorithm as Base
    found = (getattr(package, name) for name in package.__all__)
    named = {one.__module__.split(".")[2]: one for one in found if inspect.isclass(one) and issubclass(one, Base)}
    if kind == "algorithms":
        from mixsize.algorithms.averaging.model_ema import ModelEMA

        named["ema"] = ModelEMA
    return dict(sorted(named.items()))


def check_arguments(kind: Kind, given: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what Composer lacks, what cannot be used with a regime, and arguments that a class does not take.

    Raises:
        PydanticCustomError: the message names the key, and the arguments or names that there are.
    """
    for name, arguments in given.items():
        if name not in classes(kind):
            near = nearest(name, list(classes(kind)))
            hint = f"the nearest is {near}" if near else f"it has {', '.join(classes(kind))}"
            raise fault(f"Composer has no such {kind[:-1]}; {hint}", (kind, name))
        part = _TABLES[kind].get(name)
        if part is not None and part.verdict == "refused":
            raise fault(f"cannot be used here: {part.words}", (kind, name))
        _check_class(classes(kind)[name], part, arguments, (kind, name))


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the arguments that a class takes by name."""
    found = inspect.signature(cls).parameters.items()
    return {name: one for name, one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}


def make(kind: Kind, name: str, arguments: Mapping[str, Any]) -> Any:
    """Return the algorithm or callback of a recipe."""
    with warnings.catch_warnings():
        # Of resuming and of short intervals: the table says which ones resume.
        warnings.simplefilter("ignore", UserWarning)
        return classes(kind)[name](**arguments)


def _check_class(cls: type, part: Part | None, arguments: Mapping[str, Any], path: Path) -> None:
    taken = parameters(cls)
    for key, value in arguments.items():
        if key not in taken:
            near = nearest(key, list(taken))
            hint = f"; the nearest is {near}" if near else ""
            raise fault(f"is no argument of {path[-1]}, which takes {', '.join(taken) or 'none'}{hint}", (*path, key))
        choices = part.choices.get(key) if part else None
        plain: Any = Literal[choices] if choices else plain_type(cls, key)
        if plain is None:
            raise fault("is no plain value, so a recipe cannot give it", (*path, key))
        try:
            TypeAdapter(plain).validate_python(value, strict=True)
        except ValidationError as error:
            raise fault(f"must be {_words(plain)}", (*path, key)) from error
    for key, parameter in taken.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise fault("required, but not given", (*path, key))
    try:
        make(typing.cast(Kind, path[0]), path[1], arguments)
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError) as error:
        raise fault(" ".join(str(error).split()).removesuffix("."), path) from error


def plain_type(cls: type, parameter: str) -> Any:
    """Return the part of an argument's type that YAML can write; None if it has none."""
    annotation = typing.get_type_hints(cls.__init__).get(parameter)
    plain = [one for one in _options(annotation) if one in _PLAIN or typing.get_origin(one) in (list, dict)]
    return typing.Union[tuple(plain)] if plain and plain != [type(None)] else None  # noqa: UP007


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _words(plain: Any) -> str:
    if typing.get_origin(plain) is Literal:
        return f"one of {', '.join(typing.get_args(plain))}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    words = {list: "a list", dict: "a mapping"}
    told = [names.get(one) or words[typing.get_origin(one)] for one in _options(plain) if one is not type(None)]
    return " or ".join(told)
