"""Recipes of all kinds, made from the schema itself: nearly right, and wrong in every way that a key can be."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from hypothesis import strategies as st
from pydantic import JsonValue

from mixsize.recipes.config.compose import compose, to_yaml
from mixsize.recipes.config.keys import all_keys, sections_at
from mixsize.recipes.config.section import Path, Section

#: Full recipes of every variant of every section.
STARTS = [
    yaml.safe_load(to_yaml(compose(items)))
    for items in (
        ["demo"],
        ["demo", "regime/digits_bplus", "smoothing={}", "calibration={}"],
        [
            "demo",
            "data.augment={policy: rand-m9, magnitude: {8: 5, 16: 9}, color_jitter: [1, 1, 1], erasing: 1}",
        ],
        ["cifar10/wrn28_10", "regime/s28_dplus", "output.wandb.project=p", "schedule.name=one_cycle"],
        ["imagenet/resnet50", "regime/progressive", "optimizer.name=adamw", "optimizer.lr=0.001"],
        ["imagenet/efficientnet_b0", "regime/ffcv_ramp"],
        ["imagenet/efficientnet_b0", "regime/multiscale_shift", "regime.strengths.dropout=[0.1, 0.3]"],
        ["imagenet/resnet50", "regime/timm_progressive", "regime.fraction_of=pixels"],
        ["demo", "regime={mode: table, choices: [{size_px: 16, batch_size: 16, share: 1.0}]}", "model.kwargs.a=1"],
    )
]
KEYS = sorted(all_keys())

texts = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "name", "30ep", "9" * 40 + "ep", "1" + "0" * 5000 + "ba", "never", "s28", "é\n\x1b[31m"]),
    st.sampled_from(["x" * 3000, "[key]", "a.b", "{message}", "null", "=", "\u2028", "\U0001d518"]),
)  # fmt: skip
numbers = st.one_of(
    st.integers(0, 300),
    st.floats(0, 2),
    st.integers(-(10**30), 10**30),
    st.sampled_from([0, 1, -1, 65_536, 2**53 + 1, 10**400, 1e308, 5e-324, float("nan"), float("inf"), -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
keys = st.one_of(texts, st.integers(-3, 400), st.booleans(), st.none(), st.floats())
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


def deep(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"model": value}
    return value


def typed(annotation: Any) -> st.SearchStrategy:
    """Values of a type, most of them small enough to be meant."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        required, optional = {}, {}
        for name, field in annotation.model_fields.items():
            (required if field.is_required() else optional)[name] = typed(field.annotation)
        return st.fixed_dictionaries(required, optional=optional)
    if origin is Annotated:
        return typed(parts[0])
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (Union, UnionType):
        return st.one_of([typed(part) for part in parts])
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return st.lists(typed(parts[0]), max_size=4)
        return st.tuples(*map(typed, parts)).map(list)
    if origin is dict:
        return st.dictionaries(typed(parts[0]), typed(parts[1]), max_size=4)
    return {
        NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(0, 260),
        float: st.one_of(st.floats(0, 1), st.integers(0, 2)),
        str: texts,
        JsonValue: scalars,
    }[annotation]


def values_of(path: Path) -> st.SearchStrategy:
    """What a key may hold, by the types that the schema gives it in any variant."""
    fields = [section.model_fields[path[-1]] for section in sections_at(path[:-1]) if path[-1] in section.model_fields]
    return st.one_of([typed(field.annotation) for field in fields])


@st.composite
def changes(draw: Callable[[st.SearchStrategy], Any]) -> tuple[Path, Any]:
    """A key, known or not, and what it is to hold; ``...`` where it is to go."""
    path = draw(st.sampled_from(KEYS))
    kind = draw(st.sampled_from(["typed", "typed", "junk", "gone", "unknown", "below", "deep"]))
    if kind == "typed":
        return path, draw(values_of(path))
    if kind == "junk":
        return path, draw(junk)
    if kind == "gone":
        return path, ...
    if kind == "unknown":
        return (*path[:-1], draw(keys)), draw(junk)
    if kind == "below":
        return (*path, draw(keys)), draw(junk)
    return path, deep(draw(st.sampled_from([3, 31, 400])))


def applied(start: dict[str, Any], change: tuple[Path, Any]) -> dict[str, Any]:
    """A copy of a recipe's data with a change."""
    path, value = change
    if not path:
        return value
    data = dict(start) if isinstance(start, dict) else {}
    key = path[0]
    if len(path) == 1 and value is ...:
        data.pop(key, None)
    else:
        data[key] = applied(data.get(key), (path[1:], value))
    return data
