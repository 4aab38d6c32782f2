"""The keys of a recipe: those that exist at a dotted path, those that select a variant, those that were renamed."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args

from mixsize.recipes.config.phases import Strengths
from mixsize.recipes.config.schema import Recipe
from mixsize.recipes.config.section import Path, Section

# Sections with variants: path -> the key that selects one.
VARIANT_KEYS: dict[Path, str] = {
    ("data", "augment"): "name",
    ("data", "eval_transform"): "name",
    ("regime",): "mode",
    ("optimizer",): "name",
    ("loss",): "name",
    ("schedule",): "name",
}
# The variant of a section that names none.
DEFAULT_VARIANTS: dict[Path, str] = {("regime",): "fixed", ("loss",): "cross_entropy"}
# Tables of sizes and shares, or their names.
SIZES: frozenset[Path] = frozenset(
    {("regime", "sizes"), ("regime", "phases", "sizes"), ("regime", "shift", "start"), ("regime", "shift", "end")}
)
# Mappings from free keys to scalars; a file replaces them as a whole.
LEAF_MAPPINGS: frozenset[Path] = SIZES | {
    ("model", "kwargs"),
    ("optimizer", "kwargs"),
    ("data", "augment", "magnitude"),
}
# Keys with values of several kinds: pydantic names the kind behind the key.
OF_SEVERAL_KINDS: frozenset[Path] = (
    SIZES
    | {("regime", section, name) for section in ("phases", "strengths") for name in Strengths.model_fields}
    | {("data", "augment", "magnitude"), ("data", "augment", "color_jitter")}
)
# Sections whose keys are names of Composer's; files merge in them name by name.
OPEN_SECTIONS: frozenset[Path] = frozenset({("algorithms",), ("callbacks",)})
# Old dotted key -> its name today.
RENAMED: dict[Path, Path] = {
    ("loader", "threads"): ("loader", "num_workers"),
    ("loader", "prefetch"): ("loader", "batches_ahead"),
    ("loader", "threshold"): ("loader", "min_oversampling"),
    ("evaluation", "threshold"): ("evaluation", "min_oversampling"),
}


def without_positions(path: Path) -> Path:
    """Return a path without list positions."""
    return tuple(key for key in path if not isinstance(key, int))


def sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """Return the section classes in a type annotation, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(section for part in get_args(annotation) for section in sections_in(part))


@lru_cache(maxsize=1024)
def sections_at(path: Path, root: type[Section] = Recipe) -> tuple[type[Section], ...]:
    """Return the possible classes of the mapping at a dotted path; none if no mapping is known there.

    List positions are skipped: `("regime", "choices", 0)` gives `(Choice,)`.
    """
    found: tuple[type[Section], ...] = (root,)
    for key in without_positions(path):
        fields = [section.model_fields[key] for section in found if key in section.model_fields]
        found = tuple(section for field in fields for section in sections_in(field.annotation))
    return tuple(dict.fromkeys(found))


def keys_at(path: Path, root: type[Section] = Recipe) -> list[str]:
    """Return the keys of the mapping at a dotted path, of all its variants together, sorted."""
    return sorted({key for section in sections_at(path, root) for key in section.model_fields})


def all_keys(path: Path = (), root: type[Section] = Recipe) -> Iterator[Path]:
    """Yield the path of every key that a recipe may hold, without list positions."""
    for key in keys_at(path, root):
        yield (*path, key)
        yield from all_keys((*path, key), root)


def variants_at(path: Path) -> dict[str, type[Section]]:
    """Return variant name -> class for a section with variants."""
    key = VARIANT_KEYS[path]
    return {name: section for section in sections_at(path) for name in get_args(section.model_fields[key].annotation)}


def without_nulls(data: Any, path: Path = ()) -> Any:
    """Return a recipe's data without known keys that are null, and with the default variant of absent ones.

    Unknown keys stay, null or not, so that validation refuses them.
    """
    if isinstance(data, list):
        return [without_nulls(item, (*path, index)) for index, item in enumerate(data)]
    if not isinstance(data, Mapping):
        return data
    optional = without_positions(path) in LEAF_MAPPINGS or path[:1] in OPEN_SECTIONS
    known = keys_at(path)
    kept = {
        key: without_nulls(value, (*path, key))
        for key, value in data.items()
        if value is not None or not (optional or key in known)
    }
    if path in DEFAULT_VARIANTS:
        kept.setdefault(VARIANT_KEYS[path], DEFAULT_VARIANTS[path])
    return kept
