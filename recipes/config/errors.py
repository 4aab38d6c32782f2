"""Validation errors in words: the dotted key, the problem, the value, the item that gave it, the nearest known key."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from annotated_types import Interval
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mixsize.recipes.config.keys import (
    DEFAULT_VARIANTS,
    OF_TWO_KINDS,
    RENAMED,
    SIZES,
    VARIANT_KEYS,
    all_keys,
    keys_at,
    sections_at,
    variants_at,
    without_positions,
)
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.config.section import MAX_COUNT, Path, Section

LONGEST_VALUE = 60
MISSING = object()

# pydantic's error types in words; `{...}` is filled from the error's context.
WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "recipe": "{message}",
}
_BOUNDS = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}


class RecipeError(ValueError):
    """A recipe that cannot be read, combined or accepted; one line for each fault."""


def dotted(path: Path) -> str:
    """Return a path as it is written on the command line, with long keys shortened and control characters escaped."""
    return ".".join(printable(str(key)) for key in path)


def printable(text: str) -> str:
    """Return text shortened to 60 characters, without characters that a terminal would act on."""
    text = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that is most similar to the given one, or None if none is similar."""
    found = difflib.get_close_matches(word, known, n=1)
    return found[0] if found else None


def value_at(data: Any, path: Path) -> Any:
    """Return the value at a path of plain data, or `MISSING`."""
    for key in path:
        here = data if isinstance(data, Mapping) else dict(enumerate(data)) if isinstance(data, list) else {}
        if key not in here:
            return MISSING
        data = here[key]
    return data


def error_lines(
    error: ValidationError,
    data: Mapping[str, Any],
    source_of: Callable[[Path], str | None] = lambda path: None,
    root: type[Section] = Recipe,
) -> list[str]:
    """Return one line for each fault that validation found.

    Args:
        error: raised by pydantic for `data`.
        data: the validated mapping.
        source_of: path -> "in x.yaml" or "on the command line"; None if no item gave it.
        root: the class that `data` was validated as.
    """
    lines = []
    for details in error.errors(include_url=False):
        path, is_key = _place(details)
        if details["type"] in ("missing", "union_tag_not_found"):
            missing = [key for key in _required(path, root) if value_at(data, key) in (MISSING, None)]
            lines += [_missing_line(key, source_of) for key in missing]
        elif details["type"] != "too_short" or not value_at(data, path):
            # Otherwise the list is too short only because its faulty items, which have lines of their own, are gone.
            lines.append(_fault_line(details, path, is_key, data, source_of, root))
    return lines


def _place(details: ErrorDetails) -> tuple[Path, bool]:
    """Return the recipe's path for the place of an error, and whether a free key is at fault rather than its value.

    pydantic's location also names the variant that was tried, and marks a free key by a last part `[key]`.
    """
    path: Path = ()
    keys = iter(details["loc"])
    for key in keys:
        path = (*path, key)
        of_two_kinds = not isinstance(key, int) and without_positions(path) in OF_TWO_KINDS
        if path in VARIANT_KEYS or of_two_kinds:
            next(keys, None)
    # An unknown key may have that very name.
    is_key = path[-1:] == ("[key]",) and len(path) > 2 and details["type"] != "extra_forbidden"
    return (path[:-1], True) if is_key else (path, False)


def _fault_line(
    details: ErrorDetails,
    path: Path,
    is_key: bool,
    data: Mapping[str, Any],
    source_of: Callable[[Path], str | None],
    root: type[Section],
) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "value_error":  # Names the value itself, and several items may have given it.
        return f"{dotted(path)}: {context['error']}"
    if kind == "recipe":
        path = (*path, *context["at"])
    elif kind == "union_tag_invalid":
        path = (*path, VARIANT_KEYS[path])
    value, hint = value_at(data, path), ""
    if kind in ("extra_forbidden", "invalid_key"):
        problem, hint = _unknown(path, data, root)
        value = MISSING
    elif kind in ("union_tag_invalid", "literal_error"):
        allowed = list(variants_at(path[:-1])) if kind == "union_tag_invalid" else _literals(context["expected"])
        problem = f"must be one of {', '.join(allowed)}"
        if without_positions(path) in SIZES:
            problem += ", or a mapping of pixels to shares"
        hint = _did_you_mean(nearest(value, allowed) if isinstance(value, str) else None)
    elif kind in _BOUNDS:
        problem = _range_words(path, _BOUNDS[kind], context[_BOUNDS[kind]], root)
    else:
        problem = WORDS[kind].format(**context) if kind in WORDS else details["msg"]
    if is_key:
        problem, value = f"the key {problem}", MISSING
    source = source_of(path)
    return f"{dotted(path)}: {problem}{got(value)}{f' ({source})' if source else ''}{hint}"


