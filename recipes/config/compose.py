"""Composing a recipe from packaged recipes, YAML files and overrides.

    >>> from mixsize.recipes.config.compose import compose
    >>> recipe = compose(["cifar10/resnet44", "regime/s28_bplus", "max_duration=2ep"])
    >>> recipe.regime.mode, recipe.duration
    ('B+', (2, 'ep'))

Items apply from left to right. Mappings merge key by key, with these exceptions:

| given | effect |
| --- | --- |
| a list, `model.kwargs` or `regime.sizes` in a file | replaces the former value as a whole |
| a new `name` in a file's section | replaces the section |
| a new `regime.mode`, or a `name` by an override | drops the keys that the new variant does not have |
| a new `model.name` | drops `model.kwargs` |

A null counts as not given. Nothing is interpolated: `${HOME}` is text.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mixsize.recipes.config import yamltext
from mixsize.recipes.config.errors import RecipeError, dotted, error_lines, printable
from mixsize.recipes.config.keys import DEFAULT_VARIANTS, LEAF_MAPPINGS, VARIANT_KEYS, variants_at, without_nulls
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.config.section import Path

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # Python 3.11; in importlib.abc before

__all__ = ["RecipeError", "compose", "digest", "packaged_recipes", "to_yaml"]

SUFFIXES = (".yaml", ".yml")
MAX_FILE_BYTES = 1 << 20
COMMAND_LINE = "on the command line"
# Sections that lose keys when one key of theirs changes: those with variants, and the network.
_SELECTING_KEYS: dict[Path, str] = {**VARIANT_KEYS, ("model",): "name"}
_OVERRIDE_KEY = re.compile(r"[^\s.=]+(\.[^\s.=]+)*")


def compose(items: Sequence[str]) -> Recipe:
    """Combine items from left to right into a recipe.

    Args:
        items: each the name of a packaged recipe (`cifar10/resnet44`), a path that ends in `.yaml` or `.yml`, or an
            override `dotted.key=value` whose value is YAML.

    Raises:
        RecipeError: an item cannot be read or applied, or the whole is no valid recipe; one line for each fault.
    """
    if isinstance(items, str):
        raise TypeError(f"items must be a sequence of strings, got the string {items!r}")
    draft = _Draft()
    faults = [fault for item in items if (fault := _fault_in(draft, item))]
    if faults:
        raise RecipeError("\n".join(faults))
    given = without_nulls(draft.data)
    try:
        return Recipe.model_validate(given)
    except ValidationError as error:
        raise RecipeError("\n".join(error_lines(error, given, draft.source_of))) from error


def packaged_recipes() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    return sorted(_packaged())


def to_yaml(recipe: Recipe) -> str:
    """Return the whole recipe, defaults included, as a YAML file that composes to the same recipe."""
    return yamltext.dump(_plain(recipe.model_dump()))


def digest(recipe: Recipe) -> str:
    """Return the SHA-256 of the whole recipe in hexadecimal, the same whatever items it was composed from."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# ---- items ----


def _fault_in(draft: "_Draft", item: str) -> str | None:
    """Apply an item; return the error as text, so that the faults of all items can be listed."""
    try:
        _apply(draft, item)
    except RecipeError as error:
        return str(error)
    return None


def _apply(draft: "_Draft", item: str) -> None:
    key, equals, value = item.partition("=")
    if equals and "/" not in key:
        _apply_override(draft, item, key, value)
    elif item.endswith(SUFFIXES):
        draft.merge(parse_file(item), f"in {item}")
    else:
        files = _packaged()
        if item not in files:
            raise RecipeError(_no_such_recipe(item, sorted(files)))
        source = f"packaged recipe {item}"
        draft.merge(_parse(files[item].read_text("utf-8"), source), f"in {source}")


def _apply_override(draft: "_Draft", item: str, key: str, text: str) -> None:
    if not _OVERRIDE_KEY.fullmatch(key) or not key.isprintable():
        raise RecipeError(f"{item!r} {COMMAND_LINE}: an override is written dotted.key=value")
    if not text.strip():
        raise RecipeError(f"{key}: no value after '=' ({COMMAND_LINE}); write {key}=null for the default")
    path: Path = tuple(key.split("."))
    if len(path) > yamltext.MAX_DEPTH:
        raise RecipeError(f"{dotted(path)}: is nested too deeply ({COMMAND_LINE})")
    try:
        if path[:-1] in LEAF_MAPPINGS:
            key_value = yamltext.load(path[-1])  # regime.sizes.32: the key is a number
            path = (*path[:-1], path[-1] if isinstance(key_value, dict | list) else key_value)
        value = yamltext.load(text)
    except ValueError as error:
        problem = f"'{printable(text)}' is not a YAML value: {printable(str(error))}"
        raise RecipeError(f"{dotted(path)}: {problem} ({COMMAND_LINE})") from error
    draft.put(path, value, COMMAND_LINE)


def parse_file(item: str) -> dict[str, Any]:
    """Return the mapping of a recipe file as it is written, without checks of its keys and values.

    Raises:
        RecipeError: it cannot be read, is too large, or is no mapping in YAML.
    """
    return _parse(_read(item), item)


