"""What each key of a recipe may hold, from the schema.

>>> print(explain("optimizer.lr"))
optimizer.lr: peak learning rate, before lr_scaling
  value:    number greater than 0
  default:  required
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mixsize.recipes.config.errors import nearest
from mixsize.recipes.config.keys import DEFAULT_VARIANTS, VARIANT_KEYS, keys_at, sections_at, variants_at
from mixsize.recipes.config.section import MAX_COUNT, Path, Section

REQUIRED = "required"
OF_ITS_KEYS = "its keys' defaults"
_POSITION = re.compile(r"\[\]|\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: dotted; ``[]`` follows a list.
        value: what it may hold, in words.
        default: as YAML, or :data:`REQUIRED` or :data:`OF_ITS_KEYS`; empty for a section with keys that must be given.
        meaning: in words.
        variants: those of its section that have it, or that have it with this value, default and meaning; empty where
            all do.
    """

    name: str
    value: str
    default: str
    meaning: str
    variants: tuple[str, ...] = ()


def recipe_keys() -> list[Key]:
    """Return the keys in the order of the schema, a section before its own; several with one name in some variants."""
    return list(_below((), ""))


def variant_meanings(section: str) -> dict[str, str]:
    """Return variant -> meaning of a section; empty for a section without variants."""
    path = tuple(section.split("."))
    if path not in VARIANT_KEYS:
        return {}
    return {name: " ".join((variant.__doc__ or "").split()) for name, variant in variants_at(path).items()}


def explain(name: str) -> str:
    """Return lines about a key: what it may hold, its default and its meaning; of a section also its keys.

    Args:
        name: dotted; positions in lists may be left out.

    Raises:
        ValueError: no such key; the message names the nearest.
    """
    plain = _POSITION.sub("", name)
    keys = recipe_keys()
    found = [key for key in keys if _POSITION.sub("", key.name) == plain]
    if not found:
        near = nearest(plain, [_POSITION.sub("", key.name) for key in keys])
        raise ValueError(f"{name}: a recipe has no such key" + (f"; did you mean {near}?" if near else ""))
    lines = [line for key in found for line in _lines(key)]
    meanings = variant_meanings(plain)
    lines += ["", *(f"  {variant}: {meaning}" for variant, meaning in meanings.items())] if meanings else []
    inside = dict.fromkeys(key.name for key in keys if _POSITION.sub("", key.name).rpartition(".")[0] == plain)
    lines += ["", "  its keys:", *(f"    {key}" for key in inside)] if inside else []
    return "\n".join(lines)


def _lines(key: Key) -> Iterator[str]:
    yield f"{key.name}: {key.meaning}"
    yield f"  value:    {key.value}"
    if key.default:
        yield f"  default:  {key.default}"
    if key.variants:
        yield f"  with:     {_section_of(key)} {', '.join(key.variants)}"


def _section_of(key: Key) -> str:
    path = tuple(_POSITION.sub("", key.name).split("."))[:-1]
    return ".".join((*path, VARIANT_KEYS[path]))


def _below(path: Path, prefix: str) -> Iterator[Key]:
    for last in _in_order(path):
        here, name = (*path, last), f"{prefix}{last}"
        keys = list(_variants_of_key(path, last, name))
        yield from keys
        if sections_at(here):
            yield from _below(here, f"{name}[]." if keys[0].value.startswith("list") else f"{name}.")


def _in_order(path: Path) -> list[str]:
    """Keys of a section, in the order in which its variants declare them."""
    declared = dict.fromkeys(key for section in sections_at(path) for key in section.model_fields)
    assert sorted(declared) == keys_at(path)
    return list(declared)


def _variants_of_key(path: Path, last: str, name: str) -> Iterator[Key]:
    if VARIANT_KEYS.get(path) == last:
        words = _one_of(list(variants_at(path)))
        yield Key(name, words, DEFAULT_VARIANTS.get(path, REQUIRED), "selects the variant of the section")
        return
    variants: dict[str, type[Section]] = variants_at(path) if path in VARIANT_KEYS else {"": sections_at(path)[0]}
    of_key: dict[Key, list[str]] = {}
    for variant, section in variants.items():
        if last in section.model_fields:
            of_key.setdefault(_key(section, last, name), []).append(variant)
    for key, names in of_key.items():
        yield key if len(names) == len(variants) else replace(key, variants=tuple(names))


def _key(section: type[Section], last: str, name: str) -> Key:
    node = _schema(section)["properties"][last]
    value = _words(node)
    default = REQUIRED
    if "default" in node:
        default = OF_ITS_KEYS if value == "section" else json.dumps(node["default"])
    elif value.startswith("section"):
        default = ""
    return Key(name, value, default.strip('"'), node["description"])


@cache
def _schema(section: type[Section]) -> dict[str, Any]:
    return section.model_json_schema()


def _words(node: Mapping[str, Any], plural: str = "") -> str:
    """A JSON schema in words; ``plural`` is "s" inside of a list."""
    kind = node.get("type")
    if node.get("$ref", "").endswith("/JsonValue"):
        return f"value{plural}"
    if "$ref" in node or "discriminator" in node:
        return f"section{plural}"
    if "anyOf" in node or "oneOf" in node:
        words = [_words(option, plural) for option in node.get("anyOf", node.get("oneOf"))]
        return _one_of(words)
    if "enum" in node or "const" in node:
        return _one_of([str(value) for value in node.get("enum", [node.get("const")])])
    if kind in ("integer", "number"):
        return f"{'whole ' if kind == 'integer' else ''}number{plural}{_range(node)}"
    if kind == "array":
        items = node.get("prefixItems")
        return f"list of {len(items)} {_words(items[0], 's')}" if items else f"list of {_words(node['items'], 's')}"
    if kind == "object":
        return f"mapping{plural} to {_words(node['additionalProperties'], 's')}"
    return {"boolean": "true or false", "string": f"text{plural}", "null": "null"}[str(kind)]


def _one_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _range(node: Mapping[str, Any]) -> str:
    low, high = (node.get(f"{side}imum") for side in ("min", "max"))
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    if below is None and (high is None or high == MAX_COUNT):
        if low is None and above is None:
            return ""
        return f" of at least {low}" if above is None else f" greater than {above}"
    left = f"[{low}" if above is None else f"({above}"
    return f" in {left}, {high}]" if below is None else f" in {left}, {below})"
