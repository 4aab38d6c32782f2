"""What is wrong with a recipe, in words: the dotted key, the value, what is allowed, where it was given."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mixsize.recipes.config.schema import (
    DEFAULT_VARIANTS,
    LEAF_MAPPINGS,
    VARIANT_KEYS,
    Path,
    all_keys,
    keys_at,
    sections_at,
    variants_at,
)

LONGEST_VALUE = 60
MISSING = object()

#: Kinds of pydantic's errors, in words.
WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


class RecipeError(ValueError):
    """A recipe that cannot be read, combined or accepted; one line for each fault."""


def dotted(path: Path) -> str:
    """Return a path as it is written on the command line; what would break its line, and the rest of long keys, cut."""
    return ".".join(_written(str(key)) for key in path)


def _written(key: str) -> str:
    return _printable(key if len(key) <= LONGEST_VALUE else key[: LONGEST_VALUE - 3] + "...")


def _printable(text: str) -> str:
    """Text of one line that does nothing to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word most like the given one, or None where none is close."""
    found = difflib.get_close_matches(word, known, n=1)
    return found[0] if found else None


def value_at(data: Any, path: Path) -> Any:
    """Return what a recipe's data holds at a path; `MISSING` where it holds nothing."""
    for key in path:
        here = data if isinstance(data, Mapping) else dict(enumerate(data)) if isinstance(data, list) else {}
        if key not in here:
            return MISSING
        data = here[key]
    return data


def explain(error: ValidationError, data: Mapping[str, Any], source_of: Callable[[Path], str | None]) -> list[str]:
    """Return one line for each fault that validation found.

    Args:
        error: what pydantic raised for `data`.
        data: the merged recipe, as it was validated.
        source_of: path -> "in x.yaml" or "on the command line", None where no item gave it.
    """
    lines = []
    for details in error.errors(include_url=False):
        path, is_key = _place(details["loc"])
        if details["type"] == "missing":
            lines += [_missing_line(key, source_of) for key in _required(path)]
        elif details["type"] == "union_tag_not_found":
            lines += [
                _missing_line(key, source_of) for key in _required(path) if value_at(data, key) in (MISSING, None)
            ]
        else:
            lines.append(_fault_line(details, path, is_key, data, source_of))
    return lines


def _place(location: Path) -> tuple[Path, bool]:
    """Return the recipe's path for pydantic's location, which also names the variant that was tried.

    And whether the fault is that of a free key rather than of its value.
    """
    path: Path = ()
    keys = iter(location)
    for key in keys:
        path = (*path, key)
        if path in VARIANT_KEYS or path == ("regime", "sizes"):
            next(keys, None)
    if path[-1:] == ("[key]",) and path[:-2] in LEAF_MAPPINGS:
        return path[:-1], True
    return path, False


def _fault_line(
    details: ErrorDetails,
    path: Path,
    is_key: bool,
    data: Mapping[str, Any],
    source_of: Callable[[Path], str | None],
) -> str:
    kind, hint = details["type"], ""
    if kind == "union_tag_invalid":
        path = (*path, VARIANT_KEYS[path])
        problem, hint = _not_one_of(value_at(data, path), list(variants_at(path[:-1])))
    elif kind in ("extra_forbidden", "invalid_key"):
        problem, hint = _unknown(path, data)
    elif kind == "literal_error":
        allowed = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        problem, hint = _not_one_of(value_at(data, path), allowed)
        if path in LEAF_MAPPINGS:
            problem += ", or a mapping of pixels to shares"
    elif kind == "recipe":
        path, problem = (*path, *details["ctx"]["at"]), details["ctx"]["message"]
    elif kind == "too_long":
        problem = f"must have at most {details['ctx']['max_length']} entries"
    else:
        problem = WORDS.get(kind, details["msg"])

    if is_key:
        problem = f"{'the size in pixels' if path[:2] == ('regime', 'sizes') else 'the name'} {problem}"
    elif kind not in ("extra_forbidden", "invalid_key"):
        problem += got(value_at(data, path))
    source = source_of(path)
    return f"{dotted(path)}: {problem}{f' ({source})' if source else ''}{hint}"


def got(value: Any) -> str:
    """Return a faulty value in words, to end a sentence with."""
    if value is MISSING:
        return ""
    text = _printable(json.dumps(value, ensure_ascii=False, default=str))
    return f", got {text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + '...'}"


def _not_one_of(value: Any, allowed: list[str]) -> tuple[str, str]:
    close = nearest(value, allowed) if isinstance(value, str) else None
    return f"must be one of {', '.join(allowed)}", f"; did you mean {close}?" if close else ""


def _unknown(path: Path, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the problem and the hint for a key that its section does not have."""
    *parent, key = path
    section = tuple(parent)
    known = keys_at(section)
    if key in known:  # of another variant of this section
        chosen = value_at(data, (*section, VARIANT_KEYS[section]))
        takers = [name for name, variant in variants_at(section).items() if key in variant.model_fields]
        chosen = DEFAULT_VARIANTS.get(section) if chosen in (MISSING, None) else chosen
        return f"has no effect with {VARIANT_KEYS[section]}: {chosen}, only with {', '.join(takers)}", ""
    sibling = nearest(str(key), sorted(known))
    if sibling:
        return "unknown key", f"; did you mean {dotted((*section, sibling))}?"
    elsewhere = {path[-1]: dotted(path) for path in all_keys()}
    other = nearest(str(key), sorted(elsewhere))
    return "unknown key", f"; did you mean {elsewhere[other]}?" if other else ""


def _required(path: Path) -> Iterator[Path]:
    """Yield the keys that must be given for a missing key to be there: itself, or those below a missing section."""
    *parent, key = path
    fields = [section.model_fields[key] for section in sections_at(tuple(parent)) if key in section.model_fields]
    is_section = path in VARIANT_KEYS or any(field.annotation in sections_at(path) for field in fields)
    if not is_section:
        yield path
        return
    candidates = sections_at(path)
    if path in DEFAULT_VARIANTS:
        candidates = (variants_at(path)[DEFAULT_VARIANTS[path]],)
    for name in candidates[0].model_fields:
        if all(name in section.model_fields and section.model_fields[name].is_required() for section in candidates):
            yield from _required((*path, name))


def _missing_line(path: Path, source_of: Callable[[Path], str | None]) -> str:
    *parent, key = path
    section = tuple(parent)
    choice = ""
    if VARIANT_KEYS.get(section) == key:
        choice = f"; it is one of {', '.join(variants_at(section))}"
    if any(isinstance(part, int) for part in path):
        source = source_of(section)
        return f"{dotted(path)}: missing from the list{f' ({source})' if source else ''}"
    return f"{dotted(path)}: required, but no item gives it{choice}"
