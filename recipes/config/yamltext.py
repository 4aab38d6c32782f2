"""Reading and writing recipes as YAML: safe, one document, no key twice, numbers as YAML 1.2 reads them.

PyYAML follows YAML 1.1, where `1e-4` is text, `off` is false, `010` is eight and `1:30` is ninety. Here `1e-4` is a
number, only `true` and `false` are truth values, and the others are text, for the schema to refuse or accept.
"""

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

# Aliases can spell an enormous document in a few lines; no recipe comes near this many values, or this depth.
MAX_VALUES = 2_000
MAX_DEPTH = 32

_TOO_MANY = f"holds more than {MAX_VALUES} values"
_TOO_DEEP = "is nested too deeply"

_HALF = re.compile("[\ud800-\udfff]")
_CORE = "tag:yaml.org,2002:"
_IMPLICIT = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+0123456789."),
    ),
    ("merge", r"<<", ("<",)),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, starts in _IMPLICIT:
        for start in starts:
            table.setdefault(start, []).append((_CORE + kind, re.compile(f"(?:{pattern})$")))
    return table


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and any tag beyond null, bool, int, float, str, list and mapping."""

    yaml_implicit_resolvers = _resolvers()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read a node; stops at the limits rather than behind them, since some of what follows is quadratic."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_VALUES:
            raise ComposerError(None, None, _TOO_MANY, self.peek_event().start_mark)
        if self._depth > MAX_DEPTH:
            raise ComposerError(None, None, _TOO_DEEP, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Apply merge keys, which can double a mapping time and again."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise ConstructorError(None, None, _TOO_MANY, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, with merge keys (`<<`) applied."""
        if isinstance(node, yaml.MappingNode):
            self._refuse_twice(node)
        return super().construct_mapping(node, deep=deep)

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)


class RecipeDumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly what `RecipeLoader` would otherwise not read as text."""

    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value in full."""
        return True


def _represent_text(dumper: RecipeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes this line break as it is, and then reads it as a blank.
    return dumper.represent_scalar(_CORE + "str", text, style='"' if "\x85" in text else None)


RecipeDumper.add_representer(str, _represent_text)


def _checked(construct: Callable[[RecipeLoader, Any], Any], kind: str) -> Callable[[RecipeLoader, Any], Any]:
    def build(loader: RecipeLoader, node: yaml.Node) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, KeyError, IndexError) as error:  # an explicit tag on other text or none, or many digits
            raise ConstructorError(None, None, f"this is no {kind}", node.start_mark) from error

    return build


RecipeLoader.yaml_constructors = {
    _CORE + "null": yaml.SafeLoader.construct_yaml_null,
    _CORE + "bool": _checked(yaml.SafeLoader.construct_yaml_bool, "truth value"),
    _CORE + "int": _checked(yaml.SafeLoader.construct_yaml_int, "whole number"),
    _CORE + "float": _checked(yaml.SafeLoader.construct_yaml_float, "number"),
    _CORE + "str": yaml.SafeLoader.construct_yaml_str,
    _CORE + "seq": yaml.SafeLoader.construct_yaml_seq,
    _CORE + "map": yaml.SafeLoader.construct_yaml_map,
    None: yaml.SafeLoader.construct_undefined,
}


def load(text: str) -> Any:
    """Return the value of a YAML document, None where it is empty.

    Raises:
        ValueError: the text is not one document of plain values; the message starts with the line where one is known.
    """
    return _unshared(_read(text), [], [0])


def _read(text: str) -> Any:
    loader = None
    try:
        loader = RecipeLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = str(error.problem)
        if problem.startswith("but "):  # PyYAML splits some sentences in two
            problem = f"{error.context}, {problem}"
        raise ValueError(line + problem) from error
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    except (ValueError, OverflowError) as error:
        # PyYAML converts escaped characters and version numbers unchecked.
        assert loader is not None
        raise ValueError(f"line {loader.line + 1}: an escaped character or a version is out of range") from error
    except RecursionError as error:  # a chain of merge keys
        raise ValueError(_TOO_DEEP) from error


def _unshared(value: Any, above: list[int], count: list[int]) -> Any:
    """Return a copy in which no two places share a list or a mapping, and every text is one."""
    count[0] += 1
    if count[0] > MAX_VALUES:
        raise ValueError(_TOO_MANY)
    if id(value) in above:
        raise ValueError("an alias refers to the value that holds it")
    if len(above) > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, dict):
        return {_checked_text(key): _unshared(item, [*above, id(value)], count) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, [*above, id(value)], count) for item in value]
    return _checked_text(value)


def _checked_text(value: Any) -> Any:
    """A value as it is; of texts only those that can be written, which halves of a surrogate pair cannot."""
    if isinstance(value, str) and _HALF.search(value):
        raise ValueError(f"{value[:40]!a} holds half of a surrogate pair, which is no character")
    return value


def dump(data: Any) -> str:
    """Return plain data as a YAML document, keys in their given order, innermost lists on one line."""
    return yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