def _read(item: str) -> str:
    if os.path.isdir(item):  # A Path's own raises where a name is too long.
        raise RecipeError(f"{item}: is a directory, not a recipe file")
    try:
        with open(item, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise RecipeError(f"{item}: no such file{_packaged_hint(item)}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise RecipeError(f"{item}: cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise RecipeError(f"{item}: has more than {MAX_FILE_BYTES} bytes, which no recipe has")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{item}: is not UTF-8 text (byte {error.start})") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        data = yamltext.load(text)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error
    if data is None:
        raise RecipeError(f"{source}: is empty; a recipe is a mapping of keys to values")
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of keys to values, this is a {type(data).__name__}")
    return data


def _packaged() -> "dict[str, Traversable]":
    def walk(folder: "Traversable", prefix: str) -> "Iterator[tuple[str, Traversable]]":
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                yield prefix + entry.name.removesuffix(".yaml"), entry

    return dict(walk(resources.files("mixsize.recipes"), ""))


def _packaged_hint(item: str) -> str:
    stem = re.sub(r"\.ya?ml$", "", item)
    return f"; the packaged recipe is named {stem}" if stem in _packaged() else ""


def _no_such_recipe(item: str, names: list[str]) -> str:
    inside = [name for name in names if name.startswith(f"{item.rstrip('/')}/")]
    if inside:
        return f"{item!r}: is a folder of packaged recipes: {', '.join(inside)}"
    if item and os.path.isdir(item):
        return f"{item!r}: is a directory, not a recipe file"
    stem = item.rpartition("/")[2]
    close = [name for name in names if name.rpartition("/")[2] == stem] or difflib.get_close_matches(item, names, n=1)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the packaged recipes are {', '.join(names)}"
    return f"{item!r}: no packaged recipe has this name, and a file's path ends in .yaml; {hint}"


# ---- merging ----


class _Draft:
    """A recipe under construction: plain data, and the item that gave each of its paths."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self._sources: dict[Path, str] = {}

    def merge(self, new: Mapping[str, Any], source: str) -> None:
        """Apply a file's mapping."""
        self._merge(self.data, new, source, ())

    def put(self, path: Path, value: Any, source: str) -> None:
        """Apply an override. A mapping merges as if a file gave it, but for arguments of timm; other values replace."""
        if isinstance(value, dict) and not any(path[:length] in LEAF_MAPPINGS for length in range(len(path))):
            for key in reversed(path[1:]):
                value = {key: value}
            self._merge(self.data, {path[0]: value}, source, ())
            return
        section = self._descend(path[:-1], source)
        if path[:-1] in _SELECTING_KEYS and _SELECTING_KEYS[path[:-1]] == path[-1]:
            self._drop(path[:-1], section, value, whole=False)
        self._replace(section, path, value, source)

    def source_of(self, path: Path) -> str | None:
        """Return the item that gave a path, or else the nearest path above or below it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._sources:
                return self._sources[path[:length]]
        below = [source for given, source in self._sources.items() if path and given[: len(path)] == path]
        return below[-1] if below else None

    def _merge(self, into: dict[str, Any], new: Mapping[str, Any], source: str, above: Path) -> None:
        for key, value in new.items():
            path = (*above, key)
            old = into.get(key)
            if isinstance(value, dict) and isinstance(old, dict) and path not in LEAF_MAPPINGS:
                selecting = _SELECTING_KEYS.get(path)
                if selecting and value.get(selecting) is not None and old.get(selecting) is not None:
                    self._drop(path, old, value[selecting], whole=path not in DEFAULT_VARIANTS)
                self._merge(old, value, source, path)
            else:
                self._replace(into, path, value, source)

    def _drop(self, path: Path, section: dict[str, Any], name: Any, whole: bool) -> None:
        """Remove the keys that a section loses when `name` is selected in it; `whole`: all of them."""
        before = section.get(_SELECTING_KEYS[path])
        if name == before:
            return
        if path == ("model",):
            lost = {"kwargs"} if name is not None and before is not None else set()
        elif whole:
            lost = set(section)
        else:
            old, new = _keys_of_variant(path, before), _keys_of_variant(path, name)
            lost = old - new if old and new else set()
        for key in lost:
            section.pop(key, None)
            self._forget((*path, key))

    def _descend(self, path: Path, source: str) -> dict[str, Any]:
        """Return the mapping at a path, created where it is absent."""
        here = self.data
        for length, key in enumerate(path, start=1):
            if isinstance(here.get(key), list):
                raise RecipeError(f"{dotted(path[:length])}: is a list, give it as a whole ({source})")
            if not isinstance(here.get(key), dict):
                self._replace(here, path[:length], {}, source)
            here = here[key]
        return here

    def _replace(self, into: dict[str, Any], path: Path, value: Any, source: str) -> None:
        if path[-1] in into:
            self._forget(path)
        into[path[-1]] = value
        self._sources[path] = source

    def _forget(self, path: Path) -> None:
        self._sources = {given: source for given, source in self._sources.items() if given[: len(path)] != path}


def _keys_of_variant(path: Path, name: Any) -> set[str]:
    """Return the keys of a section's variant; none if there is no such variant."""
    name = name or DEFAULT_VARIANTS.get(path)
    variant = variants_at(path).get(name) if isinstance(name, str) else None
    return set(variant.model_fields) if variant else set()