def got(value: Any) -> str:
    """Return a faulty value in words, as the end of a sentence."""
    return "" if value is MISSING else f", got {printable(json.dumps(value, ensure_ascii=False, default=str))}"


def _did_you_mean(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""


def _literals(expected: str) -> list[str]:
    """Return the words in pydantic's sentence `'a', 'b' or 'c'`."""
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _range_words(path: Path, bound: str, limit: float, root: type[Section]) -> str:
    """Return the allowed range of the number at a path, of which one bound was violated."""
    # A free key of a mapping has no field of its own.
    fields = _fields_at(without_positions(path), root) or _fields_at(path[:-1], root)
    parts = [part for field in fields for part in (*field.metadata, field.annotation)]
    interval = next(found for part in parts for found in _intervals(part) if getattr(found, bound) == limit)
    low = interval.ge if interval.gt is None else interval.gt
    high = interval.le if interval.lt is None else interval.lt
    if high is None or (high == MAX_COUNT and bound in ("ge", "gt")):
        return f"must be {'at least' if interval.gt is None else 'greater than'} {low}"
    return f"must be in {'[' if interval.gt is None else '('}{low}, {high}{']' if interval.lt is None else ')'}"


def _fields_at(path: Path, root: type[Section]) -> list[FieldInfo]:
    key = path[-1]
    return [section.model_fields[key] for section in sections_at(path[:-1], root) if key in section.model_fields]


def _intervals(annotation: Any) -> Iterator[Interval]:
    if isinstance(annotation, Interval):
        yield annotation
    for part in get_args(annotation):
        yield from _intervals(part)


def _unknown(path: Path, data: Mapping[str, Any], root: type[Section]) -> tuple[str, str]:
    """Return the problem and the hint for a key that its section does not have."""
    section, key = path[:-1], path[-1]
    known = keys_at(section, root)
    if key in known:  # of another variant of this section
        selecting = VARIANT_KEYS[section]
        chosen = value_at(data, (*section, selecting))
        chosen = DEFAULT_VARIANTS.get(section) if chosen in (MISSING, None) else chosen
        takers = [name for name, variant in variants_at(section).items() if key in variant.model_fields]
        return f"has no effect with {selecting}: {chosen}, only with {', '.join(takers)}", ""
    if path in RENAMED and root is Recipe:
        return f"is named {dotted(RENAMED[path])} now", ""
    sibling = nearest(str(key), known)
    if sibling:
        return "unknown key", _did_you_mean(dotted((*section, sibling)))
    elsewhere = {path[-1]: dotted(path) for path in all_keys(root=root)}
    return "unknown key", _did_you_mean(elsewhere.get(nearest(str(key), sorted(elsewhere)) or ""))


def _required(path: Path, root: type[Section]) -> Iterator[Path]:
    """Yield the keys to give where the one at a path is missing: itself, or those that a missing section requires."""
    candidates = sections_at(path, root)
    if path not in VARIANT_KEYS and not any(field.annotation in candidates for field in _fields_at(path, root)):
        yield path
        return
    if path in DEFAULT_VARIANTS:
        candidates = (variants_at(path)[DEFAULT_VARIANTS[path]],)
    for name in candidates[0].model_fields:
        if all(name in section.model_fields and section.model_fields[name].is_required() for section in candidates):
            yield from _required((*path, name), root)


def _missing_line(path: Path, source_of: Callable[[Path], str | None]) -> str:
    section, key = path[:-1], path[-1]
    if any(isinstance(part, int) for part in path):
        source = source_of(section)
        return f"{dotted(path)}: missing from the list{f' ({source})' if source else ''}"
    choice = f"; it is one of {', '.join(variants_at(section))}" if VARIANT_KEYS.get(section) == key else ""
    return f"{dotted(path)}: required, but not given{choice}"
